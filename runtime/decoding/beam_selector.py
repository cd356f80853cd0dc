"""The next tokens of beam searches, all searches of a batch together."""

from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass

import numpy as np

from drl.runtime.arrays import Float32, Float64, Int32, Int64
from drl.runtime.backends.protocol import StepOutputs
from drl.runtime.decoding.beam_search import Beams, BeamSearch, Candidate, Node
from drl.runtime.decoding.history import TokenHistory
from drl.runtime.decoding.processor_groups import Failures, ProcessorGroups, unchoosable
from drl.runtime.decoding.reports import likeliest
from drl.runtime.decoding.scratch import Scratch
from drl.runtime.decoding.slot import Choice, Slot
from drl.runtime.processors import Sampler, largest, log_sum_exp
from drl.runtime.request import Request
from drl.runtime.results import TopLogprobs


@dataclass(frozen=True, eq=False)
class _Member:
    """One search in a phase: its slot, its first row in the batch and in the phase's scores."""

    slot: int
    row: int
    place: int
    request: Request
    search: BeamSearch
    sampler: Sampler | None
    generator: np.random.Generator | None

    @property
    def places(self) -> slice:
        return slice(self.place, self.place + self.search.width)


@dataclass(frozen=True, eq=False)
class _Phase:
    """Searches that choose at the same time. Only diverse beam search has more than one phase.

    Attributes:
        rows: Rows of the batch that take part, None for all.
        needed: Most candidates that a row can contribute.
        diverse: Whether earlier phases count in it.
        plain: Whether nothing but processors can change its log-probabilities.
    """

    members: list[_Member]
    rows: Int64 | None
    processors: ProcessorGroups
    needed: int
    renormalised: Int64
    diverse: bool
    plain: bool


class BeamSelector:
    """Beam search, with samples or without, over slots of `width` rows each."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._scores = Scratch()
        self.set_slots(())

    def set_slots(self, slots: Items[Slot]) -> None:
        """See `Selector.set_slots`."""
        self._slots = list(slots)
        requests = [slot.group.request for slot in slots for _ in range(self._width)]
        count = max((len(_beams(slot).searches) for slot in slots), default=0)
        self._phases = [self._phase(number, requests) for number in range(count)]

    def release(self) -> None:
        """See `Selector.release`."""
        self._scores.clear()

    def choose(self, outputs: StepOutputs, history: TokenHistory) -> Choice:
        """See `Selector.choose`."""
        step = _Step(outputs)
        for row in np.nonzero(~np.isfinite(step.normalisers))[0].tolist():
            group = self._slots[row // self._width].group
            group.fail(unchoosable(group.request, np.nan))
        tokens = np.zeros(len(outputs.logits), np.int64)
        copies: list[tuple[int, int]] = []
        taken: list[list[int]] = [[] for _ in self._slots]
        for phase in self._phases:
            scores, offsets, failures = self._score(phase, step, history, taken)
            found = self._candidates(phase, scores, offsets)
            for member, candidates in zip(phase.members, found, strict=True):
                if failures and (failure := failures.get(member.place)):
                    self._slots[member.slot].group.fail(failure)
                elif not member.search.done and self._slots[member.slot].group.failure is None:
                    self._advance(member, candidates, step, tokens, copies)
                    taken[member.slot] += member.search.taken
        return Choice(tokens, copies, self._ended())

    def _phase(self, number: int, requests: list[Request]) -> _Phase:
        members: list[_Member] = []
        rows: list[int] = []
        for index, slot in enumerate(self._slots):
            searches = _beams(slot).searches
            if number < len(searches):
                search = searches[number]
                row = index * self._width + number * search.width
                request = slot.group.request
                members.append(
                    _Member(
                        index,
                        row,
                        len(rows),
                        request,
                        search,
                        _sampler(request, search),
                        slot.sequence.generator,
                    )
                )
                rows += range(row, row + search.width)
        renormalised = [
            place
            for place, row in enumerate(rows)
            if requests[row].config.renormalize_logits and not requests[row].config.samples
        ]
        diverse = any(len(_beams(self._slots[m.slot]).searches) > 1 for m in members)
        samples = any(member.sampler for member in members)
        return _Phase(
            members=members,
            rows=None if len(rows) == len(requests) else np.array(rows, np.int64),
            processors=ProcessorGroups(requests, rows),
            needed=max(member.search.candidates_needed for member in members),
            renormalised=np.array(renormalised, np.int64),
            diverse=diverse,
            plain=not (diverse or samples or renormalised),
        )

    def _score(
        self, phase: _Phase, step: "_Step", history: TokenHistory, taken: list[list[int]]
    ) -> tuple[Float32, Float32, Failures]:
        """Scores `[n, V]` of a phase's rows, what to add to each row `[n]`, and failures.

        Log-probabilities that nothing changes are left as logits, with their normalisers to be
        subtracted from the few that are looked at.
        """
        logits, normalisers = step.logits, step.normalisers
        if phase.rows is not None:
            logits, normalisers = logits[phase.rows], normalisers[phase.rows]
        if phase.plain and not phase.processors:
            return logits, -normalisers, {}
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
        return scores, np.zeros(len(scores), np.float32), failures

    def _diversify(self, phase: _Phase, scores: Float32, taken: list[list[int]]) -> None:
        """Penalise what earlier groups of the same source have just taken, once per beam."""
        for member in phase.members:
            said = np.array(taken[member.slot], np.int64)
            tokens, counts = np.unique(said, return_counts=True)
            penalty = np.float32(member.request.config.diversity_penalty)
            scores[member.places, tokens] -= penalty * counts.astype(np.float32)

    def _candidates(
        self, phase: _Phase, scores: Float32, offsets: Float32
    ) -> list[list[Candidate]]:
        """The candidates of each search, best first or in the order of the draws."""
        tokens, values = largest(scores, phase.needed)
        running = np.concatenate([np.array(m.search.scores, np.float32) for m in phase.members])
        # In this order, so that a score does not depend on who else is in the batch.
        totals = (values + offsets[:, None]) + running[:, None]
        return [
            _drawn(member, member.sampler, scores[member.places], running[member.places])
            if member.sampler
            else _best(totals[member.places], tokens[member.places], member.search)
            for member in phase.members
        ]

    def _advance(
        self,
        member: _Member,
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
        self.logits: Float32 = outputs.logits[:, 0]
        self.normalisers: Float32 = outputs.normalisers[:, 0]
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
                logprob = float(self.logits[row, candidate.token] - self.normalisers[row])
            if config.top_logprobs and row not in tops:
                normaliser = float(self.normalisers[row])
                tops[row] = likeliest(self.logits[row], config.top_logprobs, normaliser)
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


def _beams(slot: Slot) -> Beams:
    assert slot.group.beams is not None
    return slot.group.beams


def _sampler(request: Request, search: BeamSearch) -> Sampler | None:
    config = request.config
    if not config.samples:
        return None
    # Of each beam there must be a token left that does not end it.
    ends = 1 + len(config.stop_token_ids)
    return Sampler([config] * search.width, min_tokens_to_keep=ends + 1)


def _best(totals: Float32, tokens: Int64, search: BeamSearch) -> list[Candidate]:
    """The best of `[W, n]` scores of all rows together, ties by row and token."""
    return _first(totals, totals, tokens, search.candidates_needed)


def _drawn(member: _Member, sampler: Sampler, scores: Float32, running: Float32) -> list[Candidate]:
    """Candidates drawn without replacement, each in proportion to the exponential of its score.

    The largest of scores with Gumbel noise are such draws, in their order (Vieira 2014, "Gumbel-max
    trick and weighted reservoir sampling").
    """
    config = member.request.config
    tokens, probabilities = sampler.candidates(scores, np.empty_like(scores))
    if config.renormalize_logits:
        with np.errstate(divide="ignore"):
            own = np.log(probabilities)
    else:
        own = np.take_along_axis(scores, tokens, axis=1) / (config.temperature or 1.0)
    totals = np.where(probabilities > 0, own + running[:, None], -np.inf)
    assert member.generator is not None
    with np.errstate(divide="ignore"):
        keys = totals - np.log(-np.log(member.generator.random(totals.shape)))
    return _first(keys, totals, tokens, member.search.candidates_needed)


def _first(
    keys: Float32 | Float64, totals: Float32 | Float64, tokens: Int64, count: int
) -> list[Candidate]:
    """The `count` candidates with the largest of `[W, n]` keys, in their order."""
    order = np.argsort(-keys.ravel(), kind="stable")[:count]
    chosen = zip(
        totals.ravel()[order].tolist(),
        (order // totals.shape[1]).tolist(),
        tokens.ravel()[order].tolist(),
        strict=True,
    )
    return [Candidate(*item) for item in chosen]
