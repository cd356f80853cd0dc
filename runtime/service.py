"""Requests of several threads on one backend: a step at a time, in common batches."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

from drl.runtime.backends.protocol import Backend
from drl.runtime.decoding import SequenceGroup
from drl.runtime.driver import Driver
from drl.runtime.errors import BackendError, DrlError
from drl.runtime.fair_lock import FairLock
from drl.runtime.manifest import Manifest
from drl.runtime.request import Request
from drl.runtime.results import GenerationResult, Piece
from drl.runtime.scheduler import Scheduler
from drl.runtime.scoring import Score, Scorer


class Service:
    """What the threads of an engine share.

    Whoever waits for a result advances everybody's requests by a step, holding a lock meanwhile.
    Only the requests of `asyncio` tasks, whose callers must not wait, need a thread: the driver.

    Attributes:
        driver: Advances requests that nobody waits for in a thread.
    """

    def __init__(self, backend: Backend, manifest: Manifest, max_batch_size: int) -> None:
        self.driver = Driver(self._advance_watched)
        self._backend = backend
        self._max_batch_size = max_batch_size
        self._scheduler = Scheduler(backend, manifest, max_batch_size)
        self._scorer = Scorer(backend, manifest, max_batch_size)
        self._lock = FairLock()
        self._turn = _Turn(self._lock, self._sweep)
        self._abandoned: deque[SequenceGroup] = deque()
        self._closed = False

    @property
    def requests_at_once(self) -> int:
        """How many requests of a long list a caller queues: places never wait for the next one."""
        return 2 * self._max_batch_size

    @property
    def scheduler(self) -> Scheduler:
        """What is being decoded, and what waits."""
        return self._scheduler

    def run(
        self,
        groups: Iterator[SequenceGroup],
        on_piece: Callable[[int, Piece], None] | None,
        on_error: Callable[[int, DrlError], None] | None,
    ) -> Iterator[tuple[int, GenerationResult]]:
        """See `Engine.run`; the requests are streamed if there is an `on_piece`."""
        source = enumerate(groups)
        pending: dict[int, SequenceGroup] = {}
        try:
            while True:
                room = self.requests_at_once - len(pending)
                added = dict(islice(source, room))
                pending |= added
                if not pending:
                    return
                with self._turn:
                    self._advance(added.values(), pending.values())
                    ended = [index for index, group in pending.items() if group.done]
                    pieces = [] if on_piece is None else _pieces(pending)
                if on_piece is not None:
                    for index, piece in pieces:
                        on_piece(index, piece)
                for index in ended:
                    group = pending.pop(index)
                    if group.failure is not None and on_error is not None:
                        on_error(index, group.failure)
                    else:
                        yield index, group.result()
        finally:
            self._discard(pending.values())

    def stream(self, group: SequenceGroup) -> Iterator[Piece]:
        """See `Engine.stream`."""
        added = [group]
        done = False
        try:
            while not done:
                with self._turn:
                    self._advance(added, [group])
                    pieces, done = group.pieces(), group.done
                added = []
                yield from pieces
        finally:
            self._discard([group])

    def score(self, requests: Sequence[Request]) -> list[Score]:
        """See `Engine.score`; what is scored is the requests' prefixes."""
        scores: dict[int, Score] = {}
        for batch in self._scorer.batches(requests):
            with self._turn:
                self._check_open()
                found = self._scorer.score([requests[index] for index in batch])
            scores |= zip(batch, found, strict=True)
        return [scores[index] for index in range(len(requests))]

    def close(self) -> None:
        """Drop every request and give the memory back."""
        with self._turn:
            if not self._closed:
                self._closed = True
                self._scheduler.abort(_closed())
                self._backend.close()

    def _advance(self, added: Iterable[SequenceGroup], waited_for: Iterable[SequenceGroup]) -> None:
        """Queue requests and, unless one waited for has ended already, advance all by a token.

        Between two calls other threads may have advanced this caller's requests to their ends.
        The caller holds the lock, and reads what has become of its requests before it lets go.
        """
        self._check_open()
        self._drop_abandoned()
        for group in added:
            self._scheduler.add(group)
        if not any(group.done for group in waited_for):
            self._scheduler.step()

    def _advance_watched(
        self, added: Sequence[SequenceGroup], watched: Sequence[SequenceGroup]
    ) -> list[tuple[list[Piece], bool]]:
        """A step for the driver: what each watched request has to tell, and whether it is done."""
        with self._turn:
            self._advance(added, watched)
            return [
                (group.pieces() if group.streams and group.failure is None else [], group.done)
                for group in watched
            ]

    def _discard(self, groups: Iterable[SequenceGroup]) -> None:
        """Forget requests that nobody waits for, now or when the step in progress ends.

        The garbage collector may end a forgotten stream in the middle of a step, in the very thread
        that holds the lock; so this never waits for it.
        """
        self._abandoned.extend(groups)
        self._sweep()

    def _sweep(self) -> None:
        """Drop what is abandoned, unless somebody holds the lock, who will do it afterwards."""
        while self._abandoned and self._lock.try_acquire():
            try:
                self._drop_abandoned()
            finally:
                self._lock.release()

    def _drop_abandoned(self) -> None:
        while self._abandoned:
            group = self._abandoned.popleft()
            if not group.done:
                self._scheduler.discard(group)

    def _check_open(self) -> None:
        if self._closed:
            raise _closed()


class _Turn:
    """Holds the lock, then sees to what others had to leave behind meanwhile."""

    def __init__(self, lock: FairLock, sweep: Callable[[], None]) -> None:
        self._lock = lock
        self._sweep = sweep

    def __enter__(self) -> None:
        self._lock.__enter__()

    def __exit__(self, *_: object) -> None:
        try:
            self._lock.release()
        finally:
            self._sweep()


def _pieces(pending: dict[int, SequenceGroup]) -> list[tuple[int, Piece]]:
    """What has come of requests that have not failed."""
    return [
        (index, piece)
        for index, group in pending.items()
        if group.failure is None
        for piece in group.pieces()
    ]


def _closed() -> BackendError:
    return BackendError("the engine is closed; open one with Engine.from_bundle")
