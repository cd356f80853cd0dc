"""The rows in progress on one path, and their common decoder step."""

import numpy as np

from drl.runtime.arrays import Int64
from drl.runtime.backends.protocol import Backend, CrossAttention, StepInputs
from drl.runtime.cache import KVCache
from drl.runtime.manifest import Manifest
from drl.runtime.processors import TokenSelector
from drl.runtime.sequence import Sequence

# What an idle lane may keep for the next request; more is given back.
_KEPT_BYTES = 64 << 20


class Lane:
    """All sequences that are being decoded on one path.

    Rows may be at different places of their sequences, because each has its own length in the
    cache; so a new row's first step is simply its part of the lane's next one.
    """

    def __init__(self, backend: Backend, manifest: Manifest, path: int, max_rows: int) -> None:
        self.sequences: list[Sequence] = []
        self._backend = backend
        self._path = path
        self._start = manifest.tokens.start
        self._cache = KVCache(
            manifest.cache,
            manifest.paths[path].layers,
            max_rows,
            manifest.limits.max_target_length,
        )
        self._selector = TokenSelector(manifest.tokens.eos)
        self._tokens: Int64 = np.zeros((max_rows, 1), np.int64)
        self._new_lengths = np.ones(max_rows, np.int32)
        self._inputs: StepInputs | None = None
        self._longest = 0  # most tokens that a row has in the cache

    @property
    def cache(self) -> KVCache:
        """The lane's memory."""
        return self._cache

    def admit(self, sequences: list[Sequence], cross: CrossAttention) -> None:
        """Add sequences, whose sources are row for row those of `cross`."""
        first = len(self.sequences)
        self._cache.append(cross)
        self._tokens[first : first + len(sequences)] = self._start
        self.sequences += sequences
        self._rows_changed()

    def step(self) -> list[Sequence]:
        """Generate one token per row; return the sequences that ended and were removed."""
        if self._cache.reserve(self._longest + 1):
            self._inputs = None
        inputs = self._inputs or self._gather_inputs()
        outputs = self._backend.step(inputs)
        rows = len(self.sequences)
        selection = self._selector.select(
            outputs.logits[:, 0], [sequence.tokens for sequence in self.sequences]
        )
        self._tokens[:rows, 0] = selection.tokens
        self._cache.lengths[:rows] += 1
        self._longest += 1
        logprobs = [None] * rows if selection.logprobs is None else selection.logprobs.tolist()
        ended = []
        for row, token in enumerate(selection.tokens.tolist()):
            sequence = self.sequences[row]
            if sequence.request.with_experts:
                sequence.record_experts(outputs.experts, row)
            if sequence.accept(token, logprobs[row], selection.top_logprobs.get(row)):
                ended.append(row)
        return self._remove(ended) if ended else []

    def discard(self, sequence: Sequence) -> None:
        """Drop a sequence that nobody waits for any more."""
        self._remove([self.sequences.index(sequence)])

    def clear(self) -> None:
        """Drop every sequence."""
        self.sequences = []
        self._give_back()
        self._rows_changed()

    def _give_back(self) -> None:
        """Free the cache's memory, which the backend's last step still refers to."""
        self._cache.clear()
        self._backend.release(self._path)

    def _remove(self, rows: list[int]) -> list[Sequence]:
        ended = [self.sequences[row] for row in rows]
        for source, target in self._cache.remove(rows):
            self._tokens[target] = self._tokens[source]
            self.sequences[target] = self.sequences[source]
        del self.sequences[self._cache.rows :]
        if not self.sequences and self._cache.nbytes > _KEPT_BYTES:
            self._give_back()
        self._rows_changed()
        return ended

    def _rows_changed(self) -> None:
        self._inputs = None
        self._longest = max((sequence.steps for sequence in self.sequences), default=0)
        self._selector.set_rows(
            [sequence.request.config for sequence in self.sequences],
            [sequence.generator for sequence in self.sequences],
        )

    def _gather_inputs(self) -> StepInputs:
        rows = len(self.sequences)
        past_keys, past_values = self._cache.past()
        bias, cross_keys, cross_values = self._cache.cross()
        self._inputs = StepInputs(
            path=self._path,
            tokens=self._tokens[:rows],
            lengths=self._cache.lengths[:rows],
            new_lengths=self._new_lengths[:rows],
            cross_bias=bias,
            cross_keys=cross_keys,
            cross_values=cross_values,
            past_keys=past_keys,
            past_values=past_values,
            with_experts=any(sequence.request.with_experts for sequence in self.sequences),
        )
        return self._inputs
