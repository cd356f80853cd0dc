"""Graphs of one native operator, and sessions that have no other way to run it.

The graphs hold no function bodies, so only a kernel of the library can run their nodes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper
from onnx.helper import np_dtype_to_tensor_dtype

from drl.plugins.native import find_library
from drl.plugins.ops import DOMAIN, Operator
from tests.plugins.ops.case import Array

OPSETS = [helper.make_opsetid("", 24), helper.make_opsetid(DOMAIN, 1)]


@dataclass(frozen=True)
class Node:
    """A call of an operator: arrays by the names of its inputs, and its attributes."""

    operator: Operator
    inputs: dict[str, Array]
    attributes: dict[str, Any] = field(default_factory=dict)
    name: str = ""

    def __str__(self) -> str:
        return f"{self.operator.name}-{self.name}"

    @property
    def outputs(self) -> list[str]:
        return [argument.name for argument in self.operator.outputs]

    def expected(self) -> list[Array]:
        """What the NumPy reference gives."""
        results = self.operator.reference(**self.inputs, **self.attributes)
        return list(results) if isinstance(results, tuple) else [results]

    def proto(self) -> onnx.NodeProto:
        names = [a.name if a.name in self.inputs else "" for a in self.operator.inputs]
        while not names[-1]:
            names.pop()
        return helper.make_node(
            self.operator.name, names, self.outputs, domain=DOMAIN, **self.attributes
        )

    def values(self) -> list[onnx.ValueInfoProto]:
        """The inputs of a graph of this node, with open dimensions."""
        return [
            helper.make_tensor_value_info(
                name, np_dtype_to_tensor_dtype(array.dtype), [None] * array.ndim
            )
            for name, array in self.inputs.items()
        ]

    def model(self) -> onnx.ModelProto:
        return graph_model(self, [self.proto()])


def graph_model(
    node: Node,
    nodes: Sequence[onnx.NodeProto],
    functions: Sequence[onnx.FunctionProto] = (),
    values: Sequence[onnx.ValueInfoProto] = (),
) -> onnx.ModelProto:
    """A model with the inputs of a node, more `values` beside them, and the node's outputs."""
    outputs = [
        helper.make_tensor_value_info(argument.name, argument.dtype or TensorProto.FLOAT, None)
        for argument in node.operator.outputs
    ]
    graph = helper.make_graph(list(nodes), "graph", [*node.values(), *values], outputs)
    return helper.make_model(graph, functions=list(functions), opset_imports=OPSETS, ir_version=10)


def session(model: onnx.ModelProto, threads: int = 1) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.register_custom_ops_library(str(find_library().path))
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run(node: Node, threads: int = 1) -> list[Array]:
    return list(session(node.model(), threads).run(node.outputs, node.inputs))


def same_bits(one: Sequence[Array], other: Sequence[Array]) -> bool:
    return all(
        (x.shape, x.dtype, x.tobytes()) == (y.shape, y.dtype, y.tobytes())
        for x, y in zip(one, other, strict=True)
    )


def draw(*shape: int, scale: float = 1.0) -> Array:
    """Normal float32, the same for the same shape."""
    return np.asarray(np.random.default_rng(list(shape)).normal(0, scale, shape), np.float32)
