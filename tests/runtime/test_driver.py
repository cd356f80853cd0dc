"""The thread behind `asyncio` requests: it runs while there is something to do, whatever fails."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from drl.runtime import DrlError, Piece
from drl.runtime.driver import Driver


class Countdown:
    """A request that is done after some steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps
        self.failure: DrlError | None = None

    def fail(self, failure: DrlError) -> None:
        self.failure = failure


class Told:
    """A listener that can be waited for."""

    def __init__(self) -> None:
        self.news: list[tuple[list[Piece], bool]] = []
        self.ended = threading.Event()

    def __call__(self, pieces: list[Piece], done: bool) -> None:
        self.news.append((pieces, done))
        if done:
            self.ended.set()


def counting(
    seen: list[tuple[int, int]] | None = None, each: Callable[[], Any] = lambda: None
) -> Callable[..., Any]:
    def advance(added: Sequence[Any], watched: Sequence[Any]) -> list[Any]:
        each()
        if seen is not None:
            seen.append((len(added), len(watched)))
        for request in watched:
            request.left -= 1
        return [(["piece"] * (request.left == 1), request.left <= 0) for request in watched]

    return advance


def drivers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "drl-driver"]


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_listeners_are_told_what_there_is_to_tell() -> None:
    seen: list[tuple[int, int]] = []
    driver, told = Driver(counting(seen)), Told()
    driver.watch(Countdown(4), told)  # type: ignore[arg-type]
    assert told.ended.wait(10)
    assert told.news == [(["piece"], False), ([], True)]
    assert seen == [(1, 1), (0, 1), (0, 1), (0, 1)]


def test_the_thread_ends_with_the_last_request_and_comes_back_with_the_next() -> None:
    driver = Driver(counting())
    assert drivers() == []
    for _ in range(3):
        told = Told()
        driver.watch(Countdown(3), told)  # type: ignore[arg-type]
        assert told.ended.wait(10)
        wait_for(lambda: not drivers())
        assert not driver._running


def test_one_thread_serves_all() -> None:
    go, most = threading.Event(), 0

    def each() -> None:
        nonlocal most
        go.wait(10)
        most = max(most, len(drivers()))

    driver = Driver(counting(each=each))
    told = [Told() for _ in range(50)]
    for number, listener in enumerate(told):
        driver.watch(Countdown(1 + number % 7), listener)  # type: ignore[arg-type]
    go.set()
    assert all(listener.ended.wait(10) for listener in told)
    assert most == 1


def test_requests_that_come_from_many_threads_at_every_moment_are_all_served() -> None:
    driver = Driver(counting())
    told = [Told() for _ in range(600)]

    def ask(part: int) -> None:
        for listener in told[part::6]:
            driver.watch(Countdown(1), listener)  # type: ignore[arg-type]
            if len(listener.news) % 2:
                listener.ended.wait(10)

    threads = [threading.Thread(target=ask, args=(part,)) for part in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert all(listener.ended.wait(10) for listener in told)
    wait_for(lambda: not drivers())


@pytest.mark.parametrize("error", [DrlError("known"), ValueError("unknown"), SystemExit(2)])
def test_whoever_waits_is_told_of_an_error(error: BaseException) -> None:
    errors = [error]

    def fail_once() -> None:
        if errors:
            raise errors.pop()

    driver = Driver(counting(each=fail_once))
    requests = [Countdown(1), Countdown(2)]
    for _ in range(2):
        told = Told()
        driver.watch(requests[-1], told)  # type: ignore[arg-type]
        assert told.ended.wait(10)
    assert requests[0].failure is None
    assert isinstance(requests[1].failure, DrlError)
    assert ("known" in str(requests[1].failure)) or repr(error) == str(requests[1].failure)


def test_a_machine_without_threads_to_spare_says_so_and_can_be_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver = Driver(counting())

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            driver.watch(Countdown(1), Told())  # type: ignore[arg-type]
    told = Told()
    driver.watch(Countdown(1), told)  # type: ignore[arg-type]
    assert told.ended.wait(10)
