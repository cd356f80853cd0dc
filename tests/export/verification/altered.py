"""Backends that do one thing differently from the one that they pass calls on to."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from drl.runtime.backends import Backend, CrossAttention, Encoding, StepInputs, StepOutputs

Change = Callable[[Any], Any]


class Altered:
    """A backend with its encodings, memories or logits changed; it gives no candidates.

    Args:
        backend: Computes.
        encoding: Changes what `encode` returns.
        memory: Changes what `bridge` returns.
        logits: Changes the logits of a step, fp32 `[B, T, V]`.
    """

    ranks = False

    def __init__(
        self,
        backend: Backend,
        encoding: Change = lambda found: found,
        memory: Change = lambda found: found,
        logits: Callable[[np.ndarray], np.ndarray] = lambda found: found,
    ) -> None:
        self._backend = backend
        self._encoding = encoding
        self._memory = memory
        self._logits = logits

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def encode(self, *arguments: Any, **named: Any) -> Encoding:
        found: Encoding = self._encoding(self._backend.encode(*arguments, **named))
        return found

    def bridge(self, encoding: Encoding, path: int) -> CrossAttention:
        found: CrossAttention = self._memory(self._backend.bridge(encoding, path))
        return found

    def step(self, inputs: StepInputs) -> StepOutputs:
        found = self._backend.step(inputs)
        logits = np.ascontiguousarray(self._logits(found.logits.copy()), np.float32)
        sums = np.log(np.exp(logits.astype(np.float64)).sum(axis=-1))
        return replace(found, logits=logits, normalisers=sums.astype(np.float32))
