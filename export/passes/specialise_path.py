"""Specialise a graph to one decoding path: what the path decides becomes constant."""

import re
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes.common import RemoveUnusedNodesPass

_PER_LAYER = re.compile(
    r"(?:(?:past|present|cross)_[kv]|decoder_experts|(?:states|routes)\.decoder\.layers)"
    r"\.(?P<layer>\d+)(?:\..*)?"
)
"""Inputs and outputs of one decoder layer, those of graphs that tell states or take routes too."""


class SpecialisePath(ir.passes.InPlacePass):
    """Make the input `path` a constant, and leave out the layers that the path skips.

    What is computed from the path alone is folded; an `If` that hangs on it gives way to the
    branch that it takes. Skipped layers lose their inputs and outputs, and those of the others
    have the sizes of every layer: `K` and not `K.2`. A graph without the input `path` stays as it
    is.

    Args:
        path: Index of the path.
        layers: The decoder layers that it runs.
    """

    def __init__(self, path: int, layers: tuple[int, ...]) -> None:
        super().__init__()
        self._path = path
        self._layers = layers

    def requires(self, model: ir.Model) -> None:
        """Check that `path` is one number, and that every `If` can be decided."""
        path = _input(model.graph, "path")
        if path is not None and (path.dtype != ir.DataType.INT64 or path.shape != ()):
            raise ir.passes.PreconditionError("the input `path` is no int64 scalar")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold the path, and drop what then is dead."""
        graph = model.graph
        path = _input(graph, "path")
        if path is None:
            return ir.passes.PassResult(model, modified=False)
        graph.inputs.remove(path)
        _make_constant(graph, path, np.array(self._path, np.int64))
        _fold(graph, path)
        for output in list(graph.outputs):
            if self._is_skipped(output.name):
                graph.outputs.remove(output)
        RemoveUnusedNodesPass()(model)
        for value in list(graph.inputs):
            if self._is_skipped(value.name):
                if value.uses():
                    raise ir.passes.PostconditionError(f"a skipped layer reads {value.name}")
                graph.inputs.remove(value)
        for value in (*graph.inputs, *graph.outputs):
            _share_sizes(value)
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """Check that no `If` of a layer is left."""
        left = [node.name for node in model.graph if node.op_type == "If"]
        if left:
            raise ir.passes.PostconditionError(f"the path does not decide {left}")

    def _is_skipped(self, name: str | None) -> bool:
        found = _PER_LAYER.fullmatch(name or "")
        return found is not None and int(found["layer"]) not in self._layers


def _share_sizes(value: ir.Value) -> None:
    """Call a dimension `K` that is called `K.2` for layer 2, which a path may skip."""
    if value.shape is not None:
        names = (dim if isinstance(dim, int) else dim.value for dim in value.shape)
        value.shape = ir.Shape([n.split(".")[0] if isinstance(n, str) else n for n in names])


def _input(graph: ir.Graph, name: str) -> ir.Value | None:
    return next((value for value in graph.inputs if value.name == name), None)


def _make_constant(graph: ir.Graph, value: ir.Value, array: np.ndarray) -> None:
    value.const_value = ir.tensor(array, name=value.name)
    value.type, value.shape = ir.TensorType(value.const_value.dtype), ir.Shape(array.shape)
    graph.register_initializer(value)


def _fold(graph: ir.Graph, constant: ir.Value) -> None:
    """Evaluate what reads `constant` and nothing that varies, and all that follows from it."""
    for node in list(constant.consumers()):
        if node.op_type == "If" and node.inputs[0] is constant:
            _inline_branch(graph, node, bool(_array(constant)))
        elif node.graph is graph and all(_is_known(v) for v in node.inputs):
            given = {value.name or "": _array(value) for value in node.inputs if value is not None}
            (result,) = ReferenceEvaluator(ir.serde.serialize_node(node)).run(None, given)
            value = ir.Value(name=f"{node.outputs[0].name}.folded")
            _make_constant(graph, value, np.asarray(result))
            node.outputs[0].replace_all_uses_with(value)
            _fold(graph, value)


def _is_known(value: ir.Value | None) -> bool:
    return value is None or value.const_value is not None


def _array(value: ir.Value) -> Any:
    assert value.const_value is not None
    return value.const_value.numpy()


def _inline_branch(graph: ir.Graph, node: ir.Node, condition: bool) -> None:
    """Put the nodes of the branch that is taken in the place of the `If`."""
    branch = node.attributes["then_branch" if condition else "else_branch"].as_graph()
    nodes, results = list(branch), list(branch.outputs)
    branch.outputs.clear()
    branch.remove(nodes)
    graph.insert_before(node, nodes)
    _detach(node.attributes["else_branch" if condition else "then_branch"].as_graph())
    ir.convenience.replace_nodes_and_values(graph, node, [node], [], node.outputs, results)


def _detach(branch: ir.Graph) -> None:
    """Let go of what a dead branch reads, which would otherwise count as used."""
    for node in branch.all_nodes():
        for index in range(len(node.inputs)):
            node.replace_input_with(index, None)
