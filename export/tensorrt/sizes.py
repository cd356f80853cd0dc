"""What sizes engines are built for: smallest, usual and largest of each named dimension."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from drl.runtime.backends.tensorrt.sizes import position_multiple
from drl.runtime.errors import ExportError
from drl.runtime.manifest import CacheInfo, Limits

_KEEP_DENOMINATOR = 1000  # keep ratios are whole thousandths
_USUAL_BATCH, _MOST_BATCH = 8, 32
_USUAL_SOURCE = 64
_USUAL_NEW_TOKENS, _MOST_NEW_TOKENS = 16, 64


@dataclass(frozen=True)
class Range:
    """Smallest, usual and largest size of a dimension; kernels are chosen for the usual one."""

    min: int
    opt: int
    max: int

    @classmethod
    def parse(cls, text: str) -> "Range":
        """Read `1,8,32`, or a single number for a size that does not vary.

        Raises:
            ValueError: The text is neither, or the sizes are not ascending from 1.
        """
        if not re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*,\s*\d+\s*)?", text):
            raise ValueError(f"{text!r} is neither a number nor MIN,OPT,MAX, as in 1,8,32")
        values = [int(part) for part in text.split(",")]
        low, usual, high = values if len(values) == 3 else values * 3
        if not 1 <= low <= usual <= high:
            raise ValueError(f"{text} does not ascend from 1: it must be MIN,OPT,MAX, as in 1,8,32")
        return cls(low, usual, high)

    def __str__(self) -> str:
        return f"{self.min},{self.opt},{self.max}"

    def __iter__(self) -> Iterator[int]:
        return iter((self.min, self.opt, self.max))


@dataclass(frozen=True)
class Sizes:
    """What was asked for; None stands for a default that fits the bundle.

    Attributes:
        batch: Rows of the decoder, B: sources times beams.
        source: Tokens of a source, S.
        new_tokens: Tokens of the decoder's first call, T, which a prefix may be part of.
        beams: Rows that share a source; R follows from it.
        sources: R itself, and the rows of encoder and bridge.
        capacity: Positions of the KV cache, C, which does not vary.
    """

    batch: Range | None = None
    source: Range | None = None
    new_tokens: Range | None = None
    beams: Range | None = None
    sources: Range | None = None
    capacity: int | None = None


@dataclass(frozen=True)
class Dimensions:
    """Sizes with every default filled in, which fit a bundle.

    Attributes:
        batch: B of the decoder.
        sources: R of the decoder, and B of encoder and bridge.
        source: S.
        new_tokens: T of the profile `prefill`.
        capacity: C.
    """

    batch: Range
    sources: Range
    source: Range
    new_tokens: Range
    capacity: int


def fit(sizes: Sizes, limits: Limits, cache: CacheInfo) -> Dimensions:
    """Fill in defaults and hold sizes against a bundle's limits.

    Args:
        sizes: What was asked for.
        limits: Of the bundle.
        cache: Of the bundle; the rows of its cache must begin where TensorRT takes tensors.

    Raises:
        ExportError: Something does not fit; the message names everything.
    """
    step = position_multiple(cache.kv_heads, cache.head_dim)
    capacity = sizes.capacity
    if capacity is None:
        capacity = limits.max_target_length // step * step or limits.max_target_length
    batch = sizes.batch or Range(1, _USUAL_BATCH, _MOST_BATCH)
    source = sizes.source or _default(_USUAL_SOURCE, limits.max_source_length)
    new_tokens = sizes.new_tokens or _default(
        _USUAL_NEW_TOKENS, max(1, min(_MOST_NEW_TOKENS, capacity))
    )
    faults = []
    if not 1 <= capacity <= limits.max_target_length:
        faults.append(
            f"--cache {capacity} is not within 1 and the model's {limits.max_target_length} "
            "target positions"
        )
    elif capacity % step:
        faults.append(
            f"--cache {capacity} is no multiple of {step}, which TensorRT needs with "
            f"{cache.kv_heads} heads of {cache.head_dim}"
        )
    elif new_tokens.max > capacity:
        faults.append(f"--new-tokens {new_tokens} exceeds the cache of {capacity} positions")
    if source.max > limits.max_source_length:
        faults.append(
            f"--source {source} exceeds the model's {limits.max_source_length} source positions"
        )
    sources = sizes.sources or _sources(batch, sizes.beams, faults)
    faults += _uneven(batch, sources)
    if faults:
        raise ExportError(f"these sizes do not fit the bundle: {'; '.join(faults)}")
    return Dimensions(batch, sources, source, new_tokens, capacity)


def kept_states(keep_ratio: float, length: int) -> int:
    """How many states of a source a path keeps: ⌈ρ·S⌉ in whole numbers, as the bridge counts."""
    return -(-round(keep_ratio * _KEEP_DENOMINATOR) * length // _KEEP_DENOMINATOR)


def _default(usual: int, most: int) -> Range:
    return Range(1, min(usual, most), most)


def _sources(batch: Range, beams: Range | None, faults: list[str]) -> Range:
    """How many sources the rows of a batch come from: B / W."""
    if beams is None:
        return Range(1, batch.opt, batch.max)  # one row or more for each
    if beams.min > batch.max:
        faults.append(f"--beams {beams} exceeds --batch {batch}, which counts every beam")
        return batch
    least, usual = -(-batch.min // beams.max), batch.opt // beams.opt
    most = batch.max // beams.min
    return Range(least, min(max(usual, least), most), most)


def _uneven(batch: Range, sources: Range) -> Iterator[str]:
    """Name the places where the rows of a batch cannot be shared out evenly."""
    for place, rows, count in zip(("least", "usual", "most"), batch, sources, strict=True):
        if rows % count:
            yield (
                f"{rows} rows cannot come from {count} sources with as many beams each, where "
                f"both are at their {place}: mind --batch {batch} and --sources {sources}, or "
                "--beams"
            )
