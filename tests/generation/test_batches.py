"""Prompts with different sources, options and prefixes, together: as each alone."""

import random

import pytest

from drl.runtime import GenerationResult
from tests.generation.comparison import Case, run, run_together
from tests.generation.habits import habits
from tests.generation.options import BEAMS, case, combination
from tests.generation.subjects import PATHS, Subject, Subjects
from tests.generation.transformers_search import LIMIT

CASES = 24
CLOSE = 1e-5


@pytest.mark.slow
def test_a_ragged_batch_gives_what_each_gives_alone(subject: Subject) -> None:
    usual = habits(subject)
    cases = [case(subject, number, combination(subject, usual, number)) for number in range(CASES)]
    cases += [Case(source, search) for source in subject.sources for search in ({}, BEAMS)]
    random.Random(0).shuffle(cases)
    for result, one in zip(run_together(subject, cases), cases, strict=True):
        alone = run(subject, one)
        together = [result, *result.alternatives]
        assert len(together) == len(alone), one
        for found, expected in zip(together, alone, strict=True):
            assert_same(found, expected, one)


@pytest.mark.parametrize("kind", ["tiny", "numbers"])
def test_paths_share_a_batch(subjects: Subjects, kind: str) -> None:
    on_paths = [subjects[f"{kind}-{path}"] for path in PATHS]
    engine = on_paths[0].engine
    requests, expected = [], []
    for subject in on_paths:
        for source in subject.sources[:4]:
            for search in ({}, BEAMS):
                given = {"path": subject.path, "max_new_tokens": LIMIT}
                requests.append(engine.request(source, **given, **search))
                expected.append(run(subject, Case(source, search)))
    order = random.Random(1).sample(range(len(requests)), len(requests))
    for place, result in engine.run(requests[number] for number in order):
        alone = expected[order[place]]
        for found, one in zip([result, *result.alternatives], alone, strict=True):
            assert_same(found, one, order[place])


@pytest.mark.parametrize("kind", ["tiny", "numbers"])
def test_the_path_router_chooses_between_the_same_searches(subjects: Subjects, kind: str) -> None:
    any_path = subjects[f"{kind}-full"]
    results = any_path.engine.generate(any_path.sources, **BEAMS, max_new_tokens=LIMIT)
    assert len({result.path for result in results}) > 1
    for source, result in zip(any_path.sources, results, strict=True):
        expected = run(subjects[f"{kind}-{result.path}"], Case(source, BEAMS))
        for found, one in zip([result, *result.alternatives], expected, strict=True):
            assert_same(found, one, source)


def assert_same(found: GenerationResult, expected: GenerationResult, what: object) -> None:
    """Assert that two results are one, but for rounding."""
    assert found.tokens == expected.tokens, what
    assert found.path == expected.path
    assert found.finish_reason == expected.finish_reason, what
    assert found.prefix_tokens == expected.prefix_tokens
    assert found.logprobs == pytest.approx(expected.logprobs, abs=CLOSE, rel=CLOSE), what
    assert (found.score is None) == (expected.score is None)
    if expected.score is not None:
        # A score adds up what is close of every token, and a length penalty may be negative.
        slack = CLOSE * (len(expected.tokens) + 1)
        assert found.score == pytest.approx(expected.score, abs=slack, rel=CLOSE), what
