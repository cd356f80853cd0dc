"""An ONNX Runtime that the operators cannot run with is told so when it loads the library."""

import ctypes
from collections.abc import Callable
from typing import Any

import pytest

from drl.plugins.native import find_library
from tests.plugins.native.sets import needs_library

pytestmark = needs_library

GetApi = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)
GetVersionString = ctypes.CFUNCTYPE(ctypes.c_void_p)
CreateStatus = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)
A_STATUS = 0x5EED


class Base(ctypes.Structure):
    _fields_ = (("get_api", GetApi), ("get_version_string", GetVersionString))


def register(version: str, offers: Callable[[int], bool]) -> tuple[Any, list[str], list[int]]:
    """Register with an ONNX Runtime of this version, whose functions can only make a status.

    Returns:
        What the library returned, the messages of the statuses it made, and the versions of the
        interface that it asked for.
    """
    messages: list[str] = []
    asked: list[int] = []

    @CreateStatus
    def create_status(_: int, message: bytes) -> int:
        messages.append(message.decode())
        return A_STATUS

    table = (ctypes.c_void_p * 415)(ctypes.cast(create_status, ctypes.c_void_p).value)

    @GetApi
    def get_api(number: int) -> int | None:
        asked.append(number)
        return ctypes.addressof(table) if offers(number) else None

    text = ctypes.create_string_buffer(version.encode())

    @GetVersionString
    def get_version_string() -> int:
        return ctypes.addressof(text)

    function = ctypes.CDLL(str(find_library().path)).RegisterCustomOps
    function.restype = ctypes.c_void_p
    base = Base(get_api, get_version_string)
    return function(None, ctypes.byref(base)), messages, asked


@pytest.mark.parametrize("version", ["1.24.4", "1.9.0", "0.99", "nonsense"])
def test_an_older_one_is_told_to_upgrade(version: str) -> None:
    status, messages, asked = register(version, lambda number: number < 25)
    assert status == A_STATUS
    assert messages == [
        f"drl's native operators need ONNX Runtime 1.25 or newer, and this is {version}; upgrade it"
    ]
    assert 25 not in asked  # it would print a warning of its own


@pytest.mark.parametrize("version", ["1.99.0", "2.0.0"])
def test_one_that_dropped_the_interface_is_told_that_drl_is_too_old(version: str) -> None:
    status, messages, _ = register(version, lambda number: number < 25)
    assert status == A_STATUS
    assert messages == [
        f"ONNX Runtime {version} does not offer version 25 of its interface any more, which drl's "
        "native operators need; install a newer drl"
    ]


def test_one_that_dropped_all_older_interfaces_is_told_through_a_newer_one() -> None:
    status, messages, asked = register("1.99.0", lambda number: number >= 40)
    assert status == A_STATUS
    assert "does not offer version 25 of its interface any more" in messages[0]
    assert max(asked) == 40
