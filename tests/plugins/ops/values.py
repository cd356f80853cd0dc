"""Typed graph inputs for operators, with symbolic dimensions."""

import onnx_ir as ir
import onnxscript

FP32, FP16 = ir.DataType.FLOAT, ir.DataType.FLOAT16
BOOL, INT32, INT64 = ir.DataType.BOOL, ir.DataType.INT32, ir.DataType.INT64
UINT8 = ir.DataType.UINT8


def new_builder() -> onnxscript.GraphBuilder:
    return onnxscript.GraphBuilder(ir.Graph([], [], nodes=[], opset_imports={"": 24}, name="graph"))


def value(name: str, dtype: ir.DataType, *shape: int | str | None) -> ir.Value:
    return ir.val(name, dtype, shape)


def attention_inputs(dtype: ir.DataType = FP32) -> list[ir.Value]:
    return [
        value("q", dtype, "B", "T", 32),
        value("k", dtype, "B", "T", 16),
        value("v", dtype, "B", "T", 16),
        value("past_k", dtype, "B", 2, "C", 8),
        value("past_v", dtype, "B", 2, "C", 8),
        value("lengths", INT32, "B"),
    ]


def ffn_inputs(*, gated: bool) -> list[ir.Value]:
    inputs = [
        value("hidden", FP32, "B", "T", 16),
        value("ids", INT32, "B", "T", "k"),
        value("gates", FP32, "B", "T", "k"),
        value("up", FP32, 4, 16, 24),
        value("down", FP32, 4, 24, 16),
    ]
    return [*inputs, value("gate", FP32, 4, 16, 24)] if gated else inputs


def linear_inputs(*, matrices: int = 1, bits: int | None = None) -> list[ir.Value | None]:
    """x and packed weights of 45 columns and depth 37, in blocks of `bits` to a value if given."""
    inputs: list[ir.Value | None] = [value("x", FP32, "B", "T", 37)]
    if bits is None:
        return [
            *inputs,
            value("weight", UINT8, matrices, 2, 10, 32, 4),
            value("scale", FP32, matrices, 64),
            None,
        ]
    return [
        *inputs,
        value("weight", UINT8, matrices, 2, 2, bits, 32, 4),
        value("scale", FP32, matrices, 64),
        value("multiplier", UINT8, matrices, 2, 2, 32),
    ]


def linear_attributes(activation: str = "none") -> dict[str, int | float | str]:
    return {"columns": 45, "activation": activation, "epsilon": 0.0, "layout": 2}


def dims(result: ir.Value) -> list[int | str | None]:
    assert result.shape is not None
    return [dim if isinstance(dim, int) else dim.value for dim in result.shape]
