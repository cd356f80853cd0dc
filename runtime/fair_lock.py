"""A lock that threads get in about the order in which they ask."""

import threading
from types import TracebackType


class FairLock:
    """A mutual exclusion lock for threads that take it again and again.

    A thread that lets go of an ordinary lock and asks for it at once mostly gets it before one that
    has been waiting for long. Here who asks must first pass a door, which is held by whoever is
    next; so the last owner queues behind it.
    """

    def __init__(self) -> None:
        self._door = threading.Lock()
        self._lock = threading.Lock()

    def try_acquire(self) -> bool:
        """Take the lock if it is free; say whether it was. Waits for nothing."""
        return self._lock.acquire(blocking=False)

    def release(self) -> None:
        """Let go of the lock."""
        self._lock.release()

    def __enter__(self) -> None:
        with self._door:
            self._lock.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._lock.release()
