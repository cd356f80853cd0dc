"""Runs a graph of one `drl` operator, as its body alone defines it, on ONNX engines."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import onnxscript
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from drl.plugins.ops import Operator, functions_for

Array = NDArray[Any]


def one_node_model(
    operator: Operator,
    inputs: dict[str, Array],
    attributes: dict[str, Any],
    constants: Collection[str] = (),
) -> onnx.ModelProto:
    """A checked model of one node and its function; all dimensions of its inputs are symbolic.

    Those of the inputs that are `constants` are initializers of the model.
    """
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 24}, name="one_node")
    builder = onnxscript.GraphBuilder(graph)
    values = {
        name: builder.initializer(ir.tensor(array, name=name))
        if name in constants
        else builder.input(
            name,
            ir.DataType.from_numpy(array.dtype),
            [f"{name}_{axis}" for axis in range(array.ndim)],
        )
        for name, array in inputs.items()
    }
    given = [values.get(argument.name) for argument in operator.inputs]
    results = operator.emit(builder.op, *given, **attributes)
    outputs = results if isinstance(results, tuple) else (results,)
    for argument, value in zip(operator.outputs, outputs, strict=True):
        builder.add_output(value, argument.name)
    model = ir.Model(graph, ir_version=11)
    for function in functions_for(graph.all_nodes()):
        model.functions[function.identifier()] = function
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def session(model: onnx.ModelProto, saved: Path | None = None) -> ort.InferenceSession:
    """ONNX Runtime on one thread; the graph that it makes of the model goes to `saved`."""
    options = ort.SessionOptions()
    if saved is not None:
        options.optimized_model_filepath = str(saved)
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # TensorScatter warns when it has to copy the cache
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def to_ort(array: Array) -> ort.OrtValue:
    if array.dtype == ml_dtypes.bfloat16:
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, onnx.TensorProto.BFLOAT16)
    return ort.OrtValue.ortvalue_from_numpy(array)


def run_evaluator(model: onnx.ModelProto, inputs: dict[str, Array]) -> dict[str, Array]:
    """Run ONNX's own reference evaluator."""
    names = [output.name for output in model.graph.output]
    with np.errstate(all="ignore"):
        results = ReferenceEvaluator(model).run(names, inputs)
    return dict(zip(names, results, strict=True))


def run_onnxruntime(model: onnx.ModelProto, inputs: dict[str, Array]) -> dict[str, Array]:
    """Run ONNX Runtime on the CPU; the function is inlined."""
    names = [output.name for output in model.graph.output]
    feeds = {name: to_ort(array) for name, array in inputs.items()}
    results = session(model).run_with_ort_values(names, feeds)
    return {name: value.numpy() for name, value in zip(names, results, strict=True)}
