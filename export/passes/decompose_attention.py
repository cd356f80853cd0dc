"""Decompose attention over heads for which TensorRT has no kernel of its own."""

from functools import partial
from typing import Any

import onnx_ir as ir
import onnxscript

from drl.export.passes.expand_cached_attention import HIDDEN
from drl.export.passes.tracing import expand, in_float32

_SMALLEST, _LARGEST, _MULTIPLE = 16, 256, 8
_INPUTS = 4  # q, k, v and mask
_ATTRIBUTES = frozenset({"q_num_heads", "kv_num_heads", "scale"})


class DecomposeAttention(ir.passes.InPlacePass):
    """Replace `Attention` by products and a softmax in float32, where its heads are of odd size.

    TensorRT 11 and TensorRT-RTX 1.7 run the operator only in fused kernels, and have those for
    heads from 16 to 256 wide, in multiples of 8.
    """

    def requires(self, model: ir.Model) -> None:
        """Check that the nodes are of the form that emitters and passes give them."""
        for node in _nodes(model.graph):
            given = [index for index, value in enumerate(node.inputs) if value is not None]
            if given[-1] >= _INPUTS or not set(node.attributes) <= _ATTRIBUTES:
                raise ir.passes.PreconditionError(f"{node.name} is more than masked attention")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Decompose every node whose heads no kernel takes."""
        nodes = [node for node in _nodes(model.graph) if not _is_fused(node)]
        for node in nodes:
            expand(node, partial(_trace, node=node))
        return ir.passes.PassResult(model, modified=bool(nodes))


def _nodes(graph: ir.Graph) -> list[ir.Node]:
    return [node for node in graph if (node.domain, node.op_type) == ("", "Attention")]


def _is_fused(node: ir.Node) -> bool:
    width = _head_width(node)
    return _SMALLEST <= width <= _LARGEST and width % _MULTIPLE == 0


def _head_width(node: ir.Node) -> int:
    keys = node.inputs[1]
    assert keys is not None
    if keys.shape is None or not isinstance(keys.shape[-1], int):
        raise ir.passes.PreconditionError(f"{node.name}: heads of an unknown width")
    width = keys.shape[-1]
    return width // node.attributes["kv_num_heads"].as_int() if _is_flat(node) else width


def _is_flat(node: ir.Node) -> bool:
    """Whether heads lie side by side, `[B, L, H·h]`, and not apart, `[B, H, L, h]`."""
    return "q_num_heads" in node.attributes


def _trace(op: onnxscript.OpBuilder, node: ir.Node) -> Any:
    width, flat = _head_width(node), _is_flat(node)
    query, key, value = node.inputs[:3]

    def apart(x: Any, name: str) -> Any:
        if not flat:
            return x
        heads = node.attributes[name].as_int()
        return op.Transpose(op.Reshape(x, [0, 0, heads, width]), perm=[0, 2, 1, 3])

    q = apart(query, "q_num_heads")
    k, v = (apart(x, "kv_num_heads") for x in (key, value))
    # Heads of a group share keys: [B, N, g, L, h] over [B, N, 1, K, h].
    groups = op.Concat(op.Shape(k, end=2), [-1], op.Shape(q, start=2), axis=0)
    grouped = op.Reshape(op.Mul(q, node.attributes["scale"].as_float()), groups)
    shared, mixed = (op.Unsqueeze(x, [2]) for x in (k, v))
    products = op.MatMul(grouped, op.Transpose(shared, perm=[0, 1, 2, 4, 3]))
    keys = op.Shape(products, start=4)
    scores = op.Reshape(products, op.Concat(op.Shape(q, end=3), keys, axis=0))
    weights = op.Reshape(op.Softmax(_masked(op, scores, node), axis=-1), op.Shape(products))
    output = op.Reshape(op.MatMul(weights, mixed), op.Shape(q))
    if not flat:
        return output
    return op.Reshape(op.Transpose(output, perm=[0, 2, 1, 3]), op.Shape(query))


def _masked(op: onnxscript.OpBuilder, scores: Any, node: ir.Node) -> Any:
    """Give `[B, H, L, K]` in float32."""
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    if mask is None:
        return scores
    if mask.dtype == ir.DataType.BOOL:
        return in_float32(op.Where(mask, scores, HIDDEN))
    return in_float32(op.Add(scores, mask))
