"""The structs and functions of `src/drl_native.h` for ctypes."""

import ctypes
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Task = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_size_t)
ParallelFor = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_size_t, Task, ctypes.c_void_p)


class Execution(ctypes.Structure):
    """`drl_execution`."""

    _fields_ = (("isa", ctypes.c_int), ("parallel_for", ParallelFor), ("context", ctypes.c_void_p))


class Workspace(ctypes.Structure):
    """`drl_workspace`."""

    _fields_ = (("data", ctypes.c_void_p), ("bytes", ctypes.c_size_t))


class Packed(ctypes.Structure):
    """`drl_packed`."""

    _fields_ = (("data", ctypes.c_void_p), ("bytes", ctypes.c_size_t))

    @classmethod
    def of(cls, array: NDArray[np.uint8] | None) -> Self:
        """A view of packed weights; null for None."""
        return cls() if array is None else cls(array.ctypes.data, array.nbytes)


class PackedShape(ctypes.Structure):
    """`drl_packed_shape`."""

    _fields_ = (
        ("matrices", ctypes.c_uint64),
        ("columns", ctypes.c_uint64),
        ("depth", ctypes.c_uint64),
    )


class Linear(ctypes.Structure):
    """`drl_linear`."""

    _fields_ = (
        ("weight", Packed),
        ("bias", ctypes.c_void_p),
        ("activation", ctypes.c_int),
        ("x", ctypes.c_void_p),
        ("rows", ctypes.c_size_t),
        ("y", ctypes.c_void_p),
    )


class TopK(ctypes.Structure):
    """`drl_top_k`."""

    _fields_ = (
        ("weight", Packed),
        ("bias", ctypes.c_void_p),
        ("x", ctypes.c_void_p),
        ("rows", ctypes.c_size_t),
        ("k", ctypes.c_size_t),
        ("values", ctypes.c_void_p),
        ("ids", ctypes.c_void_p),
    )


class RoutedFfn(ctypes.Structure):
    """`drl_routed_ffn`."""

    _fields_ = (
        ("up", Packed),
        ("gate", Packed),
        ("down", Packed),
        ("up_bias", ctypes.c_void_p),
        ("gate_bias", ctypes.c_void_p),
        ("down_bias", ctypes.c_void_p),
        ("activation", ctypes.c_int),
        ("x", ctypes.c_void_p),
        ("expert_ids", ctypes.c_void_p),
        ("gates", ctypes.c_void_p),
        ("tokens", ctypes.c_size_t),
        ("choices", ctypes.c_size_t),
        ("y", ctypes.c_void_p),
    )


_POINTER = ctypes.c_void_p
_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "drl_status_message": (ctypes.c_char_p, (ctypes.c_int,)),
    "drl_isa_by_name": (ctypes.c_int, (ctypes.c_char_p, _POINTER)),
    "drl_default_isa": (ctypes.c_int, (_POINTER,)),
    "drl_packed_bytes": (ctypes.c_size_t, (_POINTER,)),
    "drl_pack": (ctypes.c_int, (_POINTER, _POINTER, _POINTER, ctypes.c_size_t)),
    "drl_pack_int8": (ctypes.c_int, (_POINTER, _POINTER, _POINTER, _POINTER, ctypes.c_size_t)),
    "drl_read_packed_shape": (ctypes.c_int, (Packed, _POINTER)),
    "drl_unpack_int8": (ctypes.c_int, (Packed, _POINTER, _POINTER)),
    "drl_linear_workspace_bytes": (ctypes.c_size_t, (_POINTER, ctypes.c_size_t)),
    "drl_linear_int8": (ctypes.c_int, (_POINTER, Workspace, _POINTER)),
    "drl_top_k_workspace_bytes": (ctypes.c_size_t, (_POINTER, ctypes.c_size_t, ctypes.c_size_t)),
    "drl_top_k_int8": (ctypes.c_int, (_POINTER, Workspace, _POINTER)),
    "drl_routed_ffn_workspace_bytes": (
        ctypes.c_size_t,
        (_POINTER, ctypes.c_size_t, ctypes.c_size_t),
    ),
    "drl_routed_ffn_int8": (ctypes.c_int, (_POINTER, Workspace, _POINTER)),
}


def declare(library: ctypes.CDLL) -> ctypes.CDLL:
    """Give the library's functions their types."""
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def address(array: NDArray[Any] | None) -> int | None:
    """Where an array lies; None for None."""
    return None if array is None else array.ctypes.data
