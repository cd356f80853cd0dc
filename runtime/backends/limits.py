"""What a backend can hold, where that is less than what the model and the caller would ask for."""

from dataclasses import dataclass

LESS_MEMORY = (
    "lower max_batch_size (--batch-size) or the lengths of sources and results, or end other "
    "programs that use it"
)
"""What mends an error about memory that ran out."""


@dataclass(frozen=True)
class Limit:
    """The most of something, and what raises it."""

    most: int
    remedy: str


def tighter(limit: Limit | None, most: int, remedy: str) -> Limit:
    """A backend's limit, or the caller's own one where that is as tight."""
    return limit if limit is not None and limit.most < most else Limit(most, remedy)


@dataclass(frozen=True)
class BackendLimits:
    """Limits of a backend; None where it has none of its own.

    Attributes:
        rows: Sequences that are decoded at a time.
        source_length: Tokens of a source.
        target_length: Positions of the KV cache.
    """

    rows: Limit | None = None
    source_length: Limit | None = None
    target_length: Limit | None = None


NO_LIMITS = BackendLimits()
