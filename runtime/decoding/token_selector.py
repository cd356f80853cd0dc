"""The next token of sequences that have a row each: the likeliest, or a draw."""

from collections.abc import Sequence as Items

import numpy as np

from drl.runtime.arrays import Float32, Int64
from drl.runtime.backends.protocol import StepOutputs
from drl.runtime.decoding.history import TokenHistory
from drl.runtime.decoding.processor_groups import Failures, ProcessorGroups, unchoosable
from drl.runtime.decoding.reports import likeliest
from drl.runtime.decoding.scratch import Scratch
from drl.runtime.decoding.slot import Choice, Slot
from drl.runtime.processors import Sampler


class TokenSelector:
    """Greedy decoding and sampling.

    What depends on the requests alone is worked out when the slots change, so that a greedy step
    is an argmax.
    """

    def __init__(self) -> None:
        self._scratch = Scratch()
        self._scores = Scratch()
        self.set_slots(())

    def set_slots(self, slots: Items[Slot]) -> None:
        """See `Selector.set_slots`."""
        self._slots = list(slots)
        configs = [slot.group.request.config for slot in slots]
        generators = [slot.sequence.generator for slot in slots]
        self._generators = [item for item in generators if item is not None]
        sampling = [row for row, item in enumerate(generators) if item is not None]
        self._sampling = np.array(sampling, np.int64)
        self._sampler = Sampler([configs[row] for row in sampling]) if sampling else None
        self._processors = ProcessorGroups([slot.group.request for slot in slots])
        self._reports = any(config.logprobs for config in configs)

    def release(self) -> None:
        """See `Selector.release`."""
        self._scratch.clear()
        self._scores.clear()

    def choose(self, outputs: StepOutputs, history: TokenHistory) -> Choice:
        """See `Selector.choose`."""
        logits: Float32 = outputs.logits[:, 0]
        scores = logits
        failures: Failures = {}
        if self._processors:
            if self._reports:  # of the model's own scores, so they must stay
                scores = self._scores.like(logits)
                np.copyto(scores, logits)
            failures = self._processors.apply(scores, history)
        tokens: Int64 = scores.argmax(axis=1)
        best = scores[np.arange(len(tokens)), tokens]
        if not (best > -np.inf).all():
            for row in np.nonzero(~(best > -np.inf))[0].tolist():
                request = self._slots[row].group.request
                failures.setdefault(row, unchoosable(request, float(best[row])))
        if self._sampler is not None:
            self._sample(self._sampler, scores, tokens, failures)
        return Choice(tokens, ended=self._accept(tokens, outputs, failures))

    def _sample(self, sampler: Sampler, scores: Float32, tokens: Int64, failures: Failures) -> None:
        """Replace the tokens of rows that sample by draws."""
        rows = self._sampling
        draws = np.array([generator.random() for generator in self._generators])
        chosen = scores if len(rows) == len(scores) else scores[rows]
        if failures:  # what they hold is no distribution
            chosen = np.where(np.isin(rows, list(failures))[:, None], np.float32(0), chosen)
        tokens[rows] = sampler.sample(chosen, draws, self._scratch.like(chosen))

    def _accept(
        self,
        tokens: Int64,
        outputs: StepOutputs,
        failures: Failures,
    ) -> list[int]:
        """Hand the tokens to their sequences; return the rows of those that ended."""
        logits, normalisers = outputs.logits[:, 0], outputs.normalisers[:, 0]
        logprobs: list[float] | list[None] = [None] * len(tokens)
        if self._reports:
            logprobs = (logits[np.arange(len(tokens)), tokens] - normalisers).tolist()
        for row, failure in failures.items():
            self._slots[row].group.fail(failure)  # first, as all of its samples end with it
        ended = []
        for row, token in enumerate(tokens.tolist()):
            group, sequence = self._slots[row]
            request = group.request
            if request.with_experts:
                experts = {layer: ids[row].copy() for layer, ids in outputs.experts.items()}
                sequence.record_experts(experts)
            top = None
            if request.config.top_logprobs:
                top = likeliest(logits[row], request.config.top_logprobs, float(normalisers[row]))
            if sequence.accept(token, logprobs[row], top) or group.failure is not None:
                ended.append(row)
        return ended
