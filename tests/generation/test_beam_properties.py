"""What holds of every beam search, whatever another implementation says."""

from typing import Any

import numpy as np
import pytest

from drl.runtime import GenerationResult
from tests.generation.comparison import Case, run
from tests.generation.options import BEAMS
from tests.generation.subjects import PATHS, Subject, Subjects
from tests.generation.transformers_search import LIMIT

PENALTIES = (0.0, 0.6, 1.0, 2.0, -1.0)


def _beams(subject: Subject, source: list[int], **options: Any) -> list[GenerationResult]:
    return run(subject, Case(source, BEAMS | options))


def test_scores_descend_and_texts_differ(subject: Subject) -> None:
    for source in subject.sources:
        for penalty in PENALTIES:
            found = _beams(subject, source, length_penalty=penalty)
            assert len(found) == 4
            assert len({(tuple(each.tokens), each.finish_reason) for each in found}) == 4
            scores = [each.score for each in found if each.score is not None]
            assert scores == sorted(scores, reverse=True)
            assert len(scores) == 4


def test_a_score_is_the_sum_of_log_probabilities_over_the_length(subject: Subject) -> None:
    for number, source in enumerate(subject.sources):
        penalty = PENALTIES[number % len(PENALTIES)]
        made = _beams(subject, source, length_penalty=penalty)
        # the log-probability of the end token is not reported, but can be scored
        targets = [[*each.tokens, subject.end] for each in made]
        scores = subject.engine.score([source] * len(made), targets, path=subject.path)
        for each, score in zip(made, scores, strict=True):
            ended = each.finish_reason == "eos"
            total = sum(each.logprobs or ()) + (score.logprobs[-1] if ended else 0.0)
            length = len(each.tokens) + ended
            assert each.score == pytest.approx(total / length**penalty, rel=1e-4, abs=1e-4)


def test_fewer_results_are_the_best_of_more(subject: Subject) -> None:
    for source in subject.sources:
        every = _beams(subject, source)
        for count in (1, 2, 3):
            found = _beams(subject, source, num_return_sequences=count)
            assert [each.tokens for each in found] == [each.tokens for each in every[:count]]
            assert [each.score for each in found] == [each.score for each in every[:count]]


def test_more_beams_score_no_worse_on_the_whole(subject: Subject) -> None:
    def total(beams: int) -> float:
        options = {"num_beams": beams, "length_penalty": 0.0, "early_stopping": "never"}
        best = (run(subject, Case(source, options))[0] for source in subject.sources)
        return sum(made.score or 0.0 for made in best)

    assert total(2) - 1e-3 <= total(8)


def test_one_beam_is_greedy_search(subject: Subject) -> None:
    for source in subject.sources:
        (one,), (greedy,) = (run(subject, Case(source, given)) for given in ({"num_beams": 1}, {}))
        assert (one.tokens, one.logprobs, one.score) == (greedy.tokens, greedy.logprobs, None)


@pytest.mark.parametrize("beams", [1, 2, 4])
@pytest.mark.parametrize("path", PATHS)
def test_what_is_streamed_is_what_is_generated(subjects: Subjects, path: str, beams: int) -> None:
    engine, sources = subjects[f"numbers-{path}"].engine, subjects[f"numbers-{path}"].sources
    options: dict[str, Any] = {"num_beams": beams, "max_new_tokens": LIMIT, "path": path}
    for source in sources:
        (whole,) = engine.generate([source], **options)
        pieces = list(engine.stream(source, **options))
        assert "".join(piece.text for piece in pieces) == whole.text
        assert [token for piece in pieces for token in piece.tokens] == whole.tokens
        assert all(piece.result is None for piece in pieces[:-1])
        last = pieces[-1].result
        assert last is not None
        assert (last.tokens, last.score) == (whole.tokens, whole.score)


@pytest.mark.parametrize("kind", ["tiny", "numbers"])
def test_experts_are_those_of_the_hypothesis(subjects: Subjects, kind: str) -> None:
    for path in PATHS:
        subject = subjects[f"{kind}-{path}"]
        given: dict[str, Any] = {"path": path, "return_experts": True}
        for source in subject.sources[:4]:
            (best,) = subject.engine.generate([source], **BEAMS, max_new_tokens=LIMIT, **given)
            for made in (best, *best.alternatives):
                (read,) = subject.engine.generate(
                    [source], prefixes=[made.tokens], max_new_tokens=1, **given
                )
                assert made.experts is not None
                assert read.experts is not None
                assert made.experts.decoder.keys() == read.experts.decoder.keys()
                for layer, ids in read.experts.decoder.items():
                    count = len(made.tokens)
                    np.testing.assert_array_equal(made.experts.decoder[layer][:count], ids[:count])
