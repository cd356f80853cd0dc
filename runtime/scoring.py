"""Log-probabilities of given targets, teacher-forced in one pass of the decoder."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from drl.runtime.arrays import Int64
from drl.runtime.backends.protocol import Backend, CrossAttention, StepInputs
from drl.runtime.cache import KVCache
from drl.runtime.encoding import encode, route
from drl.runtime.manifest import Manifest
from drl.runtime.request import Request

# Most logits that one pass may make; more targets take their turns.
_MOST_LOGITS = 64 << 20


@dataclass(frozen=True)
class Score:
    """What the model thinks of a target.

    Attributes:
        tokens: The scored token ids, the end token included if it was scored.
        logprobs: The log-probability (natural logarithm) of each, given those before it.
        path: Name of the path taken.
    """

    tokens: list[int]
    logprobs: list[float]
    path: str

    @property
    def total(self) -> float:
        """Log-probability of the target: the sum over its tokens."""
        return math.fsum(self.logprobs)

    @property
    def perplexity(self) -> float:
        """`exp(-total / tokens)`."""
        return math.exp(-self.total / len(self.tokens))


class Scorer:
    """Scores the prefixes of requests. Not thread-safe."""

    def __init__(self, backend: Backend, manifest: Manifest, max_batch_size: int) -> None:
        self._backend = backend
        self._manifest = manifest
        self._max_batch_size = max_batch_size

    def batches(self, requests: Sequence[Request]) -> Iterator[list[int]]:
        """Positions of requests that are scored together: targets of about the same length."""
        order = sorted(range(len(requests)), key=lambda index: len(requests[index].prefix))
        batch: list[int] = []
        for index in order:
            logits = (len(batch) + 1) * len(requests[index].prefix)
            full = logits * self._manifest.limits.vocab_size > _MOST_LOGITS
            if batch and (full or len(batch) == self._max_batch_size):
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch

    def score(self, requests: Sequence[Request]) -> list[Score]:
        """Score a batch."""
        encoding = encode(self._backend, self._manifest, requests)
        members: dict[int, list[int]] = {}
        for row, request in enumerate(requests):
            path = route(self._manifest, request, encoding, row)
            members.setdefault(path, []).append(row)
        scores: dict[int, Score] = {}
        for path, rows in members.items():
            cross = self._backend.bridge(encoding.take(rows), path)
            targets = [requests[row].prefix for row in rows]
            name = self._manifest.paths[path].name
            logprobs = self._read(path, cross, targets)
            for row, target, values in zip(rows, targets, logprobs, strict=True):
                scores[row] = Score(list(target), values, name)
        return [scores[row] for row in range(len(requests))]

    def _read(
        self, path: int, cross: CrossAttention, targets: list[tuple[int, ...]]
    ) -> list[list[float]]:
        """Log-probabilities of each target on one path."""
        longest = max(len(target) for target in targets)
        layers = self._manifest.paths[path].layers
        cache = KVCache(self._manifest.cache, layers, len(targets), longest, rules=self._backend)
        cache.append(cross)
        cache.reserve(longest)
        past_keys, past_values = cache.past()
        bias, cross_keys, cross_values = cache.cross()
        inputs = StepInputs(
            path=path,
            tokens=self._inputs(targets, longest),
            lengths=cache.lengths,
            new_lengths=np.array([len(target) for target in targets], np.int32),
            cross_bias=bias,
            cross_keys=cross_keys,
            cross_values=cross_values,
            past_keys=past_keys,
            past_values=past_values,
        )
        try:
            outputs = self._backend.step(inputs)
        finally:  # the backend holds on to a step's memory until the next one
            self._backend.release(path, 1)
        logprobs = []
        for row, target in enumerate(targets):
            places = np.arange(len(target))
            chosen = outputs.logits[row, places, list(target)]
            logprobs.append((chosen - outputs.normalisers[row, places]).tolist())
        return logprobs

    def _inputs(self, targets: list[tuple[int, ...]], longest: int) -> Int64:
        """What the decoder reads: the start token, then each target but for its last token."""
        tokens = np.full((len(targets), longest), self._manifest.tokens.pad, np.int64)
        tokens[:, 0] = self._manifest.tokens.start
        for row, target in enumerate(targets):
            tokens[row, 1 : len(target)] = target[:-1]
        return tokens
