"""Penalties and rewards for tokens that the output or the source holds already."""

from dataclasses import dataclass

import numpy as np

from drl.runtime.arrays import Float32
from drl.runtime.processors.protocol import BuiltInProcessor, DecodingState
from drl.runtime.processors.ragged import Places, places_of

_LARGEST = np.finfo(np.float32).max


@dataclass(frozen=True)
class RepetitionPenalty(BuiltInProcessor):
    """Divides positive and multiplies negative scores of the decoder's tokens by `penalty`.

    All of them count: start token, prefix and generated tokens. Source: Keskar et al. 2019, "CTRL:
    A Conditional Transformer Language Model for Controllable Generation", section 4.1.
    """

    penalty: float

    def __call__(self, state: DecodingState, scores: Float32) -> Float32:
        """See `LogitsProcessor`."""
        places = places_of(state.tokens, state.tokens >= 0, scores.shape[1])
        return _penalise(scores, places, self.penalty)


@dataclass(frozen=True)
class EncoderRepetitionPenalty(BuiltInProcessor):
    """Multiplies positive and divides negative scores of the source's tokens by `penalty`.

    Above 1 it favours words of the source, against hallucination.
    """

    penalty: float

    def __call__(self, state: DecodingState, scores: Float32) -> Float32:
        """See `LogitsProcessor`."""
        places = places_of(state.sources, state.sources >= 0, scores.shape[1])
        return _penalise(scores, places, 1 / self.penalty)


def _penalise(scores: Float32, places: Places, penalty: float) -> Float32:
    old = scores[places]
    with np.errstate(over="ignore"):
        factor = np.float32(penalty)
        new = np.where(old < 0, old * factor, old / factor)
    # A score that overflows would make NaN of its row's probabilities; one that was infinite
    # before, such as that of a barred token, stays so.
    new = np.where(np.isfinite(old), np.clip(new, -_LARGEST, _LARGEST), new)
    # A token that comes twice is penalised once: both of its new scores come from the old one.
    scores[places] = new
    return scores
