"""Log-probabilities under the model, as results report them."""

from drl.runtime.arrays import Float32
from drl.runtime.processors import largest
from drl.runtime.results import TopLogprobs


def likeliest(logits: Float32, count: int, normaliser: float) -> TopLogprobs:
    """The `count` likeliest tokens of `[V]` logits, best first, ties by token id."""
    tokens, values = largest(logits[None], count)
    pairs = zip(tokens[0].tolist(), values[0].tolist(), strict=True)
    return [(token, value - normaliser) for token, value in pairs]
