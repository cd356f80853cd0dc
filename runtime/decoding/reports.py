"""Log-probabilities under the model, as results report them."""

import numpy as np

from drl.runtime.arrays import Float32, Int64
from drl.runtime.processors import largest, log_sum_exp
from drl.runtime.results import TopLogprobs


def likeliest(logits: Float32, count: int, normaliser: float) -> TopLogprobs:
    """The `count` likeliest tokens of `[V]` logits, best first, ties by token id."""
    tokens, values = largest(logits[None], count)
    pairs = zip(tokens[0].tolist(), values[0].tolist(), strict=True)
    return [(token, value - normaliser) for token, value in pairs]


def target_logprobs(logits: Float32, targets: Int64, scratch: Float32) -> Float32:
    """Log-probabilities `[n]` of given tokens `[n]` under `[n, V]` logits."""
    chosen: Float32 = logits[np.arange(len(targets)), targets]
    return chosen - log_sum_exp(logits, scratch)
