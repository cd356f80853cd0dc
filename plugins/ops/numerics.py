"""Functions that several NumPy references share."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

_erf = np.vectorize(math.erf, otypes=[np.float64])


def masked_softmax(
    scores: NDArray[Any], mask: NDArray[np.bool_] | None = None
) -> NDArray[np.float32]:
    """Softmax over the last axis in fp32; places where the mask is False get exactly 0.

    Every row must have at least one place that the mask lets through.
    """
    scores = scores.astype(np.float32)
    if mask is not None:
        scores = np.where(mask, scores, np.float32(-np.inf))
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    result: NDArray[np.float32] = powers / powers.sum(axis=-1, keepdims=True)
    return result


def sigmoid(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """1 / (1 + exp(-x)), without overflow."""
    result: NDArray[np.float32] = np.exp(-np.logaddexp(np.float32(0), -x))
    return result


def gelu(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """x·Φ(x), with the error function itself (Hendrycks and Gimpel, 2016)."""
    result: NDArray[np.float32] = (0.5 * x * (1 + _erf(x / math.sqrt(2)))).astype(np.float32)
    return result
