"""The likeliest tokens, in the order that `Ranking` promises, from what an engine ranked.

An engine tells the c largest logits, largest first, and promises no order among equal ones, nor
which of several equal ones are told if not all of them fit. So that the order is always the same:

- equal values that were told are put into the order of their ids;
- if the last value that is asked for equals the last one that was told, tokens that were not told
  may have it too, so the step's whole rows decide;
- if a row has NaN, which shows in its normaliser, its whole row decides as well.
"""

import math

import numpy as np

from drl.runtime.arrays import Float32, Int32
from drl.runtime.backends.protocol import Ranking


def rank(
    values: Float32, ids: Int32, normalisers: Float32, count: int, real: Int32, vocab_size: int
) -> Ranking | None:
    """The `count` likeliest tokens, or None if it takes the whole rows to tell.

    Args:
        values: `[B, T, c]` the largest logits, largest first.
        ids: `[B, T, c]` their tokens.
        normalisers: `[B, T]`.
        count: How many are asked for.
        real: `[B]` how many of the T are real: behind them anything will do.
        vocab_size: V.

    Returns:
        In memory of its own.
    """
    told = values.shape[-1]
    if count > told or (count == told < vocab_size):
        return None
    # Nearly always values fall strictly as far as one looks, and one further: then all is well.
    seen = values[..., : count + 1]
    falling = seen[..., 1:] < seen[..., :-1]
    if falling.all() and not math.isnan(normalisers.sum()):
        return Ranking(values[..., :count].copy(), ids[..., :count].copy())
    inside = np.arange(values.shape[1]) < real[:, None]
    if np.isnan(normalisers[inside]).any():
        return None
    if told < vocab_size and ((values[..., count - 1] == values[..., -1]) & inside).any():
        return None
    order = np.lexsort((ids, -values), axis=-1)[..., :count]
    return Ranking(np.take_along_axis(values, order, -1), np.take_along_axis(ids, order, -1))
