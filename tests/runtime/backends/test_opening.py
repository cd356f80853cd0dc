"""Devices by name."""

import pytest

from drl.runtime import BackendError
from drl.runtime.backends.opening import parse_device


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("cpu", ("cpu", 0)),
        ("cuda", ("cuda", 0)),
        ("cuda:0", ("cuda", 0)),
        ("cuda:12", ("cuda", 12)),
        ("tensorrt", ("tensorrt", 0)),
        ("tensorrt:1", ("tensorrt", 1)),
        ("tensorrt-rtx", ("tensorrt-rtx", 0)),
    ],
)
def test_devices_have_a_kind_and_a_number(device: str, expected: tuple[str, int]) -> None:
    assert parse_device(device) == expected


@pytest.mark.parametrize(
    "device",
    [
        "",
        "gpu",
        "cpu:0",
        "cuda:",
        "cuda:-1",
        "cuda:x",
        "CUDA",
        "cuda:99999",
        "tensorrt-",
        "rtx",
        0,
        None,
    ],
)
def test_others_are_refused_with_those_that_there_are(device: object) -> None:
    with pytest.raises(BackendError, match=r"there is no device .*runs on cpu, cuda.* as cuda:1"):
        parse_device(device)  # type: ignore[arg-type]
