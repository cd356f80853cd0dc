"""When a row may end: not before a minimum, and the sooner the longer it has grown."""

from dataclasses import dataclass

import numpy as np

from drl.runtime.arrays import Float32, Int64
from drl.runtime.processors.protocol import (
    BarringProcessor,
    DecodingState,
    Lengths,
    OccasionalProcessor,
)
from drl.runtime.processors.ragged import within

_LARGEST = np.finfo(np.float32).max


@dataclass(frozen=True)
class MinLength(BarringProcessor):
    """Bars the end tokens until a row has `length` tokens, start token and prefix among them."""

    length: int
    ends: tuple[int, ...]

    @property
    def barred(self) -> tuple[int, ...]:
        """See `BarringProcessor`."""
        return self.ends

    def span(self, prompt: Lengths) -> tuple[Lengths, Lengths]:
        """While the row is too short."""
        return 0 * prompt, 0 * prompt + self.length


@dataclass(frozen=True)
class MinNewTokens(BarringProcessor):
    """Bars the end tokens until `count` tokens have been generated."""

    count: int
    ends: tuple[int, ...]

    @property
    def barred(self) -> tuple[int, ...]:
        """See `BarringProcessor`."""
        return self.ends

    def span(self, prompt: Lengths) -> tuple[Lengths, Lengths]:
        """While too little has been generated."""
        return 0 * prompt, prompt + self.count


@dataclass(frozen=True)
class ExponentialDecay(OccasionalProcessor):
    """Makes the end tokens likelier by a factor that grows exponentially with the length.

    From `start` generated tokens on, `|score| (factor ** n - 1)` is added to an end token's score,
    where n counts the tokens since then: that works for negative scores as well. Infinite scores
    stay as they are. The formula is that of transformers' `exponential_decay_length_penalty`.
    """

    start: int
    factor: float
    ends: tuple[int, ...]

    def acts(self, state: DecodingState) -> bool:
        """See `OccasionalProcessor`."""
        return bool((self._beyond(state) > 0).any())

    def __call__(self, state: DecodingState, scores: Float32) -> Float32:
        """See `LogitsProcessor`."""
        beyond = self._beyond(state)
        (rows,) = np.nonzero(beyond > 0)
        if not rows.size:
            return scores
        places = np.ix_(rows, within(self.ends, scores.shape[1]))
        old = scores[places]
        with np.errstate(over="ignore", invalid="ignore"):
            growth = np.power(np.float64(self.factor), beyond[rows]) - 1
            # An infinite score would make NaN of its row's probabilities.
            factors = np.clip(growth, -_LARGEST, _LARGEST).astype(np.float32)
            new = np.clip(old + np.abs(old) * factors[:, None], -_LARGEST, _LARGEST)
        scores[places] = np.where(np.isfinite(old), new, old)
        return scores

    def _beyond(self, state: DecodingState) -> Int64:
        """`[R]` tokens generated since the start; below 0 before it."""
        return state.lengths - state.prompt_lengths - self.start
