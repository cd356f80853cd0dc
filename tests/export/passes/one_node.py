"""Graphs of one operator's node, for passes that put others in its place."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxscript

from drl.plugins.ops import DOMAIN
from tests.plugins.ops.case import Array, Case
from tests.plugins.ops.engines import run_onnxruntime

Dims = list[int | str]


def one_node(
    case: Case, dims: Mapping[str, Dims] | None = None, constants: Collection[str] = ()
) -> ir.Model:
    """A graph of the node that a case calls.

    Args:
        case: Its inputs are the graph's, its outputs too.
        dims: Of inputs whose sizes are not all symbolic.
        constants: Inputs that are weights of the graph.
    """
    imports = {"": 24, DOMAIN: 1}
    graph = ir.Graph([], [], nodes=[], opset_imports=imports, name="one_node")
    builder = onnxscript.GraphBuilder(graph)
    values = {}
    for name, array in case.inputs.items():
        if name in constants:
            values[name] = builder.initializer(ir.tensor(array, name=name))
        else:
            kind = ir.DataType.from_numpy(array.dtype)
            sizes = (dims or {}).get(name, [f"{name}_{axis}" for axis in range(array.ndim)])
            values[name] = builder.input(name, kind, sizes)
    given = [values.get(argument.name) for argument in case.operator.inputs]
    results = case.operator.emit(builder.op, *given, **case.attributes)
    outputs = results if isinstance(results, tuple) else (results,)
    for argument, value in zip(case.operator.outputs, outputs, strict=True):
        builder.add_output(value, argument.name)
    for node in graph:
        node.metadata_props.clear()
    return ir.Model(graph, ir_version=11)


def run(model: ir.Model, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Check the graph, and run it on ONNX Runtime."""
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    inputs = {value.name for value in proto.graph.input}
    return run_onnxruntime(proto, {name: x for name, x in feeds.items() if name in inputs})


def check(case: Case, outputs: Mapping[str, Array]) -> None:
    """Hold the outputs against the operator's reference."""
    for name, expected in case.expected().items():
        assert outputs[name].dtype == expected.dtype, name
        assert outputs[name].shape == expected.shape, name
        close: Any = {"atol": case.tolerance, "rtol": case.tolerance}
        wide = expected.astype(np.float32), outputs[name].astype(np.float32)
        np.testing.assert_allclose(wide[1], wide[0], err_msg=name, **close)


def domains(model: ir.Model) -> set[str]:
    """The domains of all nodes."""
    return {node.domain for node in model.graph.all_nodes()}
