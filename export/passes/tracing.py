"""Put traced nodes in the place of a node: what the passes that expand operators share."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxscript

Trace = Callable[[onnxscript.OpBuilder], Any]
"""Adds nodes with the builder that it is given; returns a value, or a sequence of them."""

PRECISION = "precision"
"""Metadata of a node that must compute in the precision named, such as `float32`."""

_ANONYMOUS_LIMIT = 64
"""Elements up to which constants of the same contents become one."""


def expand(node: ir.Node, trace: Trace, *, precision: str | None = None) -> Sequence[ir.Value]:
    """Replace `node` by the nodes that `trace` adds.

    Args:
        node: A node of the outermost graph.
        trace: Returns as many values as the node has outputs.
        precision: What the new nodes must compute in, whatever the rest of the graph does.

    Returns:
        What stands for the node's outputs now, under their names.
    """
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    label = node.name or node.op_type
    nodes, results = trace_before(node, trace, label)
    for added in nodes:
        added.metadata_props.update(node.metadata_props)
        if precision is not None:
            added.metadata_props[PRECISION] = precision
    ir.convenience.replace_nodes_and_values(graph, node, [node], [], node.outputs, results)
    return results


def constant(
    op: onnxscript.OpBuilder, values: npt.ArrayLike, dtype: ir.DataType = ir.DataType.INT64
) -> ir.Value:
    """Add a constant, where a plain number or list would get another type."""
    name = f"constant_{len(op.builder.graph.initializers)}"
    return op.builder.initializer(ir.tensor(np.asarray(values, dtype.numpy()), name=name))


def in_float32(value: ir.Value) -> ir.Value:
    """Let the node that `value` comes from compute in float32, whatever the graph does."""
    node = value.producer()
    assert node is not None
    node.metadata_props[PRECISION] = "float32"
    return value


def trace_before(
    node: ir.Node, trace: Trace, label: str
) -> tuple[Sequence[ir.Node], Sequence[ir.Value]]:
    """Insert the nodes that `trace` adds before `node`, named after `label`; return the results."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    nodes, results = _trace(graph, trace, label)
    graph.insert_before(node, nodes)
    return nodes, results


def trace_after(
    value: ir.Value, trace: Trace, label: str
) -> tuple[Sequence[ir.Node], Sequence[ir.Value]]:
    """Insert the nodes that `trace` adds after the node that `value` comes from."""
    node = value.producer()
    assert node is not None
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    nodes, results = _trace(graph, trace, label)
    graph.insert_after(node, nodes)
    return nodes, results


def _trace(
    graph: ir.Graph, trace: Trace, label: str
) -> tuple[Sequence[ir.Node], Sequence[ir.Value]]:
    """Trace nodes that belong to no graph yet, and their constants into `graph`."""
    scratch = ir.Graph([], [], nodes=[], opset_imports=dict(graph.opset_imports), name=label)
    op = onnxscript.GraphBuilder(scratch).op
    traced = trace(op)
    results = [traced] if isinstance(traced, ir.Value) else list(traced)
    for index, value in enumerate(results):
        producer = value.producer()
        if producer is None or producer.graph is not scratch or value in results[:index]:
            results[index] = op.Identity(value)
    nodes = list(scratch)
    scratch.remove(nodes)
    for added in nodes:
        precision = added.metadata_props.get(PRECISION)
        added.metadata_props.clear()
        if precision is not None:
            added.metadata_props[PRECISION] = precision
        added.name = f"{label}/{added.name}"
        for value in added.outputs:
            value.name = f"{label}/{value.name}"
    for constant in list(scratch.initializers.values()):
        assert constant.name is not None
        del scratch.initializers[constant.name]
        _adopt(graph, constant)
    return nodes, results


def _adopt(graph: ir.Graph, constant: ir.Value) -> None:
    """Make a traced constant an initializer of `graph`, or put one of the same contents for it."""
    tensor = constant.const_value
    assert tensor is not None
    if tensor.size <= _ANONYMOUS_LIMIT:
        digits = "_".join(str(number) for number in tensor.numpy().ravel().tolist())
        constant.name = f"constant_{tensor.dtype.name}{list(tensor.shape)}_{digits}"
        known = graph.initializers.get(constant.name)
        if known is not None:
            constant.replace_all_uses_with(known)
            return
    else:
        constant.name = f"constant_{len(graph.initializers)}"
    tensor.name = constant.name
    graph.register_initializer(constant)
