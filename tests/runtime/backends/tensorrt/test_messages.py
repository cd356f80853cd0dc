"""What TensorRT logs comes with the failure that it belongs to."""

import pytest

from drl.runtime.backends.tensorrt.messages import Messages
from drl.runtime.errors import BackendError
from tests.runtime.backends.tensorrt.fake_tensorrt import FakeTensorRT, Severity
from tests.runtime.backends.tensorrt.host_device import HostDevice


@pytest.fixture
def messages() -> Messages:
    return Messages(FakeTensorRT(HostDevice()), "TensorRT")


def test_errors_come_on_one_line_and_once(messages: Messages) -> None:
    messages.logger.log(Severity.WARNING, "something is slow")
    messages.logger.log(Severity.ERROR, "Error Code 2:\n  out of memory")
    messages.logger.log(Severity.INTERNAL_ERROR, "and more")
    failure = messages.failure("cannot run", "run `x`")
    assert isinstance(failure, BackendError)
    assert str(failure) == "TensorRT cannot run: Error Code 2: out of memory; and more; run `x`"
    assert str(messages.failure("cannot run")) == "TensorRT cannot run: it gave no reason"


def test_without_errors_warnings_say_what_there_is_and_other_lines_never(
    messages: Messages,
) -> None:
    messages.logger.log(Severity.INFO, "loaded engine size: 3 MiB")
    messages.logger.log(Severity.VERBOSE, "total per-runner device memory")
    messages.logger.log(Severity.WARNING, "the engine was built for another GPU")
    assert str(messages.failure("fails")) == "TensorRT fails: the engine was built for another GPU"


def test_a_long_story_is_cut_to_its_end(messages: Messages) -> None:
    for number in range(50):
        messages.logger.log(Severity.ERROR, f"line {number} " + "x" * 30)
    text = str(messages.failure("fails"))
    assert "line 49" in text
    assert "line 40" not in text
    messages.logger.log(Severity.ERROR, "y" * 5000)
    assert len(str(messages.failure("fails"))) < 500


def test_the_library_on_the_index_takes_the_logger() -> None:
    """The real binding: a logger is derived from its own class, which no GPU is needed for."""
    trt = pytest.importorskip("tensorrt_rtx")
    messages = Messages(trt, "TensorRT for RTX")
    messages.logger.log(trt.ILogger.Severity.ERROR, "heard")
    assert str(messages.failure("fails")) == "TensorRT for RTX fails: heard"
