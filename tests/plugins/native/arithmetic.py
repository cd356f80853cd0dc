"""What the int8 kernels compute, to the last bit, in NumPy."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
_SMALLEST = np.float32(2.0**-119)


def quantize_rows(x: Float32) -> tuple[NDArray[np.int64], Float32]:
    """Int8 values `[M, K]` and scale `[M]` of every row; a row that is not finite has scale NaN."""
    largest = np.abs(x).max(axis=1, initial=0)
    finite = np.isfinite(largest)
    used = finite & (largest >= _SMALLEST)
    safe = np.where(used, largest, np.float32(1))
    values = np.rint(np.where(used[:, None], x, np.float32(0)) * (np.float32(127) / safe)[:, None])
    scale = np.where(used, safe / np.float32(127), np.where(finite, 0, np.nan))
    return values.astype(np.int64), scale.astype(np.float32)


def linear(
    x: Float32, weights: NDArray[np.int8], scales: Float32, bias: Float32 | None = None
) -> Float32:
    """`x [M, K]` times int8 weights `[N, K]` with scales `[N]`."""
    values, row_scale = quantize_rows(x)
    sums = (values @ weights.astype(np.int64).T).astype(np.float32)
    with np.errstate(all="ignore"):
        y = sums * (row_scale[:, None] * scales[None, :])
    result: Float32 = y if bias is None else y + bias
    return result


def same_bits(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Whether two float32 arrays hold the same bits, NaN being NaN whatever its payload."""
    if a.shape != b.shape or a.dtype != np.float32 or b.dtype != np.float32:
        return False
    both = np.isnan(a) & np.isnan(b)
    return bool(((a.view(np.int32) == b.view(np.int32)) | both).all())
