"""Let the decoder's head rank: the largest logits of every row in the place of all."""

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from drl.export.passes.tracing import trace_before
from drl.plugins.ops import HEAD

_CANDIDATES = "candidates"
_BESIDE = "new_lengths"


@dataclass(frozen=True)
class _Head:
    """The product that the logits come from, and the states `[B, T, d]` that it multiplies."""

    product: ir.Node
    states: ir.Value


class RankTokens(ir.passes.InPlacePass):
    """Replace the head's standard operators by `drl.Head`, which can leave the logits out.

    Adds the input `candidates` int64 `[1]` after `new_lengths` and the outputs `top_values` and
    `top_ids` `[B, T, c]` after `normalisers`; the logits are `[B, T, 0]` where candidates are asked
    for.
    """

    def requires(self, model: ir.Model) -> None:
        """Check that the graph does not rank yet, and has a head to replace."""
        inputs = {value.name for value in model.graph.inputs}
        outputs = {value.name for value in model.graph.outputs}
        if _BESIDE not in inputs or not {"logits", "normalisers"} <= outputs:
            raise ir.passes.PreconditionError("the graph is no decoder with normalisers")
        if _CANDIDATES in inputs:
            raise ir.passes.PreconditionError("the graph ranks already")
        if _find(model.graph) is None:
            raise ir.passes.PreconditionError("the logits are no product (Gemm) of states and Wᵀ")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace the head; what only served the old one goes."""
        graph = model.graph
        head = _find(graph)
        assert head is not None
        candidates = ir.val(_CANDIDATES, ir.DataType.INT64, [1])
        names = [value.name for value in graph.inputs]
        graph.inputs.insert(names.index(_BESIDE) + 1, candidates)
        _, weight, *bias = head.product.inputs
        factor = head.product.attributes["alpha"].as_float()
        label = (head.product.name or "head/").rpartition("/")[0]
        nodes, results = trace_before(
            head.product,
            lambda op: HEAD.emit(op, head.states, weight, candidates, *bias, factor=factor),
            label,
        )
        for node in nodes:
            node.metadata_props.update(head.product.metadata_props)
        _take_over(graph, results)
        RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=True)


def _find(graph: ir.Graph) -> _Head | None:
    logits = next(value for value in graph.outputs if value.name == "logits")
    reshaped = logits.producer()
    if reshaped is None or reshaped.op_type != "Reshape" or reshaped.inputs[0] is None:
        return None
    product = reshaped.inputs[0].producer()
    if product is None or product.op_type != "Gemm" or "transB" not in product.attributes:
        return None
    rows = product.inputs[0]
    flattened = None if rows is None else rows.producer()
    if flattened is None or flattened.op_type != "Reshape" or flattened.inputs[0] is None:
        return None
    return _Head(product, flattened.inputs[0])


def _take_over(graph: ir.Graph, results: Sequence[ir.Value]) -> None:
    """Put logits, values, ids and normalisers in the place of the graph's outputs."""
    logits, values, ids, normalisers = results
    outputs = {value.name: value for value in graph.outputs}
    old = outputs["logits"], outputs["normalisers"]
    shape, places = old[0].shape, old[1].shape
    assert shape is not None
    assert places is not None
    logits.shape = ir.Shape([*places, f"{shape[2]} or 0"])
    normalisers.shape = places
    values.shape = ids.shape = ir.Shape([*places, "c"])
    for before, after in zip(old, (logits, normalisers), strict=True):
        graph.outputs[graph.outputs.index(before)] = after
        after.name, before.name = before.name, f"{before.name}.before"
    values.name, ids.name = "top_values", "top_ids"
    place = graph.outputs.index(normalisers) + 1
    graph.outputs.insert(place, ids)
    graph.outputs.insert(place, values)
