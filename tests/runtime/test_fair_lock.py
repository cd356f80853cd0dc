"""A lock that threads get in turns."""

import itertools
import threading
import time

import pytest

from drl.runtime.fair_lock import FairLock


def run(*works) -> None:  # type: ignore[no-untyped-def]
    threads = [threading.Thread(target=work, daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive()


def test_one_thread_at_a_time() -> None:
    lock, inside, count = FairLock(), 0, 0

    def work() -> None:
        nonlocal inside, count
        for _ in range(300):
            with lock:
                inside += 1
                assert inside == 1
                value = count
                if value % 50 == 0:
                    time.sleep(0)
                count = value + 1
                inside -= 1

    run(*[work] * 6)
    assert count == 1800


def test_a_thread_that_lets_go_and_asks_at_once_lets_others_in() -> None:
    """An ordinary lock fails here: its last owner gets it back nearly every time."""
    lock, turns = FairLock(), []
    ready = threading.Barrier(2)

    def work(name: str) -> None:
        ready.wait()
        for _ in range(50):
            with lock:
                time.sleep(0.001)
                turns.append(name)

    run(lambda: work("a"), lambda: work("b"))
    changes = sum(left != right for left, right in itertools.pairwise(turns))
    assert changes > 60  # of 99


@pytest.mark.parametrize("count", [3, 6])
def test_nobody_starves(count: int) -> None:
    lock, stop = FairLock(), threading.Event()
    turns = [0] * count

    def work(number: int) -> None:
        while not stop.is_set():
            with lock:
                time.sleep(0.001)
                turns[number] += 1
                if sum(turns) >= 60 * count:
                    stop.set()

    run(*(lambda number=number: work(number) for number in range(count)))
    assert min(turns) > 15


def test_a_try_never_waits() -> None:
    lock = FairLock()
    assert lock.try_acquire()
    assert not lock.try_acquire()
    waiting = threading.Thread(target=lambda: lock.__enter__(), daemon=True)
    waiting.start()
    started = time.monotonic()
    assert not lock.try_acquire()
    assert time.monotonic() - started < 1
    lock.release()
    waiting.join(timeout=10)
    assert not waiting.is_alive()
    assert not lock.try_acquire()
    lock.release()
    assert lock.try_acquire()


def test_an_error_inside_lets_go() -> None:
    lock = FairLock()
    with pytest.raises(ValueError, match="inside"), lock:
        raise ValueError("inside")
    assert lock.try_acquire()
