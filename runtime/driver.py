"""A thread that advances requests whose callers must not wait: those of `asyncio`."""

import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

from drl.runtime.decoding import SequenceGroup
from drl.runtime.errors import DrlError
from drl.runtime.results import Piece

Listener = Callable[[list[Piece], bool], None]
"""Told what has come since the last call, and whether the request is done."""


class _Watch(NamedTuple):
    group: SequenceGroup
    listener: Listener


class Driver:
    """Runs the decoder in a thread of its own as long as there is something to do.

    Args:
        advance: Queues new requests and takes a step, given the new ones and all that are watched;
            returns what each watched request has to tell its listener.
    """

    def __init__(
        self,
        advance: Callable[
            [Sequence[SequenceGroup], Sequence[SequenceGroup]], list[tuple[list[Piece], bool]]
        ],
    ) -> None:
        self._advance = advance
        self._lock = threading.Lock()
        self._new: list[_Watch] = []
        self._running = False

    def watch(self, group: SequenceGroup, listener: Listener) -> None:
        """Queue a request; its listener is called from the driver's thread."""
        with self._lock:
            if not self._running:
                threading.Thread(target=self._run, name="drl-driver", daemon=True).start()
                self._running = True  # not before, for there may be no thread to be had
            self._new.append(_Watch(group, listener))

    def _run(self) -> None:
        watched: list[_Watch] = []
        while True:
            with self._lock:
                added, self._new = self._new, []
                watched += added
                if not watched:
                    self._running = False
                    return
            watched = self._step(added, watched)

    def _step(self, added: list[_Watch], watched: list[_Watch]) -> list[_Watch]:
        """Take a step, tell the listeners, and return who is still waiting."""
        try:
            news = self._advance([item.group for item in added], [item.group for item in watched])
        except BaseException as error:  # the callers are told, each by its own listener
            failure = error if isinstance(error, DrlError) else DrlError(f"{error!r}")
            for item in watched:
                item.group.fail(failure)
            news = [([], True)] * len(watched)
        waiting = []
        for item, (pieces, done) in zip(watched, news, strict=True):
            if pieces or done:
                item.listener(pieces, done)
            if not done:
                waiting.append(item)
        return waiting
