"""The largest of many scores, and the logarithm of the sum of their exponentials."""

import numpy as np

from drl.runtime.arrays import Float32, Int64

LOWEST = np.finfo(np.float32).min
# Passes over whole rows take so many numbers at a time: they stay in the processor's cache.
_PORTION = 1 << 16
# Where to look first for scores that are equal.
_BEGINNING = 1 << 10


def log_sum_exp(logits: Float32, scratch: Float32) -> Float32:
    """`[R]` logarithm of the sum of exponentials of each row of `[R, V]` logits.

    A row's result depends on that row alone, to the last bit. It is -inf where all logits are.

    Args:
        logits: `[R, V]`; left as they are.
        scratch: `[R, V]` to work in.
    """
    rows, vocab_size = logits.shape
    largest = logits.max(axis=1)
    # -inf from -inf would be NaN
    np.maximum(largest, LOWEST, out=largest)
    sums = np.empty(rows, np.float32)
    step = max(1, _PORTION // vocab_size)
    with np.errstate(over="ignore", divide="ignore"):
        for start in range(0, rows, step):
            part = slice(start, start + step)
            exponentials = np.subtract(logits[part], largest[part, None], out=scratch[part])
            np.exp(exponentials, out=exponentials)
            exponentials.sum(axis=1, out=sums[part])
        np.log(sums, out=sums)
    sums += largest
    return sums


def largest(scores: Float32, count: int) -> tuple[Int64, Float32]:
    """The `count` largest of each row, best first; of equal ones the lower id comes first.

    The vocabulary is split into blocks. Only the `count` blocks with the largest maxima can hold
    one of the largest scores, so only these are looked at closely.

    Args:
        scores: `[R, V]` without NaN, V below 2^31; left as they are.
        count: How many, at least 1; cut to V.

    Returns:
        `[R, count]` ids and their `[R, count]` scores.
    """
    rows, vocab_size = scores.shape
    count = min(count, vocab_size)
    if count == 1:
        ids = scores.argmax(axis=1)[:, None]
        return ids, scores[np.arange(rows)[:, None], ids]
    size = _block_size(vocab_size, count)
    if size < 4:
        return _largest_of_all(scores, count)
    return _largest_of_blocks(scores, count, size)


def _block_size(vocab_size: int, count: int) -> int:
    """Numbers per block that balance the number of blocks with the numbers in `count` of them."""
    return 1 << (int((vocab_size / count) ** 0.5).bit_length() - 1)


def _largest_of_blocks(scores: Float32, count: int, size: int) -> tuple[Int64, Float32]:
    rows, vocab_size = scores.shape
    blocks = vocab_size // size
    covered = blocks * size
    # Block j holds j, j + blocks, j + 2 blocks, ...: the maxima of all blocks are taken at once,
    # which is many times faster than one block after the other.
    maxima = scores[:, :covered].reshape(rows, size, blocks).max(axis=1)
    chosen = np.argpartition(maxima, blocks - count, axis=1)[:, blocks - count :]
    chosen.sort(axis=1)
    every = np.arange(rows)[:, None]
    thresholds = maxima[every, chosen].min(axis=1)
    starts = np.arange(0, covered, blocks)
    # Ascending, as the chosen blocks are; numbers that fit no block are always looked at.
    ids = np.empty((rows, count * size + vocab_size - covered), np.int64)
    ids[:, : count * size] = (starts[:, None] + chosen[:, None]).reshape(rows, count * size)
    ids[:, count * size :] = np.arange(covered, vocab_size)
    values = scores[every, ids]
    order = _best(values, count)
    found, best = ids[every, order], values[every, order]
    # If more blocks reach the threshold, an equal score with a lower id may be in one of them.
    (tied,) = np.nonzero(np.count_nonzero(maxima >= thresholds[:, None], axis=1) > count)
    for row in tied.tolist():
        found[row], best[row] = _largest_of_ties(scores[row], count, best[row, -1])
    return found, best


def _largest_of_ties(scores: Float32, count: int, last: np.float32) -> tuple[Int64, Float32]:
    """The largest of `[V]` scores, of which the `count`-th is known to be `last`."""
    (above,) = np.nonzero(scores > last)
    missing = count - len(above)
    # Where most tokens are barred, ties are everywhere: the first few are soon found.
    (ties,) = np.nonzero(scores[:_BEGINNING] == last)
    if len(ties) < missing:
        (ties,) = np.nonzero(scores == last)
    above = above[_best(scores[None, above], len(above))[0]] if len(above) else above
    ids = np.concatenate([above, ties[:missing]])
    return ids, scores[ids]


def _largest_of_all(scores: Float32, count: int) -> tuple[Int64, Float32]:
    rows, vocab_size = scores.shape
    ids = np.empty((rows, count), np.int64)
    step = max(1, _PORTION // vocab_size)
    for start in range(0, rows, step):
        ids[start : start + step] = _best(scores[start : start + step], count)
    return ids, scores[np.arange(rows)[:, None], ids]


def _best(values: Float32, count: int) -> Int64:
    """`[R, count]` places of the largest of `[R, C]` values, largest first, ties by place.

    Floats order like their bits (negative ones with all but the sign turned round), so value and
    place make one integer key: keys are unique, which leaves no tie to the sorting algorithm.
    """
    bits = (values + np.float32(0)).view(np.int32)  # + 0 turns -0 into 0
    bits ^= (bits >> 31) & np.int32(0x7FFFFFFF)
    np.invert(bits, out=bits)
    keys = bits.astype(np.int64)
    keys <<= 32
    keys |= np.arange(values.shape[1])
    if count < keys.shape[1]:
        keys.partition(count - 1, axis=1)
        keys = keys[:, :count]
    keys.sort(axis=1)
    keys &= 0xFFFFFFFF
    return keys
