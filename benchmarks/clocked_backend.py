"""A backend that looks at the clock around every call, and can vary what the decoder reads."""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from drl.runtime.arrays import Float32, Int32, Int64
from drl.runtime.backends import (
    ArrayLibrary,
    Backend,
    CrossAttention,
    Encoding,
    StepInputs,
    StepOutputs,
)

_BANK = 1 << 16


class ClockedBackend:
    """Wraps a backend and keeps times, in seconds, until `clear`.

    Args:
        backend: What is measured.
        vocab_size: Tokens are drawn below this.
        varied: Whether every row of every single-token step reads a random token in the place of
            the one that was chosen. A model that repeats a token would use the same experts, whose
            weights stay in the processor's cache. The chosen tokens still decide what is returned
            and how beams move, so the host does all of its work.
        seed: Of the tokens.

    Attributes:
        encodes, bridges: Duration of every call.
        steps: When every decoder step began and ended.
        forcing: Spent on drawing tokens; part of no step's own time here.
        experts_in_use: Different experts per sparse layer of every step that reported them.
    """

    def __init__(
        self, backend: Backend, vocab_size: int = 0, varied: bool = False, seed: int = 0
    ) -> None:
        self._backend = backend
        self.arrays: ArrayLibrary = backend.arrays
        self.cache_dtype: np.dtype[Any] = backend.cache_dtype
        self.capacity: int | None = backend.capacity
        self.shrinks: bool = backend.shrinks
        self.reads_behind: bool = backend.reads_behind
        self.kept_multiple: int = backend.kept_multiple
        self.limits = backend.limits
        self._varied = varied
        # Drawn beforehand: a step then copies a few of them, which takes a microsecond.
        self._bank = np.random.default_rng(seed).integers(0, max(1, vocab_size), _BANK)
        self._next = 0
        self.clear()

    def clear(self) -> None:
        """Forget all times."""
        self.encodes: list[float] = []
        self.bridges: list[float] = []
        self.steps: list[tuple[float, float]] = []
        self.forcing = 0.0
        self.experts_in_use: list[Mapping[int, int]] = []

    @property
    def step_seconds(self) -> float:
        """Spent in decoder steps."""
        return sum(ended - began for began, ended in self.steps)

    @property
    def name(self) -> str:
        """See `Backend.name`."""
        return self._backend.name

    @property
    def ranks(self) -> bool:
        """See `Backend.ranks`."""
        return self._backend.ranks

    def bucket(self, slots: int, width: int) -> int:
        """See `MemoryRules.bucket`."""
        return self._backend.bucket(slots, width)

    def encode(
        self, tokens: Int64, lengths: Int32, budget: Float32, with_experts: bool = False
    ) -> Encoding:
        """See `Backend.encode`."""
        began = time.perf_counter()
        encoding = self._backend.encode(tokens, lengths, budget, with_experts)
        self.encodes.append(time.perf_counter() - began)
        return encoding

    def bridge(self, encoding: Encoding, path: int) -> CrossAttention:
        """See `Backend.bridge`."""
        began = time.perf_counter()
        cross = self._backend.bridge(encoding, path)
        self.bridges.append(time.perf_counter() - began)
        return cross

    def step(self, inputs: StepInputs) -> StepOutputs:
        """See `Backend.step`."""
        if self._varied and inputs.tokens.shape[1] == 1:
            self._vary(inputs.tokens)
        began = time.perf_counter()
        outputs = self._backend.step(inputs)
        self.steps.append((began, time.perf_counter()))
        if outputs.experts:
            self.experts_in_use.append(
                {layer: len(np.unique(ids)) for layer, ids in outputs.experts.items()}
            )
        return outputs

    def release(self, path: int, width: int) -> None:
        """See `Backend.release`."""
        self._backend.release(path, width)

    def close(self) -> None:
        """See `Backend.close`."""
        self._backend.close()

    def _vary(self, tokens: Int64) -> None:
        """Overwrite `[B, 1]` tokens with the next ones of the bank."""
        began = time.perf_counter()
        rows = len(tokens)
        if self._next + rows > _BANK:
            self._next = 0
        tokens[:, 0] = self._bank[self._next : self._next + rows]
        self._next += rows
        self.forcing += time.perf_counter() - began
