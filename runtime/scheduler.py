"""Continuous batching: sequences leave the moment they end, and waiting ones take their places."""

import time
from collections import deque

import numpy as np

from drl.runtime.backends.protocol import Backend, Encoding
from drl.runtime.errors import DrlError
from drl.runtime.lane import Lane
from drl.runtime.manifest import Manifest
from drl.runtime.paths import choose_path
from drl.runtime.sequence import Sequence

# Encoding a few short sources together takes hardly longer than one, so under load places are
# filled several at a time; a request that waits alone gets the first free one.
_ADMISSIONS_PER_BATCH = 4


class Scheduler:
    """Runs sequences to their ends, up to `max_batch_size` of them at a time.

    Sequences are encoded together as they are admitted, then decoded with those that take the same
    path: one lane per path. Not thread-safe.
    """

    def __init__(self, backend: Backend, manifest: Manifest, max_batch_size: int) -> None:
        self._backend = backend
        self._manifest = manifest
        self._max_batch_size = max_batch_size
        self._waiting: deque[Sequence] = deque()
        self._admitting: list[Sequence] = []  # taken from the queue, not yet all in a lane
        self._lanes = [
            Lane(backend, manifest, path, max_batch_size) for path in range(len(manifest.paths))
        ]

    @property
    def lanes(self) -> list[Lane]:
        """One lane per path."""
        return self._lanes

    @property
    def waiting(self) -> int:
        """How many sequences have not been encoded yet."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """How many sequences are being decoded."""
        return sum(len(lane.sequences) for lane in self._lanes)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        self._waiting.append(sequence)

    def step(self) -> list[Sequence]:
        """Admit what fits, then advance every sequence by a token; return those that ended.

        If anything goes wrong in the middle, Ctrl-C included, every sequence under way is dropped
        and marked as failed: which rows had been written is unknown.
        """
        try:
            self._admit()
            return [ended for lane in self._lanes if lane.sequences for ended in lane.step()]
        except BaseException as error:
            reason = "interrupted" if isinstance(error, KeyboardInterrupt) else repr(error)
            self.abort(DrlError(f"generation was cut short: {reason}; send the request again"))
            raise

    def discard(self, sequence: Sequence) -> None:
        """Forget a sequence, wherever it is."""
        if sequence in self._waiting:
            self._waiting.remove(sequence)
        for lane in self._lanes:
            if sequence in lane.sequences:
                lane.discard(sequence)

    def abort(self, failure: DrlError) -> None:
        """Drop every sequence, marking it with the reason."""
        dropped = [*self._admitting, *self._waiting]
        self._admitting = []
        self._waiting.clear()
        for lane in self._lanes:
            dropped += lane.sequences
            lane.clear()
        for sequence in dropped:
            if not sequence.done:
                sequence.failure = failure

    def _admit(self) -> None:
        running = self.running
        places = self._max_batch_size - running
        enough = min(len(self._waiting), max(1, self._max_batch_size // _ADMISSIONS_PER_BATCH))
        if not self._waiting or (running and places < enough):
            return
        batch = [self._waiting.popleft() for _ in range(min(places, len(self._waiting)))]
        self._admitting = batch
        started = time.perf_counter()
        encoding = self._encode(batch)
        members = self._route(batch, encoding)
        for path, rows in members.items():
            cross = self._backend.bridge(encoding.take(rows), path)
            self._lanes[path].admit([batch[row] for row in rows], cross)
        seconds = time.perf_counter() - started
        for row, sequence in enumerate(batch):
            wanted = encoding.experts if sequence.request.with_experts else {}
            length = len(sequence.request.tokens)
            experts = {layer: ids[row, :length].copy() for layer, ids in wanted.items()}
            sequence.record_encoding(experts, seconds)
        self._admitting = []

    def _encode(self, batch: list[Sequence]) -> Encoding:
        """Encode sources together, right-padded to the longest."""
        prompts = [sequence.request.tokens for sequence in batch]
        lengths = np.array([len(prompt) for prompt in prompts], np.int32)
        tokens = np.full((len(batch), lengths.max()), self._manifest.tokens.pad, np.int64)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = prompt
        budgets = np.array([sequence.request.budget for sequence in batch], np.float32)
        with_experts = any(sequence.request.with_experts for sequence in batch)
        return self._backend.encode(tokens, lengths, budgets, with_experts)

    def _route(self, batch: list[Sequence], encoding: Encoding) -> dict[int, list[int]]:
        """Settle the path of every sequence; return the rows that take each path."""
        costs = [path.cost for path in self._manifest.paths]
        members: dict[int, list[int]] = {}
        for row, sequence in enumerate(batch):
            request = sequence.request
            logits = None if encoding.path_logits is None else encoding.path_logits[row].copy()
            path = request.path
            if path is None:
                path = choose_path(costs, self._manifest.path_router, logits, request.budget)
            sequence.record_path(path, logits)
            members.setdefault(path, []).append(row)
        return members
