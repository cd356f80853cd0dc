"""The rows in progress on one path, and their common decoder step."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from drl.runtime.arrays import Float32, Int32, Int64
from drl.runtime.backends.protocol import Backend, CrossAttention, StepInputs, StepOutputs
from drl.runtime.cache import KVCache
from drl.runtime.decoding import (
    BeamSelector,
    Selector,
    SequenceGroup,
    Slot,
    TokenHistory,
    TokenSelector,
)
from drl.runtime.decoding.reports import likeliest
from drl.runtime.manifest import Manifest
from drl.runtime.results import TopLogprobs

# What an idle lane may keep for the next request; more is given back.
_KEPT_BYTES = 64 << 20
# Most logits that one step over prefixes may make; more rows take their turns.
_PREFILL_LOGITS = 64 << 20


class Lane:
    """All sequences of a width that are being decoded on one path.

    Rows may be at different places of their sequences, because each has its own length in the
    cache; so a new row's first step is simply its part of the lane's next one.

    Args:
        backend: Runs the decoder.
        manifest: The bundle's.
        path: Index of the path.
        width: Rows per slot: 1, or the number of beams.
        max_slots: Most slots at a time.

    Attributes:
        slots: What is being decoded.
        groups: The requests that have a slot, each once.
    """

    def __init__(
        self, backend: Backend, manifest: Manifest, path: int, width: int, max_slots: int
    ) -> None:
        self.slots: list[Slot] = []
        self._backend = backend
        self._path = path
        self._width = width
        self._start = manifest.tokens.start
        self._vocab_size = manifest.limits.vocab_size
        limit = manifest.limits.max_target_length
        layers = manifest.paths[path].layers
        self._cache = KVCache(manifest.cache, layers, max_slots, limit, width, backend)
        self._history = TokenHistory()
        self._selector: Selector = TokenSelector() if width == 1 else BeamSelector(width)
        self._tokens: Int64 = np.zeros((max_slots * width, 1), np.int64)
        self._new_lengths = np.ones(max_slots * width, np.int32)
        self._inputs: dict[int, StepInputs] = {}  # by number of candidates, of the same memory
        self.groups: list[SequenceGroup] = []
        self._longest = 0  # most tokens that a row has in the cache

    @property
    def cache(self) -> KVCache:
        """The lane's memory."""
        return self._cache

    def admit(self, slots: list[Slot], cross: CrossAttention) -> None:
        """Add slots, whose sources are slot for slot those of `cross`."""
        first = len(self.slots)
        self._cache.append(cross)
        prompts = [(self._start, *slot.group.request.prefix) for slot in slots]
        rows = [prompt for prompt in prompts for _ in range(self._width)]
        self._history.append(rows)
        self._tokens[first * self._width : self._cache.rows, 0] = [row[-1] for row in rows]
        self.slots += slots
        self._read_prefixes(first)
        self._slots_changed()

    def step(self) -> None:
        """Choose a token per row; slots that are done leave."""
        if self._cache.reserve(self._longest + 1):
            self._inputs.clear()
        outputs = self._backend.step(self._step_inputs(self._candidates()))
        for group in self.groups:
            group.record_step()
        choice = self._selector.choose(outputs, self._history)
        if choice is None:  # the same step again: it writes the same to the cache
            outputs = self._backend.step(self._step_inputs(0))
            choice = self._selector.choose(outputs, self._history)
        if choice is None:
            raise RuntimeError("whole rows did not suffice for a choice: this is a mistake in drl")
        rows = self._cache.rows
        lengths = self._cache.lengths[:rows]
        lengths += 1
        self._longest += 1
        if choice.copies:
            self._cache.copy_rows(choice.copies)
            for source, target in choice.copies:
                self._history.copy(source, target)
        self._tokens[:rows, 0] = choice.tokens
        self._history.push(choice.tokens)
        if choice.ended:
            self._remove(choice.ended)

    def discard(self, group: SequenceGroup) -> None:
        """Drop a request that has ended early, and give memory back at once."""
        gone = [index for index, slot in enumerate(self.slots) if slot.group is group]
        if gone:
            self._remove(gone)
            if not self.slots:
                self._give_back()

    def clear(self) -> None:
        """Drop every sequence."""
        self.slots = []
        self._give_back()
        self._slots_changed()

    def _give_back(self) -> None:
        """Free the cache's memory, which the backend's last step still refers to."""
        self._cache.clear()
        self._history.clear()
        self._selector.release()
        self._backend.release(self._path, self._width)

    def _remove(self, ended: list[int]) -> None:
        width = self._width
        for source, target in self._cache.remove(ended):
            for offset in range(width):
                self._tokens[target * width + offset] = self._tokens[source * width + offset]
                self._history.copy(source * width + offset, target * width + offset)
            self.slots[target] = self.slots[source]
        del self.slots[self._cache.slots :]
        self._history.truncate(self._cache.rows)
        if not self.slots and (width > 1 or self._cache.nbytes > _KEPT_BYTES):
            self._give_back()
        self._slots_changed()

    def _slots_changed(self) -> None:
        self._inputs.clear()
        self.groups = list(dict.fromkeys(slot.group for slot in self.slots))
        self._longest = int(self._cache.lengths[: self._cache.rows].max(initial=0))
        self._selector.set_slots(self.slots)

    def _candidates(self) -> int:
        """How many candidates to ask for in the next step; 0 for whole rows."""
        if not self._backend.ranks:
            return 0
        candidates = self._selector.candidates(self._history)
        return candidates if candidates < self._vocab_size else 0

    def _step_inputs(self, candidates: int) -> StepInputs:
        """The inputs of the next step, the same object as long as nothing moves."""
        if candidates not in self._inputs:
            some = next(iter(self._inputs.values()), None) or self._gather_inputs()
            self._inputs[candidates] = dataclasses.replace(some, candidates=candidates)
        return self._inputs[candidates]

    def _gather_inputs(self) -> StepInputs:
        rows = self._cache.rows
        past_keys, past_values = self._cache.past()
        bias, cross_keys, cross_values = self._cache.cross()
        return StepInputs(
            path=self._path,
            tokens=self._tokens[:rows],
            lengths=self._cache.lengths[:rows],
            new_lengths=self._new_lengths[:rows],
            cross_bias=bias,
            cross_keys=cross_keys,
            cross_values=cross_values,
            past_keys=past_keys,
            past_values=past_values,
            with_experts=any(group.request.with_experts for group in self.groups),
        )

    def _read_prefixes(self, first: int) -> None:
        """Feed the decoder the prefixes of the slots from `first` on, but for their last tokens.

        The last token of a prefix, or the start token where there is none, is the first one of the
        ordinary steps. What the decoder says of each token of a prefix is its log-probability;
        where nobody wants that, logits need not be made.
        """
        lengths = [len(slot.group.request.prefix) for slot in self.slots[first:]]
        longest = max(lengths)
        if not longest:
            return
        self._cache.reserve(longest)
        per_step = max(1, _PREFILL_LOGITS // (longest * self._width * self._vocab_size))
        reported = any(slot.group.request.config.logprobs for slot in self.slots[first:])
        candidates = 1 if self._backend.ranks and not reported else 0
        for begin in range(first, len(self.slots), per_step):
            end = min(begin + per_step, len(self.slots))
            self._read_some(begin, end, longest, candidates)

    def _read_some(self, begin: int, end: int, longest: int, candidates: int) -> None:
        prefixes = [slot.group.request.prefix for slot in self.slots[begin:end]]
        rows = slice(begin * self._width, end * self._width)
        lengths = np.repeat(np.array([len(item) for item in prefixes], np.int32), self._width)
        tokens = np.zeros((len(lengths), longest), np.int64)
        given = self._history.tokens[rows, :longest]
        tokens[:, : given.shape[1]] = np.where(given < 0, 0, given)
        past_keys, past_values = self._cache.past(slice(begin, end))
        bias, cross_keys, cross_values = self._cache.cross(slice(begin, end))
        outputs = self._backend.step(
            StepInputs(
                path=self._path,
                tokens=tokens,
                lengths=self._cache.lengths[rows],
                new_lengths=lengths,
                cross_bias=bias,
                cross_keys=cross_keys,
                cross_values=cross_values,
                past_keys=past_keys,
                past_values=past_values,
                with_experts=any(s.group.request.with_experts for s in self.slots[begin:end]),
                candidates=candidates,
                exact=True,  # the next rows may be waiting for their own prefixes
            )
        )
        self._cache.lengths[rows] = lengths
        for place, (group, sequence) in enumerate(self.slots[begin:end]):
            if sequence is group.sequences[0]:  # further samples have the same prefix
                _record_prefix(group, outputs, place * self._width)


def _record_prefix(group: SequenceGroup, outputs: StepOutputs, row: int) -> None:
    """Tell a request what the decoder said of its prefix, in one row of the outputs."""
    request = group.request
    count = len(request.prefix)
    logprobs: list[float] | None = None
    tops: list[TopLogprobs] | None = None
    if request.config.logprobs and count:
        logits: Float32 = outputs.logits[row, :count]
        normalisers = outputs.normalisers[row, :count]
        logprobs = (logits[np.arange(count), list(request.prefix)] - normalisers).tolist()
        if wanted := request.config.top_logprobs:
            pairs = zip(logits, normalisers.tolist(), strict=True)
            tops = [likeliest(each, wanted, normaliser) for each, normaliser in pairs]
    experts: Mapping[int, Int32] = {}
    if request.with_experts:
        experts = {layer: ids[row, :count].copy() for layer, ids in outputs.experts.items()}
    group.record_prefix(logprobs, tops, experts)
