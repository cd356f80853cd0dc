"""Typed graph inputs for operators, with symbolic dimensions."""

import onnx_ir as ir
import onnxscript

FP32, FP16 = ir.DataType.FLOAT, ir.DataType.FLOAT16
BOOL, INT32, INT64 = ir.DataType.BOOL, ir.DataType.INT32, ir.DataType.INT64


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


def dims(result: ir.Value) -> list[int | str | None]:
    assert result.shape is not None
    return [dim if isinstance(dim, int) else dim.value for dim in result.shape]
