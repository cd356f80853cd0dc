"""Give the decoder the largest logits as outputs, and scale its states instead of its logits."""

from functools import partial
from typing import Any

import onnx_ir as ir
import onnxscript

from drl.export.passes.tracing import PRECISION, expand, in_float32, trace_after


class RankLogits(ir.passes.InPlacePass):
    """Add the outputs `top_values` fp32 and `top_ids` int32, `[B, T, c]`, largest first.

    Choosing a token then needs no whole row of logits. The product with the head also loses its
    factor, which moves to the states: products of half precision, where a scale comes after, could
    leave the range before it.

    Args:
        candidates: c, static, at most V.
    """

    def __init__(self, candidates: int) -> None:
        super().__init__()
        self._candidates = candidates

    def requires(self, model: ir.Model) -> None:
        """Check that the graph has logits of known width, no ranking yet, and a head."""
        names = [value.name for value in model.graph.outputs]
        if "logits" not in names or "top_values" in names:
            raise ir.passes.PreconditionError("the graph needs `logits` and no `top_values` yet")
        shape = model.graph.outputs[names.index("logits")].shape
        if shape is None or not isinstance(shape[2], int) or shape[2] < self._candidates:
            raise ir.passes.PreconditionError(f"no {self._candidates} candidates in {shape}")
        if _head(model.graph) is None:
            raise ir.passes.PreconditionError("the logits come from no product (Gemm)")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Move the factor, and add the ranking."""
        graph = model.graph
        head = _head(graph)
        assert head is not None
        (product,) = expand(head, partial(_scaled_product, head=head))
        outputs = {value.name: value for value in graph.outputs}
        logits = outputs["logits"]
        assert logits.shape is not None
        shape = [*logits.shape[:2], self._candidates]
        _, ranked = trace_after(logits, lambda op: _rank(op, logits, self._candidates), "ranking")
        place = graph.outputs.index(outputs["normalisers"]) + 1
        for index, (name, value) in enumerate(zip(("top_values", "top_ids"), ranked, strict=True)):
            value.name, value.shape = name, ir.Shape(shape)
            graph.outputs.insert(place + index, value)
        for node in _downstream(product):
            node.metadata_props[PRECISION] = "float32"
        return ir.passes.PassResult(model, modified=True)


def _head(graph: ir.Graph) -> ir.Node | None:
    """The product that `logits` come from."""
    value = next(value for value in graph.outputs if value.name == "logits")
    node = value.producer()
    while node is not None and node.op_type == "Reshape" and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node if node is not None and node.op_type == "Gemm" else None


def _scaled_product(op: onnxscript.OpBuilder, head: ir.Node) -> Any:
    states, weight = head.inputs[:2]
    factor = head.attributes["alpha"].as_float() if "alpha" in head.attributes else 1.0
    if factor != 1.0:
        states = in_float32(op.Mul(states, factor))
    product = op.Gemm(states, weight, transB=1)
    return product if len(head.inputs) < 3 else in_float32(op.Add(product, head.inputs[2]))


def _rank(op: onnxscript.OpBuilder, logits: ir.Value, candidates: int) -> Any:
    values, ids = op.TopK(logits, [candidates], axis=-1, largest=1, sorted=1, _outputs=2)
    return values, op.Cast(ids, to=ir.DataType.INT32)


def _downstream(value: ir.Value) -> set[ir.Node]:
    """All nodes that read `value`, at first or second hand."""
    found: set[ir.Node] = set()
    waiting = list(value.consumers())
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += [consumer for output in node.outputs for consumer in output.consumers()]
    return found
