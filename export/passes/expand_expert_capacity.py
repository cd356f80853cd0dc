"""Expand expert capacity to a running count over a known number of experts."""

from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxscript

from drl.export.passes.tracing import constant, expand
from drl.plugins.ops import DOMAIN


class ExpandExpertCapacity(ir.passes.InPlacePass):
    """Replace `drl.ExpertCapacity` by standard operators.

    The operator's body counts over as many experts as the tokens chose, a size that depends on
    data. Here the count spans all experts of the router that the choices came from.
    """

    def requires(self, model: ir.Model) -> None:
        """Check that the choices of every node come from a router with known weights."""
        for node in _nodes(model.graph):
            if _experts(node) is None:
                raise ir.passes.PreconditionError(
                    f"{node.name}: its experts must come from drl.ExpertRoute; expand that later"
                )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Expand every node."""
        nodes = _nodes(model.graph)
        for node in nodes:
            expand(node, partial(_trace, node=node), precision="float32")
        return ir.passes.PassResult(model, modified=bool(nodes))


def _nodes(graph: ir.Graph) -> list[ir.Node]:
    return [n for n in graph if (n.domain, n.op_type) == (DOMAIN, "ExpertCapacity")]


def _experts(node: ir.Node) -> int | None:
    """E of the router that chose."""
    ids = node.inputs[0]
    assert ids is not None
    router = ids.producer()
    if router is None or (router.domain, router.op_type) != (DOMAIN, "ExpertRoute"):
        return None
    weight = router.inputs[1]
    if weight is None or weight.shape is None or not isinstance(weight.shape[1], int):
        return None
    return weight.shape[1]


def _trace(op: onnxscript.OpBuilder, node: ir.Node) -> Any:
    ids, gates = node.inputs
    experts = _experts(node)
    assert experts is not None
    flat = op.Reshape(ids, op.Concat(op.Shape(ids, end=1), [-1], axis=0))
    every = constant(op, np.arange(experts), ir.DataType.INT32)
    chose = op.Cast(op.Equal(op.Unsqueeze(flat, [2]), every), to=ir.DataType.INT32)
    place = op.ReduceSum(op.Mul(op.CumSum(chose, 1), chose), [2], keepdims=0)
    capacity = constant(op, node.attributes["capacity"].as_int(), ir.DataType.INT32)
    full = op.Greater(op.Reshape(place, op.Shape(ids)), capacity)
    return op.Where(full, -1, ids), op.Where(full, 0.0, gates)
