"""The next tokens of beam searches, all searches of a batch together."""

from collections.abc import Callable
from collections.abc import Sequence as Items

import numpy as np

from drl.runtime.arrays import Float32, Int32, Int64
from drl.runtime.backends.protocol import StepOutputs
from drl.runtime.decoding.beam_candidates import (
    best_candidates,
    drawn_candidates,
    in_order,
    settled,
    weigh_candidates,
)
from drl.runtime.decoding.beam_phase import Member, Phase, beams_of
from drl.runtime.decoding.beam_search import Candidate, Node
from drl.runtime.decoding.history import TokenHistory
from drl.runtime.decoding.processor_groups import Failures, bar, unchoosable
from drl.runtime.decoding.scratch import Scratch
from drl.runtime.decoding.slot import Choice, Slot
from drl.runtime.decoding.step_scores import StepScores, WholeRows, step_scores
from drl.runtime.processors import drawable, largest, log_sum_exp, to_probabilities
from drl.runtime.request import Request
from drl.runtime.results import TopLogprobs


class BeamSelector:
    """Beam search, with samples or without, over slots of `width` rows each."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._scores = Scratch()
        self.set_slots(())

    def set_slots(self, slots: Items[Slot]) -> None:
        """See `Selector.set_slots`."""
        self._slots = list(slots)
        count = max((len(beams_of(slot).searches) for slot in slots), default=0)
        self._phases = [Phase.build(number, slots, self._width) for number in range(count)]
        reported = max((slot.group.request.config.top_logprobs for slot in slots), default=0)
        depths = [phase.depth for phase in self._phases]
        self._depth = max(*depths, reported) if depths and all(depths) else 0

    def release(self) -> None:
        """See `Selector.release`."""
        self._scores.clear()

    def candidates(self, history: TokenHistory) -> int:
        """See `Selector.candidates`."""
        acts = any(phase.processors.acts(history) for phase in self._phases)
        return 0 if acts else self._depth

    def choose(self, outputs: StepOutputs, history: TokenHistory) -> Choice | None:
        """See `Selector.choose`."""
        step = _Step(outputs)
        normalisers = step.scores.normalisers
        for row in np.nonzero(~np.isfinite(normalisers))[0].tolist():
            group = self._slots[row // self._width].group
            group.fail(unchoosable(group.request, np.nan))
        tokens = np.zeros(len(normalisers), np.int64)
        copies: list[tuple[int, int]] = []
        taken: list[list[int]] = [[] for _ in self._slots]
        for phase in self._phases:
            found = self._from_candidates(phase, step.scores, history)
            failures: Failures = {}
            if found is None:
                if not isinstance(step.scores, WholeRows):
                    return None
                found, failures = self._from_rows(phase, step.scores, history, taken)
            for member, candidates in zip(phase.members, found, strict=True):
                if failures and (failure := failures.get(member.place)):
                    self._slots[member.slot].group.fail(failure)
                elif not member.search.done and self._slots[member.slot].group.failure is None:
                    self._advance(member, candidates, step, tokens, copies)
                    taken[member.slot] += member.search.taken
        return Choice(tokens, copies, self._ended())

    def _from_candidates(
        self, phase: Phase, step: StepScores, history: TokenHistory
    ) -> list[list[Candidate]] | None:
        """The candidates of each search, from the likeliest tokens; None if it takes all tokens.

        Whole rows are looked at in this way too: their log-probabilities are worked out for the
        few tokens that matter.
        """
        if not self._depth or phase.processors.acts(history):
            return None
        rows = slice(None) if phase.rows is None else phase.rows
        normalisers = step.normalisers[rows]
        tokens, values, floors = step.likeliest(rows, self._depth)
        values -= normalisers[:, None]
        floors -= normalisers
        if phase.processors:
            bar(phase.processors.barred(history), tokens, values)
        tokens, values = in_order(tokens, values)
        if not settled(phase.members, values, floors):
            return None
        weights = weigh_candidates(phase.members, values, floors)
        if weights is None:
            return None
        running = phase.running()
        # In this order, so that a score does not depend on who else is in the batch.
        totals = values + running[:, None]
        found = []
        for member, own_weights in zip(phase.members, weights, strict=True):
            own = member.places
            if own_weights is None:
                found.append(best_candidates(member, tokens[own], totals[own]))
            else:
                drawn, chances = drawable(tokens[own], to_probabilities(own_weights))
                scores = values[own, : drawn.shape[1]]
                found.append(drawn_candidates(member, drawn, chances, scores, running[own]))
        return found

    def _from_rows(
        self, phase: Phase, step: WholeRows, history: TokenHistory, taken: list[list[int]]
    ) -> tuple[list[list[Candidate]], Failures]:
        """The candidates of each search from whole rows, and the places of rows that failed."""
        scores, failures = self._score(phase, step, history, taken)
        tokens, values = largest(scores, phase.needed)
        running = phase.running()
        totals = values + running[:, None]
        found = []
        for member in phase.members:
            own = member.places
            if member.sampler is None:
                found.append(best_candidates(member, tokens[own], totals[own]))
            else:
                part = scores[own]
                drawn, probabilities = member.sampler.candidates(part, np.empty_like(part))
                chosen = np.take_along_axis(part, drawn, axis=1)
                found.append(drawn_candidates(member, drawn, probabilities, chosen, running[own]))
        return found, failures

    def _score(
        self, phase: Phase, step: WholeRows, history: TokenHistory, taken: list[list[int]]
    ) -> tuple[Float32, Failures]:
        """Log-probabilities `[n, V]` of a phase's rows as processors leave them, and failures."""
        logits, normalisers = step.logits, step.normalisers
        if phase.rows is not None:
            logits, normalisers = logits[phase.rows], normalisers[phase.rows]
        scores = np.subtract(logits, normalisers[:, None], out=self._scores.like(logits))
        if phase.diverse:
            self._diversify(phase, scores, taken)
        failures = phase.processors.apply(scores, history)
        if len(phase.renormalised):
            part = scores[phase.renormalised]
            # A row whose tokens are all barred has no sum, and stays barred.
            some = part.max(axis=1) > -np.inf
            part[some] -= log_sum_exp(part[some], np.empty_like(part[some]))[:, None]
            scores[phase.renormalised] = part
        return scores, failures

    def _diversify(self, phase: Phase, scores: Float32, taken: list[list[int]]) -> None:
        """Penalise what earlier groups of the same source have just taken, once per beam."""
        for member in phase.members:
            said = np.array(taken[member.slot], np.int64)
            tokens, counts = np.unique(said, return_counts=True)
            penalty = np.float32(member.request.config.diversity_penalty)
            scores[member.places, tokens] -= penalty * counts.astype(np.float32)

    def _advance(
        self,
        member: Member,
        candidates: list[Candidate],
        step: "_Step",
        tokens: Int64,
        copies: list[tuple[int, int]],
    ) -> None:
        """Take a step of one search, and note its tokens and the rows to copy."""
        moves = member.search.advance(candidates, step.extender(member.row, member.request))
        for row, parent, token in moves:
            tokens[member.row + row] = token
            if parent != row:
                copies.append((member.row + parent, member.row + row))

    def _ended(self) -> list[int]:
        ended = []
        for index, (group, _) in enumerate(self._slots):
            assert group.beams is not None
            if group.failure is None and group.beams.done and not group.beams.best(1):
                group.fail(unchoosable(group.request))
            if group.failure is None:
                group.follow_beams()
            if group.done:
                ended.append(index)
        return ended


class _Step:
    """What the decoder said in one step, and how it becomes nodes of hypotheses."""

    def __init__(self, outputs: StepOutputs) -> None:
        self.scores = step_scores(outputs)
        self._experts = outputs.experts

    def extender(self, first: int, request: Request) -> Callable[[Candidate, Node], Node]:
        """Makes nodes for the search whose rows begin with `first`."""
        config = request.config
        tops: dict[int, TopLogprobs] = {}
        experts: dict[int, dict[int, Int32]] = {}

        def extend(candidate: Candidate, parent: Node) -> Node:
            row = first + candidate.row
            logprob = None
            if config.logprobs:
                logprob = self.scores.logprob(row, candidate.token)
            if config.top_logprobs and row not in tops:
                tops[row] = self.scores.top(row, config.top_logprobs)
            if request.with_experts and row not in experts:
                experts[row] = {layer: ids[row].copy() for layer, ids in self._experts.items()}
            detokenizer = parent.detokenizer
            if detokenizer is not None:
                detokenizer = detokenizer.fork()
                detokenizer.push(candidate.token)
            return Node(
                parent, candidate.token, logprob, tops.get(row), experts.get(row), detokenizer
            )

        return extend
