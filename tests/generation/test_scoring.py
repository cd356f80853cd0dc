"""Log-probabilities of given targets: those of eager PyTorch, and those that generation reports."""

import random
from collections.abc import Sequence

import pytest
import torch

from tests.generation.comparison import Case, run
from tests.generation.options import BEAMS
from tests.generation.subjects import PATHS, Subject, Subjects

TOLERANCE = 1e-4
CLOSE = 1e-5


@torch.inference_mode()
def forced(subject: Subject, source: Sequence[int], target: Sequence[int]) -> list[float]:
    """Log-probability of each token of a target, from the eager model in one pass."""
    start = subject.model.generation_config.decoder_start_token_id
    encoded = subject.model.get_encoder()(torch.tensor([source]), return_dict=True)
    inputs = torch.tensor([[start, *target[:-1]]])
    logits = subject.model(encoder_outputs=encoded, decoder_input_ids=inputs).logits[0]
    wanted = torch.tensor(target)[:, None]
    return [float(value) for value in logits.log_softmax(-1).gather(1, wanted)[:, 0]]


def targets(subject: Subject) -> list[list[int]]:
    """What the model says of each source, and after it, things it would not say."""
    draw = random.Random(subject.name)
    made = []
    for number, source in enumerate(subject.sources):
        (said, *_) = run(subject, Case(source, {}))
        noise = [draw.randrange(3, subject.vocab_size) for _ in range(number % 5)]
        made.append([token for token in [*said.tokens, *noise] if token != subject.end] or [5])
    return made


@pytest.mark.parametrize("end", [True, False])
def test_scores_are_those_of_eager_pytorch_alone_and_together(subject: Subject, end: bool) -> None:
    given = targets(subject)
    engine, sources = subject.engine, subject.sources
    together = engine.score(sources, given, path=subject.path, end=end)
    for source, target, found in zip(sources, given, together, strict=True):
        wanted = [*target, subject.end] if end else target
        assert found.tokens == wanted
        assert found.path == subject.path
        expected = forced(subject, source, wanted)
        assert found.logprobs == pytest.approx(expected, abs=TOLERANCE, rel=TOLERANCE)
        (alone,) = engine.score([source], [target], path=subject.path, end=end)
        assert found.logprobs == pytest.approx(alone.logprobs, abs=CLOSE, rel=CLOSE)
        assert found.total == pytest.approx(sum(expected), abs=1e-3)


def test_an_end_token_is_not_scored_twice(subjects: Subjects) -> None:
    subject = subjects["t5"]
    target = [*targets(subject)[0], subject.end]
    (found,) = subject.engine.score(subject.sources[:1], [target])
    assert found.tokens == target


def test_scores_are_what_generation_reports(subject: Subject) -> None:
    for source in subject.sources:
        made = [each for search in ({}, BEAMS) for each in run(subject, Case(source, search))]
        targets = [[*each.tokens, subject.end] for each in made]
        scores = subject.engine.score([source] * len(made), targets, path=subject.path)
        for each, score in zip(made, scores, strict=True):
            length = len(each.tokens)
            scored = score.logprobs[:length]
            assert each.logprobs == pytest.approx(scored, abs=TOLERANCE, rel=TOLERANCE)
            if each.score is not None:
                length += each.finish_reason == "eos"
                average = sum(score.logprobs[:length]) / length
                assert each.score == pytest.approx(average, abs=TOLERANCE)


def test_what_is_reported_of_a_prefix_is_its_score(subject: Subject) -> None:
    for number, target in enumerate(targets(subject)):
        prefix, source = target[: 1 + number], subject.sources[number]
        (score,) = subject.engine.score([source], [prefix], path=subject.path, end=False)
        for search in ({}, BEAMS):
            for made in run(subject, Case(source, search | {"max_new_tokens": 3}, prefix)):
                assert made.prefix_tokens == len(prefix)
                assert made.tokens[: len(prefix)] == prefix
                reported = (made.logprobs or [])[: len(prefix)]
                assert reported == pytest.approx(score.logprobs, abs=CLOSE, rel=CLOSE)


def test_an_empty_target_is_scored_by_its_end(subjects: Subjects) -> None:
    for path in PATHS:
        subject = subjects[f"numbers-{path}"]
        source = subject.sources[0]
        (found,) = subject.engine.score([source], [[]], path=path)
        assert found.tokens == [subject.end]
        expected = forced(subject, source, [subject.end])
        assert found.logprobs == pytest.approx(expected, abs=TOLERANCE, rel=TOLERANCE)
