"""The likeliest tokens, in the order that `Ranking` promises, worked out where the logits are."""

from typing import Any

import numpy as np

# Keys that are worked out at a time; each is a number of 8 bytes, and there are some copies.
_MOST_KEYS = 16 << 20
# Tokens whose largest key is looked at first, where more than one token is wanted.
_GROUP = 64
_IDS = np.uint64(0xFFFFFFFF)
_SIGN = np.uint32(1 << 31)


def rank_on(library: Any, logits: Any, count: int) -> tuple[Any, Any]:
    """The `count` largest logits of each row and their tokens: `[..., c]` fp32 and int32.

    The largest comes first, equal ones by token id, NaN last. All of that is put into one whole
    number per token, so that no two are equal and any way to find the largest gives the same.

    Args:
        library: NumPy, or CuPy for logits on a GPU.
        logits: `[..., V]` fp32, C-contiguous.
        count: From 1 to V.
    """
    vocab_size = logits.shape[-1]
    flat = logits.reshape(-1, vocab_size)
    rows = len(flat)
    values = library.empty((rows, count), np.float32)
    ids = library.empty((rows, count), np.int32)
    step = max(1, _MOST_KEYS // vocab_size)
    for first in range(0, rows, step):
        part = flat[first : first + step]
        best = _largest(library, _keys(library, part), count)
        tokens = (best & _IDS) ^ _IDS
        ids[first : first + step] = tokens.astype(np.int32)
        values[first : first + step] = library.take_along_axis(
            part, tokens.astype(np.int64), axis=1
        )
    shape = (*logits.shape[:-1], count)
    return values.reshape(shape), ids.reshape(shape)


def _keys(library: Any, logits: Any) -> Any:
    """A number per logit that is larger where the token comes earlier; `[n, V]` uint64.

    The upper half is the float's bits, turned so that they rise with it, and 0 for NaN; the lower
    half falls with the token.
    """
    bits = (logits + np.float32(0)).view(np.uint32)  # -0 becomes 0, which it equals
    rising = library.where(bits >= _SIGN, ~bits, bits | _SIGN)
    rising = library.where(library.isnan(logits), np.uint32(0), rising)
    falling = library.arange(logits.shape[1], dtype=np.uint64) ^ _IDS
    return (rising.astype(np.uint64) << np.uint64(32)) | falling


def _largest(library: Any, keys: Any, count: int) -> Any:
    """The `count` largest of each row of `[n, V]` keys, largest first."""
    rows, size = keys.shape
    if count == 1:
        return keys.max(axis=1).reshape(rows, 1)
    if 2 * count * _GROUP >= size:
        return library.sort(keys, axis=1)[:, ::-1][:, :count]
    # A key that is among the largest is in one of as many groups with the largest keys.
    groups = -(-size // _GROUP)
    padded = library.zeros((rows, groups * _GROUP), np.uint64)  # below every key
    padded[:, :size] = keys
    grouped = padded.reshape(rows, groups, _GROUP)
    order = library.argsort(grouped.max(axis=2), axis=1)[:, ::-1][:, :count]
    chosen = library.take_along_axis(grouped, order.reshape(rows, count, 1), axis=1)
    chosen = chosen.reshape(rows, count * _GROUP)
    return library.sort(chosen, axis=1)[:, ::-1][:, :count]
