"""Scores that are no finite numbers, replaced."""

from dataclasses import dataclass

import numpy as np

from drl.runtime.arrays import Float32
from drl.runtime.processors.protocol import BuiltInProcessor, DecodingState

_LIMITS = np.finfo(np.float32)


@dataclass(frozen=True)
class RemoveInvalidValues(BuiltInProcessor):
    """NaN becomes 0, and infinities the largest and smallest number."""

    def __call__(self, state: DecodingState, scores: Float32) -> Float32:
        """See `LogitsProcessor`."""
        # One pass tells rows that have nothing to remove: a sum of numbers is a number, or has
        # overflowed, in which case its row is looked at for nothing.
        with np.errstate(over="ignore", invalid="ignore"):
            (rows,) = np.nonzero(~np.isfinite(scores.sum(axis=1)))
        for row in rows.tolist():
            np.nan_to_num(
                scores[row],
                copy=False,
                nan=0.0,
                posinf=float(_LIMITS.max),
                neginf=float(_LIMITS.min),
            )
        return scores
