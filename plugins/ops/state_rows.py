"""Keys and values as rows of int8: what a cache of 8 bits holds of a head at one position.

A row has the h values of the head and, in two bytes behind them, their scale. The scale is a
float32 of 16 bits, without a sign: the byte h holds the upper 8 bits of its mantissa, and the last
byte its exponent, as float32 has it. So a row of zero bytes stands for zeros.
"""

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxscript
from numpy.typing import NDArray

from drl.plugins.ops.packing import SMALLEST

Float32 = NDArray[np.float32]
Int8 = NDArray[np.int8]

SCALE_BYTES = 2
"""Bytes of a row that hold its scale."""

_MOST = np.float32(127)
_SHIFT = np.uint32(15)  # bits of a float32 that a scale leaves out
_NAN = np.uint32(0xFF80)
_BIAS = 127  # of the exponent
_STEPS = 256  # of the mantissa


def quantize_states(x: Float32) -> Int8:
    """Round every head to int8: scale = max|x| / 127, rounded up to 16 bits, q = x · (1 / scale).

    q is rounded to the nearest, ties to even. A head whose largest magnitude is below 2⁻¹¹⁹ counts
    as zeros. One that holds NaN or infinity has the scale NaN.

    Args:
        x: `[..., h]`.

    Returns:
        `[..., h + 2]`.
    """
    largest = np.abs(x).max(axis=-1, keepdims=True, initial=0)
    finite = np.isfinite(largest)
    used = finite & (largest >= SMALLEST)
    exact = np.where(used, largest, np.float32(1)).astype(np.float32) / _MOST
    code = (exact.view(np.uint32) + ((np.uint32(1) << _SHIFT) - np.uint32(1))) >> _SHIFT
    inverse = np.float32(1) / (code << _SHIFT).view(np.float32)
    values = np.rint(np.where(used, x, np.float32(0)) * inverse).astype(np.int8)
    code = np.where(used, code, np.where(finite, np.uint32(0), _NAN))
    scales = code.astype("<u2").view(np.int8)
    return np.concatenate([values, scales], axis=-1)


def dequantize_states(rows: Int8) -> Float32:
    """The heads that rows `[..., h + 2]` stand for, `[..., h]`."""
    values = rows[..., :-SCALE_BYTES].astype(np.float32)
    code = np.ascontiguousarray(rows[..., -SCALE_BYTES:]).view("<u2").astype(np.uint32)
    result: Float32 = values * (code << _SHIFT).view(np.float32)
    return result


def trace_quantized(op: onnxscript.OpBuilder, x: ir.Value) -> Any:
    """Add `quantize_states` to a graph."""
    # 0 for a finite row, else NaN. Maxima and comparisons do not agree on NaN, sums do.
    odd = op.IsNaN(op.ReduceSum(op.Sub(x, x), [-1], keepdims=1))
    finite = op.Where(odd, 0.0, x)
    largest = op.ReduceMax(op.Abs(finite), [-1], keepdims=1)
    used = op.GreaterOrEqual(largest, float(SMALLEST))
    exact = op.Div(op.Where(used, largest, 1.0), float(_MOST))
    exponent = _trace_exponent(op, exact)
    part = op.Sub(op.Div(exact, op.Pow(2.0, exponent)), 1.0)
    steps = op.Ceil(op.Mul(part, float(_STEPS)))
    carried = op.GreaterOrEqual(steps, float(_STEPS))
    mantissa = op.Where(carried, 0.0, steps)
    exponent = op.Where(carried, op.Add(exponent, 1.0), exponent)
    inverse = op.Div(1.0, _trace_scale(op, exponent, mantissa))
    values = op.Round(op.Mul(op.Where(used, finite, 0.0), inverse))
    nan_mantissa, nan_exponent = float(_NAN % _STEPS), float(_NAN // _STEPS)
    low = op.Where(odd, nan_mantissa, op.Where(used, mantissa, 0.0))
    high = op.Where(odd, nan_exponent, op.Where(used, op.Add(exponent, float(_BIAS)), 0.0))
    parts = [values, *(op.Where(op.Less(x, 128.0), x, op.Sub(x, 256.0)) for x in (low, high))]
    return op.Cast(op.Concat(*parts, axis=-1), to=ir.DataType.INT8)


def trace_dequantized(op: onnxscript.OpBuilder, rows: ir.Value) -> Any:
    """Add `dequantize_states` to a graph."""
    width = op.Sub(op.Shape(rows, start=-1), [SCALE_BYTES])
    sizes = op.Concat(width, [1, 1], axis=0)
    values, low, high = op.Split(op.Cast(rows, to=ir.DataType.FLOAT), sizes, axis=-1, _outputs=3)
    mantissa, stored = (op.Where(op.Less(x, 0.0), op.Add(x, 256.0), x) for x in (low, high))
    scale = _trace_scale(op, op.Sub(stored, float(_BIAS)), mantissa)
    scale = op.Where(op.Equal(stored, 0.0), 0.0, scale)
    scale = op.Where(op.Equal(stored, float(_NAN // _STEPS)), np.nan, scale)
    return op.Mul(values, scale)


def _trace_exponent(op: onnxscript.OpBuilder, x: ir.Value) -> Any:
    """Trace floor(log2(x)), exactly: what a logarithm gives may be off by one."""
    near = op.Floor(op.Div(op.Log(x), float(np.log(2))))
    power = op.Pow(2.0, near)
    below = op.Cast(op.Less(x, power), to=ir.DataType.FLOAT)
    above = op.Cast(op.GreaterOrEqual(x, op.Mul(power, 2.0)), to=ir.DataType.FLOAT)
    return op.Add(near, op.Sub(above, below))


def _trace_scale(op: onnxscript.OpBuilder, exponent: ir.Value, mantissa: ir.Value) -> Any:
    return op.Mul(op.Pow(2.0, exponent), op.Add(op.Div(mantissa, float(_STEPS)), 1.0))
