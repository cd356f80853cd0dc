"""Calls of the kernels: which arguments, which grid, which outputs. Arrays may be anyone's."""

from dataclasses import dataclass
from typing import Any

from drl.plugins.cuda.array_checks import check_arrays
from drl.plugins.cuda.errors import CudaKernelError
from drl.plugins.cuda.kernels import (
    CombineKernel,
    ExpertRouteKernel,
    FloatType,
    InnerKernel,
    Kernel,
    WeightType,
)
from drl.plugins.cuda.tiling import MAX_EXPERTS, Tiling, choose_tiling
from drl.plugins.ops import EXPERT_ROUTE, ROUTED_FFN_COMBINE, ROUTED_FFN_INNER

_FLOATS: dict[str, FloatType] = {
    "float32": "fp32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "uint16": "bf16",  # where an array library has no bfloat16
}
Array = Any
"""A NumPy or CuPy array: C-contiguous, with `shape` and `dtype`."""


@dataclass(frozen=True)
class Output:
    """An array that a kernel fills.

    Attributes:
        shape: Its shape.
        dtype: Its type as NumPy names it; None for that of the states.
    """

    shape: tuple[int, ...]
    dtype: str | None = None


@dataclass(frozen=True)
class Call:
    """One launch of a kernel: pointers to inputs, then sizes, then pointers to outputs.

    Attributes:
        kernel: What to launch.
        inputs: Arrays, in the kernel's order.
        sizes: Int32 arguments.
        outputs: What comes after them.
        grid: Blocks along x and y.
    """

    kernel: Kernel
    inputs: tuple[Array, ...]
    sizes: tuple[int, ...]
    outputs: tuple[Output, ...]
    grid: tuple[int, int]


def expert_route_call(
    hidden: Array,
    weight: Array,
    prior_scale: Array,
    group_log_probs: Array,
    allowed: Array,
    token_mask: Array,
    k: int,
    bias: Array | None = None,
) -> Call:
    """`ExpertRoute`, with the arguments of its reference; k is a number.

    Raises:
        CudaKernelError: The arrays do not fit each other or the kernel.
    """
    masks = {"allowed": _as_int32(allowed), "token_mask": _as_int32(token_mask)}
    given = {"hidden": hidden, "weight": weight, "prior_scale": prior_scale}
    given |= {"group_log_probs": group_log_probs, **masks, "bias": bias}
    check_arrays(EXPERT_ROUTE, given)
    batch, steps, width = hidden.shape
    experts, groups = weight.shape[1], group_log_probs.shape[2]
    _check_experts(experts)
    if experts % groups:
        raise CudaKernelError(f"ExpertRoute: {experts} experts do not make {groups} equal groups")
    if not 1 <= k <= experts:
        raise CudaKernelError(f"ExpertRoute chooses {k} of {experts} experts; choose fewer")
    kernel = ExpertRouteKernel(_float_type(hidden), bias is not None)
    tokens = batch * steps
    return Call(
        kernel,
        _given(*given.values()),
        (width, experts, groups, k),
        (Output((batch, steps, k), "int32"), Output((batch, steps, k), "float32")),
        kernel.grid(tokens),
    )


def routed_ffn_inner_call(
    hidden: Array,
    expert_ids: Array,
    up: Array,
    gate: Array | None = None,
    up_bias: Array | None = None,
    gate_bias: Array | None = None,
    up_scale: Array | None = None,
    gate_scale: Array | None = None,
    *,
    activation: str,
    tiling: Tiling | None = None,
) -> Call:
    """`RoutedFFNInner`, with the arguments of its reference.

    Weights may be int8 with `up_scale` and `gate_scale`, float32 `[E, f]`: a weight is its value
    times the scale of its expert's column. A gate has a bias where `up` has one, and only there.

    Raises:
        CudaKernelError: The arrays do not fit each other or the kernel.
    """
    given = {"hidden": hidden, "expert_ids": expert_ids, "up": up, "gate": gate}
    scales = {"up": up_scale, "gate": gate_scale}
    check_arrays(ROUTED_FFN_INNER, {**given, "up_bias": up_bias, "gate_bias": gate_bias}, scales)
    batch, steps, width = hidden.shape
    places, experts, inner = expert_ids.shape[2], up.shape[0], up.shape[2]
    _check_experts(experts)
    _check_together("RoutedFFNInner", up_bias=up_bias, gate_bias=gate_bias, gate=gate)
    dtype, weight = _float_type(hidden), _weight_type(up, up_scale)
    slots = batch * steps * places
    if tiling is None:
        narrowest = 4 if weight == "int8" else 2
        tiling = choose_tiling(slots, experts, inner, steps=steps, narrowest=narrowest)
    kernel = InnerKernel(dtype, weight, activation, tiling, up_bias is not None)
    if kernel.gated != (gate is not None):
        raise CudaKernelError(f"RoutedFFNInner: {activation} and the gate do not fit")
    return Call(
        kernel,
        _given(hidden, expert_ids, up, gate, up_scale, gate_scale, up_bias, gate_bias),
        (batch * steps, places, experts, width, inner),
        (Output((batch, steps, places, inner)),),
        kernel.grid(slots, experts, inner),
    )


def routed_ffn_combine_call(
    inner: Array,
    expert_ids: Array,
    gates: Array,
    down: Array,
    down_bias: Array | None = None,
    down_scale: Array | None = None,
    *,
    tiling: Tiling | None = None,
) -> Call:
    """`RoutedFFNCombine`, with the arguments of its reference, or int8 weights and `down_scale`.

    Raises:
        CudaKernelError: The arrays do not fit each other or the kernel.
    """
    given = {"inner": inner, "expert_ids": expert_ids, "gates": gates, "down": down}
    check_arrays(ROUTED_FFN_COMBINE, {**given, "down_bias": down_bias}, {"down": down_scale})
    batch, steps, places, depth = inner.shape
    experts, width = down.shape[0], down.shape[2]
    _check_experts(experts)
    dtype, weight = _float_type(inner), _weight_type(down, down_scale)
    if tiling is None:
        tiling = _combine_tiling(batch * steps, steps, places, experts, width, weight)
    kernel = CombineKernel(dtype, weight, tiling, places == 1, down_bias is not None)
    return Call(
        kernel,
        _given(inner, expert_ids, gates, down, down_scale, down_bias),
        (batch * steps, places, experts, depth, width),
        (Output((batch, steps, width)),),
        kernel.grid(batch * steps, experts, width),
    )


def _combine_tiling(
    tokens: int, steps: int, places: int, experts: int, width: int, weight: WeightType
) -> Tiling:
    narrowest = 4 if weight == "int8" else 2
    if places == 1:
        return choose_tiling(tokens, experts, width, steps=steps, narrowest=narrowest)
    # A block goes through all experts of its tokens, so only the columns make blocks.
    slots = tokens * places
    chosen = choose_tiling(slots, experts, width, steps=steps, narrowest=narrowest)
    blocks = width // 32
    narrow = narrowest == 2 and blocks < 64
    return chosen if chosen.wide else Tiling(2 if narrow else 4, chosen.tiles)


def _as_int32(mask: Array) -> Array:
    return mask if str(mask.dtype) == "int32" else mask.astype("int32")


def _given(*arrays: Array | None) -> tuple[Array, ...]:
    return tuple(array for array in arrays if array is not None)


def _float_type(array: Array) -> FloatType:
    name = str(array.dtype)
    if name not in _FLOATS:
        raise CudaKernelError(
            f"states must be float32, float16 or bfloat16, not {name}; convert them"
        )
    return _FLOATS[name]


def _weight_type(array: Array, scale: Array | None) -> WeightType:
    name = str(array.dtype)
    if (name == "int8") != (scale is not None):
        raise CudaKernelError(f"weights of {name}: int8 needs a scale, and nothing else takes one")
    if name == "int8":
        return "int8"
    if name == "float32" or name not in _FLOATS:
        raise CudaKernelError(
            f"weights must be float16, bfloat16 or int8, not {name}; convert them"
        )
    return "fp16" if _FLOATS[name] == "fp16" else "bf16"


def _check_experts(experts: int) -> None:
    if experts > MAX_EXPERTS:
        raise CudaKernelError(f"the kernels take at most {MAX_EXPERTS} experts, not {experts}")


def _check_together(
    operator: str, *, up_bias: Array | None, gate_bias: Array | None, gate: Array | None
) -> None:
    if gate is not None and (up_bias is None) != (gate_bias is None):
        raise CudaKernelError(
            f"{operator} takes the biases of up and gate together; give zeros for the other"
        )
