"""Whether two backends generate the same, as far as the lower precision of one can tell."""

from collections.abc import Sequence
from typing import Any

from drl.runtime import Engine, GenerationResult

MARGIN = 0.05
"""Two logits that are nearer than this may change places in fp16."""


def assert_greedy_agrees(
    exact: Engine, other: Engine, prompts: Sequence[Any], **options: Any
) -> list[GenerationResult]:
    """Greedy tokens and paths are the same up to the first choice that was close.

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
            assert first - second < MARGIN, (ours.tokens, theirs.tokens)
        else:
            assert ours.tokens == theirs.tokens
    assert same >= 0.9 * len(found)
    return found


def share_alike(found: Sequence[GenerationResult], expected: Sequence[GenerationResult]) -> float:
    """The share of results with the same tokens, alternatives included."""
    alike = [_tokens(ours) == _tokens(theirs) for ours, theirs in zip(found, expected, strict=True)]
    return sum(alike) / len(alike)


def _tokens(result: GenerationResult) -> list[list[int]]:
    return [result.tokens, *(each.tokens for each in result.alternatives)]
