"""Expand the selection of encoder states to comparisons, whose sizes follow from the source's."""

from functools import partial
from typing import Any

import onnx_ir as ir
import onnxscript

from drl.export.passes.tracing import constant, expand
from drl.plugins.ops import DOMAIN
from drl.plugins.ops.select_states import BLOCKED

THOUSANDTHS = 1000


class ExpandSelectStates(ir.passes.InPlacePass):
    """Replace `drl.SelectStates` by standard operators.

    The operator gives as many states as the longest row keeps, which depends on data. Here they
    are K = ⌈ρ·S⌉ of the padded length S; what a row does not keep of them has a bias of -1e4. A
    state's place among those kept is a count of the states that come before it: no sorting.

    Args:
        keep_thousandths: ρ in whole thousandths, 1 to 1000.
    """

    def __init__(self, keep_thousandths: int) -> None:
        super().__init__()
        self._keep = keep_thousandths

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Expand every node."""
        nodes = [n for n in model.graph if (n.domain, n.op_type) == (DOMAIN, "SelectStates")]
        for node in nodes:
            expand(node, partial(self._trace, node=node))
        return ir.passes.PassResult(model, modified=bool(nodes))

    def _trace(self, op: onnxscript.OpBuilder, node: ir.Node) -> Any:
        states, saliency, lengths, counts = node.inputs
        assert states is not None
        assert saliency is not None
        assert lengths is not None
        assert counts is not None
        valid = _valid(op, saliency, lengths)
        if self._keep == THOUSANDTHS:
            return (
                op.Where(op.Unsqueeze(valid, [2]), states, 0.0),
                op.Identity(counts),
                _bias(op, valid, saliency),
            )
        length = op.Shape(saliency, start=1, end=2)
        places = op.Range(0, op.Squeeze(length), 1)
        kept = op.And(_is_best(op, saliency, valid, places, counts), valid)
        nth = op.CumSum(op.Cast(kept, to=ir.DataType.INT32), 1)  # of a kept state, from 1
        most = op.Div(op.Add(op.Mul(length, self._keep), THOUSANDTHS - 1), THOUSANDTHS)
        slots = op.Cast(op.Range(0, op.Squeeze(most), 1), to=ir.DataType.INT32)
        # [B, K, S]: state s is the one for slot k
        here = op.And(
            op.Equal(
                op.Unsqueeze(nth, [1]),
                op.Unsqueeze(op.Add(slots, constant(op, 1, ir.DataType.INT32)), [1]),
            ),
            op.Unsqueeze(kept, [1]),
        )
        picked = op.Where(
            here, op.Cast(places, to=ir.DataType.INT32), constant(op, 0, ir.DataType.INT32)
        )
        place = op.Cast(op.ReduceSum(picked, [2], keepdims=0), to=ir.DataType.INT64)
        index = op.Unsqueeze(place, [2])
        wanted = op.Less(slots, op.Unsqueeze(counts, [1]))
        return (
            op.Where(op.Unsqueeze(wanted, [2]), op.GatherND(states, index, batch_dims=1), 0.0),
            op.Identity(counts),
            _bias(op, wanted, op.GatherND(saliency, index, batch_dims=1)),
        )


def _valid(op: onnxscript.OpBuilder, saliency: ir.Value, lengths: ir.Value) -> Any:
    places = op.Range(0, op.Squeeze(op.Shape(saliency, start=1, end=2)), 1)
    return op.Less(places, op.Unsqueeze(op.Cast(lengths, to=ir.DataType.INT64), [1]))


def _is_best(
    op: onnxscript.OpBuilder, saliency: ir.Value, valid: Any, places: Any, counts: ir.Value
) -> Any:
    """Whether fewer than `counts` valid states are better, or as good and earlier: `[B, S]`."""
    mine, other = op.Unsqueeze(saliency, [2]), op.Unsqueeze(saliency, [1])
    earlier = op.Less(places, op.Unsqueeze(places, [1]))
    before = op.Or(op.Greater(other, mine), op.And(op.Equal(other, mine), earlier))
    ahead = op.Cast(op.And(before, op.Unsqueeze(valid, [1])), to=ir.DataType.INT32)
    return op.Less(op.ReduceSum(ahead, [2], keepdims=0), op.Unsqueeze(counts, [1]))


def _bias(op: onnxscript.OpBuilder, wanted: Any, saliency: Any) -> Any:
    """Log sigmoid of the saliency, or the bias of what is absent."""
    return op.Where(wanted, op.Neg(op.Softplus(op.Neg(saliency))), BLOCKED)
