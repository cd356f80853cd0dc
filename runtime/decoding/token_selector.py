"""The next token of sequences that have a row each: the likeliest, or a draw."""

from collections.abc import Sequence as Items
from typing import NamedTuple

import numpy as np

from drl.runtime.arrays import Float64, Int64
from drl.runtime.backends.protocol import StepOutputs
from drl.runtime.decoding.history import TokenHistory
from drl.runtime.decoding.processor_groups import Failures, ProcessorGroups, bar, unchoosable
from drl.runtime.decoding.scratch import Scratch
from drl.runtime.decoding.slot import Choice, Slot
from drl.runtime.decoding.step_scores import RankedRows, StepScores, WholeRows
from drl.runtime.errors import DrlError
from drl.runtime.processors import Sampler, choose_places


class _Chosen(NamedTuple):
    """A token per row, log-probabilities where reported, and the rows that have nothing to take."""

    tokens: list[int]
    logprobs: list[float] | None
    failures: Failures


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
        self._every = np.arange(len(slots))
        self._sampling = np.array(sampling, np.int64)
        self._sampler = Sampler([configs[row] for row in sampling]) if sampling else None
        self._processors = ProcessorGroups([slot.group.request for slot in slots])
        self._reports = any(config.logprobs for config in configs)
        self._depth = self._candidates_needed(max((c.top_logprobs for c in configs), default=0))

    def release(self) -> None:
        """See `Selector.release`."""
        self._scratch.clear()
        self._scores.clear()

    def candidates(self, history: TokenHistory) -> int:
        """See `Selector.candidates`."""
        return 0 if self._processors.acts(history) else self._depth

    def choose(self, outputs: StepOutputs, history: TokenHistory) -> Choice | None:
        """See `Selector.choose`."""
        step: StepScores
        if outputs.top is None:
            step = WholeRows(outputs)
            chosen = self._from_rows(step, history)
        else:
            step = RankedRows(outputs)
            found = self._from_candidates(step, history)
            if found is None:
                return None
            chosen = found
        return self._accept(chosen, step, outputs)

    def _candidates_needed(self, reported: int) -> int:
        """How many candidates suffice in an ordinary step, of which so many are reported."""
        needed = self._sampler.candidates_needed if self._sampler is not None else 1
        spare = self._processors.spare
        if needed is None or spare is None:
            return 0
        return max(needed + spare, reported)

    def _from_rows(self, step: WholeRows, history: TokenHistory) -> _Chosen:
        """Choose from whole rows."""
        scores = step.logits
        failures: Failures = {}
        if self._processors:
            if self._reports:  # of the model's own scores, so they must stay
                scores = self._scores.like(step.logits)
                np.copyto(scores, step.logits)
            failures = self._processors.apply(scores, history)
        tokens: Int64 = scores.argmax(axis=1)
        best = scores[self._every, tokens]
        if not (best > -np.inf).all():
            for row in np.nonzero(~(best > -np.inf))[0].tolist():
                failures.setdefault(row, self._failure(row, float(best[row])))
        if self._sampler is not None:
            rows = self._sampling
            chosen = scores if len(rows) == len(scores) else scores[rows]
            if failures:  # what they hold is no distribution
                chosen = np.where(np.isin(rows, list(failures))[:, None], np.float32(0), chosen)
            tokens[rows] = self._sampler.sample(chosen, self._draws(), self._scratch.like(chosen))
        logprobs = None
        if self._reports:
            logprobs = (step.logits[self._every, tokens] - step.normalisers).tolist()
        return _Chosen(tokens.tolist(), logprobs, failures)

    def _from_candidates(self, step: RankedRows, history: TokenHistory) -> _Chosen | None:
        """Choose from the likeliest tokens; None if it takes more of them.

        After a step of the decoder nothing of the host's code and data is left in the processor's
        caches. So a greedy choice goes through a few plain numbers, and not through arrays.
        """
        ids: list[list[int]] = step.ids.tolist()
        logprobs: list[list[float]] = (step.values - step.normalisers[:, None]).tolist()
        columns = [0] * len(ids)
        barred = self._processors.barred(history) if self._processors else None
        if barred is not None:
            for row, tokens in enumerate(ids):
                while tokens[columns[row]] in barred[row]:
                    columns[row] += 1
        if self._sampler is not None:
            drawn = self._draw_columns(self._sampler, step, barred)
            if drawn is None:
                return None
            for row, column in zip(self._sampling.tolist(), drawn.tolist(), strict=True):
                columns[row] = column
        chosen = [values[column] for values, column in zip(logprobs, columns, strict=True)]
        failures: Failures = {}
        for row, logprob in enumerate(chosen):
            if not logprob > -np.inf:
                self._find_failure(row, float(step.values[row, columns[row]]), failures)
        tokens = [tokens[column] for tokens, column in zip(ids, columns, strict=True)]
        return _Chosen(tokens, chosen, failures)

    def _draw_columns(
        self, sampler: Sampler, step: RankedRows, barred: list[frozenset[int]] | None
    ) -> Int64 | None:
        """A candidate's place for each row that samples; None if it takes more candidates."""
        rows = self._sampling
        scores, floors = step.values[rows], step.values[rows, -1]
        if barred is None:
            order = None
        else:
            bar([barred[row] for row in rows.tolist()], step.ids[rows], scores)
            order = np.argsort(-scores, axis=1, kind="stable")
            scores = np.take_along_axis(scores, order, axis=1)
        weights = sampler.weigh(scores, floors)
        if weights is None:
            return None
        places = choose_places(weights, self._draws())
        return places if order is None else order[np.arange(len(order)), places]

    def _find_failure(self, row: int, best: float, failures: Failures) -> None:
        """Note a row whose chosen logit, `best`, has no log-probability."""
        if not best > -np.inf:
            failures[row] = self._failure(row, best)
        elif best < np.inf:  # NaN is not among the candidates, but the sum over all tokens has it
            failures[row] = self._failure(row, np.nan)

    def _failure(self, row: int, best: float) -> DrlError:
        return unchoosable(self._slots[row].group.request, best)

    def _draws(self) -> Float64:
        """A random number for each row that samples."""
        return np.array([generator.random() for generator in self._generators])

    def _accept(self, chosen: _Chosen, step: StepScores, outputs: StepOutputs) -> Choice:
        """Hand the tokens to their sequences."""
        tokens, logprobs, failures = chosen
        for row, failure in failures.items():
            self._slots[row].group.fail(failure)  # first, as all of its samples end with it
        ended = []
        for row, token in enumerate(tokens):
            group, sequence = self._slots[row]
            request = group.request
            if request.with_experts:
                experts = {layer: ids[row].copy() for layer, ids in outputs.experts.items()}
                sequence.record_experts(experts)
            top = None
            if request.config.top_logprobs:
                top = step.top(row, request.config.top_logprobs)
            logprob = logprobs[row] if self._reports and logprobs else None
            if sequence.accept(token, logprob, top) or group.failure is not None:
                ended.append(row)
        return Choice(np.array(tokens, np.int64), ended=ended)
