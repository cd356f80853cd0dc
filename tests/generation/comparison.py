"""The same search in the runtime and in transformers, and what of it may differ."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from drl.runtime import GenerationResult
from tests.generation.subjects import Subject
from tests.generation.transformers_search import LIMIT, Found, search

TOLERANCE = 1e-4
"""Largest difference of scores, relative where they are large."""

_NOISE = 1e-5
_DISTURBED = 24
_MOST_TIES = 0.01


@dataclass(frozen=True)
class Case:
    """A source with the options to search it by, and what its output begins with."""

    source: Sequence[int]
    options: Mapping[str, Any]
    prefix: Sequence[int] = ()


@dataclass
class Tally:
    """Compares searches and counts them.

    Attributes:
        compared: Searches.
        ties: Those whose outcome hangs on rounding errors, in transformers itself as well.
        wrong: What is different without that excuse.
    """

    compared: int = 0
    ties: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def compare(self, subject: Subject, case: Case) -> list[GenerationResult]:
        """Search on both sides; return the runtime's results, the best first."""
        self.compared += 1
        ours = run(subject, case)
        theirs = expected(subject, case)
        if not same(ours, theirs):
            words = f"{subject.name}: {case}\n  ours {show(ours)}\n  theirs {theirs}"
            tie = any(
                same(ours, expected(subject, case, (seed, _NOISE))) for seed in range(_DISTURBED)
            )
            (self.ties if tie else self.wrong).append(words)
        return ours

    def check(self) -> None:
        """Assert that nothing was wrong, and hardly anything a tie."""
        wrong = "\n".join(self.wrong[:5])
        assert not self.wrong, f"{len(self.wrong)} of {self.compared} searches differ:\n{wrong}"
        for tie in self.ties:
            print(f"a tie: {tie}")
        assert len(self.ties) <= max(1, _MOST_TIES * self.compared), self.ties


def run(subject: Subject, case: Case) -> list[GenerationResult]:
    """Search in the runtime, alone."""
    (result,) = run_together(subject, [case])
    return [result, *result.alternatives]


def run_together(subject: Subject, cases: Sequence[Case]) -> list[GenerationResult]:
    """Search several cases in one call of the runtime."""
    return subject.engine.generate(
        [case.source for case in cases],
        [subject.engine.configure(**_limited(case.options)) for case in cases],
        path=subject.path,
        prefixes=[case.prefix for case in cases],
    )


def expected(subject: Subject, case: Case, noise: tuple[int, float] | None = None) -> list[Found]:
    """Search in transformers."""
    return search(subject.model, case.source, case.options, case.prefix, noise, subject.tokenizer)


def same(ours: Sequence[GenerationResult], theirs: Sequence[Found]) -> bool:
    """Whether tokens are the same, and scores and log-probabilities within `TOLERANCE`."""
    return len(ours) == len(theirs) and all(
        result.tokens == found.tokens
        and _near(_numbers(result.score), _numbers(found.score))
        and (found.logprobs is None or _near(_generated(result), found.logprobs))
        for result, found in zip(ours, theirs, strict=True)
    )


def _numbers(score: float | None) -> list[float]:
    return [] if score is None else [score]


def _generated(result: GenerationResult) -> list[float]:
    return (result.logprobs or [])[result.prefix_tokens :]


def _near(ours: list[float], theirs: list[float]) -> bool:
    return bool(ours == pytest.approx(theirs, rel=TOLERANCE, abs=TOLERANCE))


def show(results: Sequence[GenerationResult]) -> str:
    """Tokens and scores, for a message."""
    return str([(result.tokens, result.score, result.finish_reason) for result in results])


def _limited(options: Mapping[str, Any]) -> dict[str, Any]:
    if {"max_length", "max_new_tokens"} & options.keys():
        return dict(options)
    return {"max_new_tokens": LIMIT} | dict(options)
