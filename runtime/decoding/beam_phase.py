"""The beam searches of a batch that choose at the same time."""

from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Self

import numpy as np

from drl.runtime.arrays import Float32, Int64
from drl.runtime.decoding.beam_search import Beams, BeamSearch
from drl.runtime.decoding.processor_groups import ProcessorGroups
from drl.runtime.decoding.slot import Slot
from drl.runtime.processors import Sampler
from drl.runtime.request import Request


@dataclass(frozen=True, eq=False)
class Member:
    """One search in a phase: its slot, its first row in the batch and in the phase's scores."""

    slot: int
    row: int
    place: int
    request: Request
    search: BeamSearch
    sampler: Sampler | None
    generator: "np.random.Generator | None"  # NumPy imports it at the first use

    @property
    def places(self) -> slice:
        """Its rows in the phase's scores."""
        return slice(self.place, self.place + self.search.width)

    @property
    def candidates_needed(self) -> int | None:
        """How many of a row's likeliest tokens it needs; None for all."""
        if self.sampler is None:
            return self.search.candidates_needed + 1  # which shows whether the last one has equals
        return self.sampler.candidates_needed


@dataclass(frozen=True, eq=False)
class Phase:
    """Searches that choose at the same time. Only diverse beam search has more than one phase.

    Attributes:
        members: The searches.
        rows: Rows of the batch that take part, None for all.
        processors: Of these rows.
        needed: Most candidates that a row can contribute.
        depth: How many of a row's likeliest tokens suffice in an ordinary step; 0 if none do but
            all.
        renormalised: Places of the rows whose scores must become log-probabilities again.
        diverse: Whether earlier phases count in it.
    """

    members: list[Member]
    rows: Int64 | None
    processors: ProcessorGroups
    needed: int
    depth: int
    renormalised: Int64
    diverse: bool

    @classmethod
    def build(cls, number: int, slots: Items[Slot], width: int) -> Self:
        """The phase of the `number`-th searches of slots that have `width` rows each."""
        requests = [slot.group.request for slot in slots for _ in range(width)]
        members: list[Member] = []
        rows: list[int] = []
        for index, slot in enumerate(slots):
            searches = beams_of(slot).searches
            if number < len(searches):
                search, request = searches[number], slot.group.request
                row = index * width + number * search.width
                sampler, generator = _sampler(request, search), slot.sequence.generator
                members.append(Member(index, row, len(rows), request, search, sampler, generator))
                rows += range(row, row + search.width)
        renormalised = [
            place
            for place, row in enumerate(rows)
            if requests[row].config.renormalize_logits and not requests[row].config.samples
        ]
        diverse = any(len(beams_of(slots[member.slot]).searches) > 1 for member in members)
        processors = ProcessorGroups(requests, rows)
        return cls(
            members=members,
            rows=None if len(rows) == len(requests) else np.array(rows, np.int64),
            processors=processors,
            needed=max(member.search.candidates_needed for member in members),
            depth=0 if diverse or renormalised else _depth(members, processors),
            renormalised=np.array(renormalised, np.int64),
            diverse=diverse,
        )

    def running(self) -> Float32:
        """`[n]` scores of the beams so far."""
        return np.concatenate([np.array(m.search.scores, np.float32) for m in self.members])


def beams_of(slot: Slot) -> Beams:
    """The beam search of a slot that has one."""
    assert slot.group.beams is not None
    return slot.group.beams


def _depth(members: list[Member], processors: ProcessorGroups) -> int:
    """See `Phase.depth`, for log-probabilities that nothing but processors changes."""
    needed = [member.candidates_needed for member in members]
    known = [count for count in needed if count is not None]
    if len(known) < len(needed) or processors.spare is None:
        return 0
    return max(known) + processors.spare


def _sampler(request: Request, search: BeamSearch) -> Sampler | None:
    config = request.config
    if not config.samples:
        return None
    # Of each beam there must be a token left that does not end it.
    ends = 1 + len(config.stop_token_ids)
    return Sampler([config] * search.width, min_tokens_to_keep=ends + 1)
