"""Whether two backends generate the same, as far as the lower precision of one can tell."""

from collections.abc import Sequence
from typing import Any

from drl.runtime import Engine, GenerationResult

MARGIN = {"fp16": 0.05, "bf16": 0.2}
"""Two logits that are nearer than this may change places in a precision."""

LEAST_SAME = {"fp16": 0.85, "bf16": 0.5}
"""The share of results that are the same as a whole, at least."""


def assert_greedy_agrees(
    exact: Engine,
    other: Engine,
    prompts: Sequence[Any],
    *,
    precision: str = "fp16",
    **options: Any,
) -> list[GenerationResult]:
    """Greedy tokens and paths are the same up to the first choice that was close.

    Args:
        exact: In fp32.
        other: In a lower precision.
        prompts: What both get.
        precision: Of the other.
        **options: Of `generate`.

    Returns:
        What the other engine generated.
    """
    expected = exact.generate(prompts, **options, logprobs=True, top_logprobs=2)
    found = other.generate(prompts, **options)
    assert len(found) == len(expected)
    same = 0
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.path == theirs.path
        assert theirs.top_logprobs is not None
        same += ours.tokens == theirs.tokens
        pairs = zip(ours.tokens, theirs.tokens, strict=False)
        differing = [place for place, (one, two) in enumerate(pairs) if one != two]
        if differing:
            (_, first), (_, second) = theirs.top_logprobs[differing[0]]
            assert first - second < MARGIN[precision], (ours.tokens, theirs.tokens)
        else:
            assert ours.tokens == theirs.tokens
    assert same >= LEAST_SAME[precision] * len(found)
    return found


def share_alike(found: Sequence[GenerationResult], expected: Sequence[GenerationResult]) -> float:
    """The share of results with the same tokens, alternatives included."""
    alike = [_tokens(ours) == _tokens(theirs) for ours, theirs in zip(found, expected, strict=True)]
    return sum(alike) / len(alike)


def _tokens(result: GenerationResult) -> list[list[int]]:
    return [result.tokens, *(each.tokens for each in result.alternatives)]
