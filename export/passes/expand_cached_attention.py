"""Expand cached attention to TensorScatter and Attention over a cache of static capacity."""

from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxscript

from drl.export.passes.tracing import constant, expand
from drl.plugins.ops import DOMAIN

HIDDEN = -1e4
"""Bias of a slot that a token may not see, as of padding in a source."""


class ExpandCachedAttention(ir.passes.InPlacePass):
    """Replace `drl.CachedAttention` by standard operators in the form TensorRT updates in place.

    New keys and values are scattered into a cache that is an input of the graph and has a static
    capacity; attention then runs over all slots, of which a mask hides those that a token may not
    see. A bias must span all slots (`StaticCache`).
    """

    def requires(self, model: ir.Model) -> None:
        """Check that every cache is an input of the graph, of static capacity."""
        for node in _nodes(model.graph):
            for past in (node.inputs[3], node.inputs[4]):
                assert past is not None
                static = past.shape is not None and isinstance(past.shape[2], int)
                if not past.is_graph_input() or not static:
                    raise ir.passes.PreconditionError(
                        f"{node.name}: the cache {past.name} must be an input of static capacity; "
                        "run StaticCache first"
                    )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Expand every node."""
        nodes = _nodes(model.graph)
        for node in nodes:
            expand(node, partial(_trace, node=node))
        return ir.passes.PassResult(model, modified=bool(nodes))


def _nodes(graph: ir.Graph) -> list[ir.Node]:
    return [n for n in graph if (n.domain, n.op_type) == (DOMAIN, "CachedAttention")]


def _trace(op: onnxscript.OpBuilder, node: ir.Node) -> Any:
    q, k, v, past_k, past_v, lengths = node.inputs[:6]
    bias = node.inputs[6] if len(node.inputs) > 6 else None
    assert past_k is not None
    assert past_k.shape is not None
    kv_heads, capacity, width = (int(size) for size in past_k.shape[1:])  # type: ignore[arg-type]
    num_heads = node.attributes["num_heads"].as_int()

    def heads(x: ir.Value | None, count: Any) -> Any:
        return op.Transpose(op.Reshape(x, [0, 0, count, width]), perm=[0, 2, 1, 3])

    first = op.Cast(lengths, to=ir.DataType.INT64)
    present_k = op.TensorScatter(past_k, heads(k, kv_heads), first, axis=2)
    present_v = op.TensorScatter(past_v, heads(v, kv_heads), first, axis=2)
    steps = op.Squeeze(op.Shape(q, start=1, end=2))
    own = op.Add(op.Unsqueeze(first, [1]), op.Range(0, steps, 1))
    slots = constant(op, np.arange(capacity))
    mask = op.LessOrEqual(slots, op.Unsqueeze(own, [1, 3]))
    if bias is not None:
        mask = op.Where(mask, bias, HIDDEN)
    output = op.Attention(
        heads(q, num_heads), present_k, present_v, mask, scale=node.attributes["scale"].as_float()
    )
    merged = op.Reshape(op.Transpose(output, perm=[0, 2, 1, 3]), [0, 0, num_heads * width])
    return merged, present_k, present_v
