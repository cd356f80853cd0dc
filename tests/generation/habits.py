"""What a subject says without options, so that options can forbid it or ask for it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.generation.subjects import Subject
from tests.generation.transformers_search import search


@dataclass(frozen=True)
class Habits:
    """A subject's usual outputs, without end tokens.

    Attributes:
        tokens: Generated tokens, the commonest first.
        pairs: Neighbours in its outputs, the commonest first.
        triples: Three in a row.
        firsts: First tokens.
        text: The output with the most different tokens.
    """

    tokens: list[int]
    pairs: list[tuple[int, ...]]
    triples: list[tuple[int, ...]]
    firsts: list[int]
    text: list[int]


def habits(subject: Subject, sources: int = 4) -> Habits:
    """Learn what a subject says of its first sources, greedily and with beams."""
    beams = {"num_beams": 4, "num_return_sequences": 4}
    said = [
        found.tokens
        for source in subject.sources[:sources]
        for options in ({}, beams)
        for found in search(subject.model, source, options)
    ]

    def grams(size: int) -> list[tuple[int, ...]]:
        rows = (zip(*(text[i:] for i in range(size)), strict=False) for text in said)
        return _commonest([gram for row in rows for gram in row])

    return Habits(
        tokens=[token for (token,) in grams(1)],
        pairs=grams(2),
        triples=grams(3),
        firsts=_commonest([text[0] for text in said if text]),
        text=max(said, key=lambda text: (len(set(text)), text)),
    )


def _commonest(items: Sequence[Any]) -> list[Any]:
    return sorted(Counter(items), key=lambda item: (-items.count(item), item))
