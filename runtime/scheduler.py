"""Continuous batching: sequences leave the moment they end, and waiting ones take their places."""

import time
from collections import deque

from drl.runtime.backends.protocol import Backend, Encoding
from drl.runtime.decoding import SequenceGroup, Slot
from drl.runtime.encoding import encode, route
from drl.runtime.errors import DrlError
from drl.runtime.lane import Lane
from drl.runtime.manifest import Manifest
from drl.runtime.results import FinishReason

# Encoding a few short sources together takes hardly longer than one, so under load places are
# filled several at a time; a request that waits alone gets the first free one.
_ADMISSIONS_PER_BATCH = 4


class Scheduler:
    """Runs requests to their ends, up to `max_batch_size` decoder rows of them at a time.

    Sources are encoded together as requests are admitted, then decoded with those that take the
    same path with as many beams: one lane for each. Not thread-safe.
    """

    def __init__(self, backend: Backend, manifest: Manifest, max_batch_size: int) -> None:
        self._backend = backend
        self._manifest = manifest
        self._max_batch_size = max_batch_size
        self._waiting: deque[SequenceGroup] = deque()
        self._admitting: list[SequenceGroup] = []  # taken from the queue, not yet all in a lane
        self._lanes: dict[tuple[int, int], Lane] = {}

    @property
    def lanes(self) -> list[Lane]:
        """The lanes that have been used: one per path and number of beams."""
        return list(self._lanes.values())

    @property
    def waiting(self) -> int:
        """How many requests have not been encoded yet."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """How many rows are being decoded."""
        return sum(lane.cache.rows for lane in self._lanes.values())

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._waiting and not self.running

    def add(self, group: SequenceGroup) -> None:
        """Queue a request."""
        self._waiting.append(group)

    def step(self) -> None:
        """Admit what fits, then advance every sequence by a token.

        If anything goes wrong in the middle, Ctrl-C included, every request under way is dropped
        and marked as failed: which rows had been written is unknown.
        """
        try:
            self._end_overdue()
            self._admit()
            for lane in self._lanes.values():
                if lane.slots:
                    lane.step()
        except BaseException as error:
            self._abort_after(error)
            raise

    def cut(self, group: SequenceGroup, reason: FinishReason) -> None:
        """End a request with what there is, and free its memory at once."""
        group.cut(reason)
        self.discard(group)

    def discard(self, group: SequenceGroup) -> None:
        """Forget a request, wherever it is."""
        try:
            if group in self._waiting:
                self._waiting.remove(group)
            for lane in self._lanes.values():
                lane.discard(group)
        except BaseException as error:
            self._abort_after(error)
            raise

    def abort(self, failure: DrlError) -> None:
        """Drop every request, marking it with the reason."""
        dropped = [*self._admitting, *self._waiting]
        self._admitting = []
        self._waiting.clear()
        for lane in self._lanes.values():
            dropped += lane.groups
            lane.clear()
        for group in dropped:
            group.fail(failure)

    def _abort_after(self, error: BaseException) -> None:
        """Drop every request, as something was not done to its end."""
        reason = "interrupted" if isinstance(error, KeyboardInterrupt) else repr(error)
        self.abort(DrlError(f"generation was cut short: {reason}; send the request again"))

    def _end_overdue(self) -> None:
        """End the requests whose time is up, or that somebody has cancelled."""
        lists = (self._waiting, *(lane.groups for lane in self._lanes.values()))
        limited = [group for groups in lists for group in groups if group.limited]
        for group in limited:
            if reason := group.overdue():
                self.cut(group, reason)

    def _admit(self) -> None:
        if not self._waiting:
            return
        running = self.running
        places = self._max_batch_size - running
        enough = min(len(self._waiting), max(1, self._max_batch_size // _ADMISSIONS_PER_BATCH))
        if running and places < enough:
            return
        batch = []
        while self._waiting and self._waiting[0].rows <= places:
            group = self._waiting.popleft()
            places -= group.rows
            batch.append(group)
        if not batch:
            return
        self._admitting = batch
        started = time.perf_counter()
        requests = [group.request for group in batch]
        encoding = encode(self._backend, self._manifest, requests)
        members = self._route(batch, encoding)
        for (path, width), rows in members.items():
            cross = self._backend.bridge(encoding.take(rows), path)
            # Samples of one source have a slot each; a beam search has one.
            slots = [Slot(batch[row], item) for row in rows for item in batch[row].sequences]
            sources = [place for place, row in enumerate(rows) for _ in batch[row].sequences]
            self._lane(path, width).admit(slots, cross.take(sources))
        seconds = time.perf_counter() - started
        for row, group in enumerate(batch):
            wanted = encoding.experts if group.request.with_experts else {}
            length = len(group.request.tokens)
            experts = {layer: ids[row, :length].copy() for layer, ids in wanted.items()}
            group.record_encoding(experts, seconds)
        self._admitting = []

    def _lane(self, path: int, width: int) -> Lane:
        if (path, width) not in self._lanes:
            slots = self._max_batch_size // width
            lane = Lane(self._backend, self._manifest, path, width, slots)
            self._lanes[path, width] = lane
        return self._lanes[path, width]

    def _route(
        self, batch: list[SequenceGroup], encoding: Encoding
    ) -> dict[tuple[int, int], list[int]]:
        """Settle the path of every request; return the rows that belong to each lane."""
        members: dict[tuple[int, int], list[int]] = {}
        for row, group in enumerate(batch):
            path = route(self._manifest, group.request, encoding, row)
            logits = None if encoding.path_logits is None else encoding.path_logits[row].copy()
            group.record_path(self._manifest.paths[path].name, logits)
            members.setdefault((path, group.request.config.num_beams), []).append(row)
        return members
