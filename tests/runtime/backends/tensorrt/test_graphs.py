"""Steps are captured once they come up often, and launched for as long as nothing has changed."""

import weakref
from collections.abc import Callable

import pytest

from drl.runtime.backends.tensorrt.graphs import StepGraphs, Work
from drl.runtime.errors import BackendError
from tests.runtime.backends.tensorrt.host_device import HostDevice


class Steps:
    """What a decoder does for `StepGraphs`, counted."""

    def __init__(self, device: HostDevice, graphs: StepGraphs) -> None:
        self.device, self.graphs = device, graphs
        self.ran: list[str] = []
        self.prepared: list[str] = []

    def step(self, key: str) -> None:
        def work(label: str) -> Callable[[], None]:
            return lambda: self.device.put(lambda: self.ran.append(label))

        def prepare() -> Work:
            self.prepared.append(key)
            return work(f"own {key}")

        with self.device.arrays.ordered():
            self.graphs.run(key, work(f"plain {key}"), prepare)
            self.device.synchronize()


@pytest.fixture
def device() -> HostDevice:
    return HostDevice()


def test_every_step_runs_once_plain_at_first_and_then_as_a_graph(device: HostDevice) -> None:
    steps = Steps(device, StepGraphs(device, captured_at=3))
    for _ in range(6):
        steps.step("a")
    assert steps.ran == ["plain a"] * 2 + ["own a"] * 4
    assert steps.prepared == ["a"]
    assert (device.captures, device.launches) == (1, 3)


def test_contexts_that_capture_by_themselves_are_run_and_not_captured(device: HostDevice) -> None:
    steps = Steps(device, StepGraphs(device, most=1, captured_at=3, by_context=True))
    for key in "aaaaabbbb":
        steps.step(key)
    assert steps.ran == ["plain a"] * 2 + ["own a"] * 3 + ["plain b"] * 2 + ["own b"] * 2
    assert steps.prepared == ["a", "b"]
    assert len(steps.graphs) == 1
    assert (device.captures, device.launches) == (0, 0)


def test_a_step_that_comes_up_seldom_is_not_captured(device: HostDevice) -> None:
    steps = Steps(device, StepGraphs(device, captured_at=3))
    for key in "abcd":
        for _ in range(2):
            steps.step(key)
    assert device.captures == 0


def test_the_graph_that_was_not_used_for_longest_goes_with_its_context(device: HostDevice) -> None:
    graphs = StepGraphs(device, most=2, captured_at=1)
    steps = Steps(device, graphs)
    for key in ("a", "b", "a", "c", "a", "b"):
        steps.step(key)
    assert len(graphs) == 2
    assert steps.prepared == ["a", "b", "c", "b"]


def test_clearing_lets_go_of_everything(device: HostDevice) -> None:
    class Context:
        pass

    graphs = StepGraphs(device, captured_at=1)
    context = Context()
    alive = weakref.ref(context)

    def prepare(context: Context) -> Work:
        return lambda: device.put(lambda: None) if context else None

    with device.arrays.ordered():
        graphs.run("a", lambda: None, lambda context=context: prepare(context))  # type: ignore[misc]
    del context
    assert alive() is not None
    graphs.clear()
    assert alive() is None
    assert len(graphs) == 0


def test_a_capture_that_fails_is_told_once_and_steps_go_on(
    device: HostDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(work: object) -> None:
        raise BackendError("no graphs here")

    monkeypatch.setattr(device, "capture", refuse)
    steps = Steps(device, StepGraphs(device, captured_at=2))
    steps.step("a")
    with pytest.warns(RuntimeWarning, match="slower: no graphs here"):
        steps.step("a")
    for _ in range(3):
        steps.step("a")
    assert steps.ran == ["plain a", "own a", *["plain a"] * 3]
    assert steps.prepared == ["a"]


def test_a_step_without_a_graph_does_not_keep_others_from_theirs(
    device: HostDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(work: object) -> None:
        raise BackendError("no graphs of this one")

    steps = Steps(device, StepGraphs(device, captured_at=1))
    with monkeypatch.context() as patch:
        patch.setattr(device, "capture", refuse)
        with pytest.warns(RuntimeWarning, match="no graphs of this"):
            steps.step("a")
    for key in "bab":
        steps.step(key)
    assert steps.ran == ["own a", "own b", "plain a", "own b"]
    assert device.launches == 1


def test_a_context_that_cannot_be_made_costs_no_request(device: HostDevice) -> None:
    graphs = StepGraphs(device, captured_at=1)
    ran: list[str] = []

    def prepare() -> Work:
        raise BackendError("no memory for a context")

    def plain() -> None:
        ran.append("plain")

    with device.arrays.ordered():
        with pytest.warns(RuntimeWarning, match="without CUDA graphs, .*: no memory for a context"):
            graphs.run("a", plain, prepare)
        graphs.run("a", plain, prepare)
    assert ran == ["plain", "plain"]


def test_a_step_that_fails_raises_and_is_not_captured(device: HostDevice) -> None:
    graphs = StepGraphs(device, captured_at=1)

    def broken() -> None:
        raise BackendError("the engine cannot be run")

    with (
        device.arrays.ordered(),
        pytest.warns(RuntimeWarning, match="the engine cannot be run"),
        pytest.raises(BackendError, match="cannot be run"),
    ):
        graphs.run("a", broken, lambda: broken)
    assert device.captures == 0
