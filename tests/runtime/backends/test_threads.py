"""Who decides on threads, and on whether they spin."""

import pytest

from drl.runtime import machine
from drl.runtime.backends.threads import Threads, choose_threads
from drl.runtime.errors import BackendError


@pytest.fixture
def free_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "share_of_cores", lambda threads: 0.97)


@pytest.fixture
def taken_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "share_of_cores", lambda threads: 0.5)


@pytest.mark.usefixtures("free_cores")
def test_the_caller_comes_before_the_environment_and_that_before_the_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "default_threads", lambda: 6)
    assert choose_threads(3, {"DRL_THREADS": "4"}).count == 3
    assert choose_threads(None, {"DRL_THREADS": "4"}).count == 4
    assert choose_threads(None, {}).count == 6


@pytest.mark.usefixtures("free_cores")
def test_threads_spin_where_cores_are_free() -> None:
    assert choose_threads(2, {}) == Threads(2, spin=True)
    assert choose_threads(2, {"DRL_SPIN": "0"}) == Threads(2, spin=False)


@pytest.mark.usefixtures("taken_cores")
def test_threads_sleep_where_cores_are_taken() -> None:
    assert choose_threads(2, {}) == Threads(2, spin=False)
    assert choose_threads(2, {"DRL_SPIN": "1"}) == Threads(2, spin=True)


@pytest.mark.usefixtures("free_cores")
def test_one_thread_has_nobody_to_wait_for() -> None:
    assert choose_threads(1, {}) == Threads(1, spin=False)


@pytest.mark.parametrize("said", ["two", "0", "-1", "1.5", "4000"])
def test_a_variable_that_is_no_number_of_threads_is_refused(said: str) -> None:
    with pytest.raises(BackendError, match=f"DRL_THREADS={said} must be a number from 1 to"):
        choose_threads(None, {"DRL_THREADS": said})


def test_a_variable_that_is_neither_yes_nor_no_is_refused() -> None:
    with pytest.raises(BackendError, match="DRL_SPIN=yes must be 1 or 0"):
        choose_threads(2, {"DRL_SPIN": "yes"})


def test_a_count_that_is_not_possible_is_refused() -> None:
    with pytest.raises(BackendError, match="threads must be"):
        choose_threads(0, {})


def test_threads_are_named_for_people() -> None:
    assert str(Threads(1, spin=False)) == "1 thread"
    assert str(Threads(2, spin=True)) == "2 threads, spinning"
