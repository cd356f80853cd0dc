"""The likeliest tokens, in the order that `Ranking` promises, from what an engine ranked.

An engine tells the c largest logits, largest first, and promises no order among equal ones, nor
which of several equal ones are told if not all of them fit. So that the order is always the same:

- equal values that were told are put into the order of their ids;
- if the last value that is asked for equals the last one that was told, tokens that were not told
  may have it too, so the step's whole rows decide;
- if a row has NaN, which shows in its normaliser, its whole row decides as well.
"""

import numpy as np

from drl.runtime.arrays import Array, Float32, Int32
from drl.runtime.backends.protocol import Ranking


def rank(
    values: Float32, ids: Int32, normalisers: Float32, count: int, real: Array, vocab_size: int
) -> Ranking | None:
    """The `count` likeliest tokens, or None if it takes the whole rows to tell.

    Args:
        values: `[B, T, c]` the largest logits, largest first.
        ids: `[B, T, c]` their tokens.
        normalisers: `[B, T]`.
        count: How many are asked for.
        real: `[B, T]` bool: the others are padding, for which anything will do.
        vocab_size: V.

    Returns:
        In memory of its own.
    """
    told = values.shape[-1]
    if count > told or np.isnan(normalisers[real]).any():
        return None
    # Strictly falling as far as one looks, and one further: the order is right as it is.
    seen = values[..., : count + 1]
    falling = (seen[..., 1:] < seen[..., :-1]).all(axis=-1)
    if told < vocab_size:
        tied = values[..., count - 1] == values[..., -1]
        if (tied & real).any():
            return None
    if (falling | ~real).all():
        return Ranking(values[..., :count].copy(), ids[..., :count].copy())
    order = np.lexsort((ids, -values), axis=-1)[..., :count]
    return Ranking(np.take_along_axis(values, order, -1), np.take_along_axis(ids, order, -1))
