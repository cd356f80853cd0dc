"""The structs and functions of `src/drl_native.h` for ctypes."""

import ctypes
from typing import Any

from numpy.typing import NDArray

Task = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_size_t)
ParallelFor = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_size_t, Task, ctypes.c_void_p)

SCALE_BYTES = 2
"""`DRL_SCALE_BYTES`: of an int8 key or value, what lies behind its numbers."""

FLOAT_PANEL = 64
"""`DRL_FLOAT_PANEL`: columns of a panel of float weights."""

_POINTER = ctypes.c_void_p
_SIZE = ctypes.c_size_t


class Execution(ctypes.Structure):
    """`drl_execution`."""

    _fields_ = (("isa", ctypes.c_int), ("parallel_for", ParallelFor), ("context", _POINTER))


class Workspace(ctypes.Structure):
    """`drl_workspace`."""

    _fields_ = (("data", _POINTER), ("bytes", _SIZE))


class Weights(ctypes.Structure):
    """`drl_weights`."""

    _fields_ = (
        ("format", ctypes.c_int),
        ("matrices", ctypes.c_uint64),
        ("columns", ctypes.c_uint64),
        ("depth", ctypes.c_uint64),
        ("values", _POINTER),
        ("multipliers", _POINTER),
        ("scales", _POINTER),
    )


class Rows(ctypes.Structure):
    """`drl_rows`."""

    _fields_ = (("x", _POINTER), ("count", _SIZE), ("norm", _POINTER), ("epsilon", ctypes.c_float))


class Output(ctypes.Structure):
    """`drl_output`."""

    _fields_ = (("y", _POINTER), ("columns", _SIZE))


class Linear(ctypes.Structure):
    """`drl_linear`."""

    _fields_ = (
        ("weights", Weights),
        ("rows", Rows),
        ("bias", _POINTER),
        ("residual", _POINTER),
        ("activation", ctypes.c_int),
        ("outputs", Output * 3),
    )


class FloatLinear(ctypes.Structure):
    """`drl_float_linear`."""

    _fields_ = (
        *((name, _SIZE) for name in ("matrices", "columns", "depth")),
        ("weights", _POINTER),
        ("rows", Rows),
        ("bias", _POINTER),
        ("residual", _POINTER),
        ("activation", ctypes.c_int),
        ("outputs", Output * 3),
    )


class Head(ctypes.Structure):
    """`drl_head`."""

    _fields_ = (
        ("weights", Weights),
        ("rows", Rows),
        ("bias", _POINTER),
        ("factor", ctypes.c_float),
        ("logits", _POINTER),
        ("k", _SIZE),
        ("values", _POINTER),
        ("ids", _POINTER),
        ("normalisers", _POINTER),
    )


class FloatHead(ctypes.Structure):
    """`drl_float_head`."""

    _fields_ = (
        *((name, _SIZE) for name in ("rows", "depth", "columns")),
        *((name, _POINTER) for name in ("x", "weight", "bias")),
        ("factor", ctypes.c_float),
        ("logits", _POINTER),
        ("k", _SIZE),
        *((name, _POINTER) for name in ("values", "ids", "normalisers")),
    )


class RoutedFfn(ctypes.Structure):
    """`drl_routed_ffn`."""

    _fields_ = (
        ("up", Weights),
        ("gate", Weights),
        ("down", Weights),
        ("up_bias", _POINTER),
        ("gate_bias", _POINTER),
        ("down_bias", _POINTER),
        ("activation", ctypes.c_int),
        ("x", _POINTER),
        ("expert_ids", _POINTER),
        ("gates", _POINTER),
        ("tokens", _SIZE),
        ("choices", _SIZE),
        ("residual", _POINTER),
        ("y", _POINTER),
    )


class FloatRoutedFfn(ctypes.Structure):
    """`drl_float_routed_ffn`."""

    _fields_ = (
        *((name, _SIZE) for name in ("tokens", "choices", "experts", "width", "inner")),
        *((name, _POINTER) for name in ("x", "expert_ids", "gates", "up", "gate", "down")),
        *((name, _POINTER) for name in ("up_bias", "gate_bias", "down_bias")),
        ("activation", ctypes.c_int),
        ("y", _POINTER),
    )


class CachedAttention(ctypes.Structure):
    """`drl_cached_attention`."""

    _fields_ = (
        *((name, _SIZE) for name in ("rows", "tokens", "heads", "kv_heads", "width", "capacity")),
        ("scale", ctypes.c_float),
        *((name, _POINTER) for name in ("q", "k", "v", "keys", "values", "lengths", "bias")),
        ("bias_rows", _SIZE),
        ("slots", _SIZE),
        ("y", _POINTER),
    )


class CrossAttention(ctypes.Structure):
    """`drl_cross_attention`."""

    _fields_ = (
        *(
            (name, _SIZE)
            for name in ("rows", "sources", "tokens", "heads", "kv_heads", "width", "states")
        ),
        ("scale", ctypes.c_float),
        *((name, _POINTER) for name in ("q", "keys", "values", "bias", "y")),
    )


class EncoderAttention(ctypes.Structure):
    """`drl_encoder_attention`."""

    _fields_ = (
        *((name, _SIZE) for name in ("rows", "tokens", "heads", "kv_heads", "width")),
        ("scale", ctypes.c_float),
        *((name, _POINTER) for name in ("q", "k", "v", "lengths", "bias")),
        ("distances", _SIZE),
        ("y", _POINTER),
    )


class QuantizedCachedAttention(CachedAttention):
    """`drl_quantized_cached_attention`: the same fields, over int8."""


class QuantizedCrossAttention(CrossAttention):
    """`drl_quantized_cross_attention`: the same fields, over int8."""


class QuantizeStates(ctypes.Structure):
    """`drl_quantize_states`."""

    _fields_ = (
        *((name, _SIZE) for name in ("rows", "states", "kv_heads", "width")),
        *((name, _POINTER) for name in ("x", "y")),
    )


class ExpertRoute(ctypes.Structure):
    """`drl_expert_route`."""

    _fields_ = (
        *((name, _SIZE) for name in ("tokens", "depth", "experts", "groups", "k")),
        *((name, _POINTER) for name in ("x", "weight", "bias")),
        ("prior_scale", ctypes.c_float),
        *(
            (name, _POINTER)
            for name in ("group_log_probs", "allowed", "token_mask", "expert_ids", "gates")
        ),
    )


_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "drl_status_message": (ctypes.c_char_p, (ctypes.c_int,)),
    "drl_isa_by_name": (ctypes.c_int, (ctypes.c_char_p, _POINTER)),
    "drl_default_isa": (ctypes.c_int, (_POINTER,)),
    **{
        f"drl_{part}_bytes": (_SIZE, (ctypes.c_int, *(ctypes.c_uint64,) * 3))
        for part in ("values", "multipliers", "scales")
    },
    "drl_gather_rows": (ctypes.c_int, (_POINTER, _POINTER, _SIZE, _POINTER, _POINTER)),
}
_OPERATORS = (
    *("linear", "float_linear", "head", "float_head", "routed_ffn", "float_routed_ffn"),
    "expert_route",
    *("cached_attention", "cross_attention", "encoder_attention"),
    *("quantized_cached_attention", "quantized_cross_attention", "quantize_states"),
)
for _name in _OPERATORS:
    _FUNCTIONS[f"drl_{_name}_workspace_bytes"] = (_SIZE, (_POINTER,))
    _FUNCTIONS[f"drl_{_name}_run"] = (ctypes.c_int, (_POINTER, Workspace, _POINTER))


def function(library: ctypes.CDLL, name: str) -> Any:
    """A function of the library with its types."""
    found = getattr(library, name)
    found.restype, found.argtypes = _FUNCTIONS[name]
    return found


def address(array: NDArray[Any] | None) -> int | None:
    """Where an array lies; None for None."""
    return None if array is None else array.ctypes.data
