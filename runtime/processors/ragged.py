"""Tokens of rows of different lengths, padded on the right with negative ids."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from drl.runtime.arrays import Int64


class Places(NamedTuple):
    """`[n]` rows and `[n]` columns of scores. A place may come twice."""

    rows: Int64
    columns: Int64


def places_of(tokens: Int64, wanted: NDArray[np.bool_], vocab_size: int) -> Places:
    """The places of the wanted ones of `[R, n]` tokens in `[R, V]` scores.

    Ids outside the vocabulary have none: padding, and tokens that the model reads but never writes.
    """
    rows, positions = np.nonzero(wanted & (tokens >= 0) & (tokens < vocab_size))
    return Places(rows, tokens[rows, positions])


def last_tokens(tokens: Int64, lengths: Int64, count: int) -> Int64:
    """`[R, count]`: the last tokens of each row of `[R, L]`; -1 where a row has fewer."""
    positions = lengths[:, None] - count + np.arange(count)
    found: Int64 = np.take_along_axis(tokens, np.maximum(positions, 0), axis=1)
    found[positions < 0] = -1
    return found


def within(tokens: tuple[int, ...], vocab_size: int) -> Int64:
    """Those of a few tokens that are in the vocabulary: others cannot be chosen anyway."""
    ids = np.array(tokens, np.int64)
    inside: Int64 = ids[ids < vocab_size]
    return inside
