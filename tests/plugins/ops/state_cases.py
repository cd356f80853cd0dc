"""Inputs that every implementation of attention over keys and values of int8 must get right."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from drl.plugins.ops import (
    CACHED_ATTENTION,
    CROSS_ATTENTION,
    QUANTIZE_STATES,
    QUANTIZED_CACHED_ATTENTION,
    QUANTIZED_CROSS_ATTENTION,
)
from drl.plugins.ops.state_rows import quantize_states
from tests.plugins.ops.case import TOLERANCES, Array, Case, Maker

# What holds states, by operator, and what becomes of the operator where they are int8.
_STATES = {CACHED_ATTENTION.name: ("past_k", "past_v"), CROSS_ATTENTION.name: ("k", "v")}
_QUANTIZED = {
    CACHED_ATTENTION.name: QUANTIZED_CACHED_ATTENTION,
    CROSS_ATTENTION.name: QUANTIZED_CROSS_ATTENTION,
}


def quantized_attention_cases(cases: list[Case]) -> Iterator[Case]:
    """The fp32 cases of attention among `cases`, with states of int8."""
    for case in cases:
        if case.operator.name in _STATES and case.precision == "fp32":
            states = {
                name: quantize_states(case.inputs[name]) for name in _STATES[case.operator.name]
            }
            operator = _QUANTIZED[case.operator.name]
            yield replace(case, operator=operator, inputs={**case.inputs, **states})


def odd_heads(x: Array) -> Array:
    """States `[B, K, N*h]`, some of zeros, tiny, huge or not finite, and around powers of two."""
    x = x.copy()
    flat = x.reshape(-1, x.shape[-1])
    for row, factor in enumerate((0.0, 1e-37, 2.0**-119, 1e-30, 1e30, 3e38)):
        flat[row] = np.sign(flat[row]) * np.float32(factor)
    for row, value in enumerate((np.nan, np.inf, -np.inf)):
        flat[6 + row, row] = value
    for row, exponent in enumerate(range(-100, 100, 7)):
        largest = np.float32(127 * 2.0**exponent)
        flat[10 + 3 * row : 13 + 3 * row, 0] = (
            largest,
            np.nextafter(largest, np.float32(0)),
            np.nextafter(largest, np.float32(np.inf)),
        )
        flat[10 + 3 * row : 13 + 3 * row, 1:] *= largest / 8
    return x


def quantize_states_cases() -> Iterator[Case]:
    """Cases of `QuantizeStates`."""
    for heads, width in ((2, 8), (1, 1), (3, 5), (4, 64)):
        name = f"{heads}x{width}"
        x = Maker(name, "fp32").f32(2, 7, heads * width)
        attributes = {"kv_heads": heads, "head_dim": width}
        yield Case(QUANTIZE_STATES, name, {"x": x}, attributes, "fp32", TOLERANCES["fp32"])
    x = odd_heads(Maker("odd", "fp32").f32(3, 40, 6))
    attributes = {"kv_heads": 1, "head_dim": 6}
    yield Case(QUANTIZE_STATES, "odd", {"x": x}, attributes, "fp32", TOLERANCES["fp32"])
