"""Expand cross-attention to one Attention per source, in the form that TensorRT takes."""

from functools import partial
from typing import Any

import onnx_ir as ir
import onnxscript

from drl.export.passes.tracing import expand
from drl.plugins.ops import DOMAIN


class ExpandCrossAttention(ir.passes.InPlacePass):
    """Replace `drl.CrossAttention` by standard operators.

    The queries of a source are those of all its rows and of all heads that share a key head, so a
    source's keys are read once: `[R, N, W·T·H/N, h]` over `[R, N, K, h]`.
    """

    def requires(self, model: ir.Model) -> None:
        """Check that the numbers of heads and their width are known."""
        for node in _nodes(model.graph):
            keys = node.inputs[1]
            assert keys is not None
            if keys.shape is None or not all(isinstance(keys.shape[i], int) for i in (1, 3)):
                raise ir.passes.PreconditionError(
                    f"{node.name}: heads of {keys.name} must be known, not {keys.shape}"
                )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Expand every node."""
        nodes = _nodes(model.graph)
        for node in nodes:
            expand(node, partial(_trace, node=node))
        return ir.passes.PassResult(model, modified=bool(nodes))


def _nodes(graph: ir.Graph) -> list[ir.Node]:
    return [n for n in graph if (n.domain, n.op_type) == (DOMAIN, "CrossAttention")]


def _trace(op: onnxscript.OpBuilder, node: ir.Node) -> Any:
    q, k, v, bias = node.inputs
    assert k is not None
    assert k.shape is not None
    kv_heads, width = k.shape[1], k.shape[3]
    assert isinstance(kv_heads, int)
    assert isinstance(width, int)
    group = node.attributes["num_heads"].as_int() // kv_heads
    sources = op.Shape(k, end=1)
    rows = op.Shape(q, end=2)
    # [B, T, N·g·h] -> [R, W·T, N, g·h] -> [R, N, W·T·g, h]
    apart = op.Reshape(q, op.Concat(sources, [-1, kv_heads, group * width], axis=0))
    by_head = op.Transpose(apart, perm=[0, 2, 1, 3])
    queries = op.Reshape(by_head, op.Concat(sources, [kv_heads, -1, width], axis=0))
    # ONNX Runtime's CPU kernel broadcasts no query dimension.
    places = op.Concat(op.Shape(queries, start=2, end=3), [1], axis=0)
    mask = op.Expand(op.Unsqueeze(bias, [1, 2]), places)
    mixed = op.Attention(queries, k, v, mask, scale=node.attributes["scale"].as_float())
    merged = op.Reshape(mixed, op.Concat(sources, [kv_heads, -1, group * width], axis=0))
    together = op.Transpose(merged, perm=[0, 2, 1, 3])
    return op.Reshape(together, op.Concat(rows, [kv_heads * group * width], axis=0))
