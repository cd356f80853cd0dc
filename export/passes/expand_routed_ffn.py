"""Expand the routed feed-forward layer to products over a stack of experts."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxscript

from drl.export.passes.tracing import constant, expand, in_float32
from drl.plugins.ops import DOMAIN, ROUTED_FFN
from drl.plugins.ops.activations import trace_activation


class ExpandRoutedFFN(ir.passes.InPlacePass):
    """Replace `drl.RoutedFFN` by standard operators without sizes that depend on data.

    Every token passes through a stack of M experts, and what an expert makes of tokens that did
    not choose it counts as 0. The last product sums over the experts as it sums over their hidden
    layers, so it is one matrix product of depth M·f.

    Args:
        gather: Whether the stack holds only the experts in use, filled up to M = min(B·T·k, E) by
            others. That is for a decoder, where few tokens choose: a step of one sequence reads k
            experts instead of E. It copies the experts that it reads. Otherwise M = E.
    """

    def __init__(self, *, gather: bool) -> None:
        super().__init__()
        self._gather = gather

    def requires(self, model: ir.Model) -> None:
        """Check that the sizes of the experts are known."""
        for node in _nodes(model.graph):
            up = node.inputs[3]
            if up is None or up.shape is None or not up.shape.is_static():
                raise ir.passes.PreconditionError(f"{node.name}: experts of an unknown size")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Expand every node."""
        nodes = _nodes(model.graph)
        for node in nodes:
            expand(node, partial(_trace, node=node, gather=self._gather))
        return ir.passes.PassResult(model, modified=bool(nodes))


def _nodes(graph: ir.Graph) -> list[ir.Node]:
    return [n for n in graph if (n.domain, n.op_type) == (DOMAIN, "RoutedFFN")]


def _trace(op: onnxscript.OpBuilder, node: ir.Node, *, gather: bool) -> Any:
    return _Expansion(op, node).trace(gather)


class _Expansion:
    """One node's inputs by name, and the builder."""

    def __init__(self, op: onnxscript.OpBuilder, node: ir.Node) -> None:
        self._op = op
        names = (argument.name for argument in ROUTED_FFN.inputs)
        self._inputs: Mapping[str, ir.Value] = {
            name: value
            for name, value in zip(names, node.inputs, strict=False)
            if value is not None
        }
        self._activation = node.attributes["activation"].as_string()
        up = self._inputs["up"].shape
        assert up is not None
        self._experts, self._width, self._inner = (int(size) for size in up)  # type: ignore[arg-type]

    def trace(self, gather: bool) -> Any:
        """Give `[B, T, d]`."""
        op, hidden = self._op, self._inputs["hidden"]
        order = self._experts_in_use() if gather else self._every_expert()
        taken = {
            name: op.Gather(value, order) if gather else value
            for name, value in self._inputs.items()
            if name not in ("hidden", "expert_ids", "gates")
        }
        chosen, weights = self._weights(order)
        tokens = op.Reshape(hidden, [-1, self._width])
        raised = self._affine(tokens, taken, "up")
        if "gate" in taken:
            opened = self._affine(tokens, taken, "gate")
            inner = op.Mul(trace_activation(op, self._activation, opened), raised)
        else:
            inner = trace_activation(op, self._activation, raised)
        # An expert may overflow on tokens that are none of its own: choose, do not multiply by 0.
        weighed = op.Where(chosen, in_float32(op.Mul(inner, weights)), 0.0)
        beside = op.Reshape(op.Transpose(weighed, perm=[1, 0, 2]), self._flat(order))
        output = op.MatMul(beside, op.Reshape(taken["down"], [-1, self._width]))
        if "down_bias" in taken:
            shares = op.Transpose(op.Squeeze(weights, [2]), perm=[1, 0])
            biases = op.MatMul(shares, taken["down_bias"])
            output = op.Add(output, biases)
        return op.Reshape(output, op.Shape(hidden))

    def _affine(self, tokens: Any, taken: Mapping[str, Any], name: str) -> Any:
        """Give `[M, B·T, f]`."""
        op = self._op
        product = op.MatMul(op.Unsqueeze(tokens, [0]), taken[name])
        bias = taken.get(f"{name}_bias")
        return product if bias is None else op.Add(product, op.Unsqueeze(bias, [1]))

    def _flat(self, order: Any) -> Any:
        """Give the shape `[B·T, M·f]`."""
        op = self._op
        columns = op.Mul(op.Shape(order), self._inner)
        return op.Concat([-1], columns, axis=0)

    def _weights(self, order: Any) -> tuple[Any, Any]:
        """Give whether and with what weight a token chose an expert, `[M, B·T, 1]` each."""
        op, ids = self._op, self._inputs["expert_ids"]
        flat = op.Concat([-1], op.Shape(ids, start=2), axis=0)
        rows = op.Unsqueeze(op.Reshape(ids, flat), [0])
        hits = op.Equal(rows, op.Unsqueeze(op.Cast(order, to=ir.DataType.INT32), [1, 2]))
        shares = op.Where(hits, op.Reshape(self._inputs["gates"], flat), 0.0)
        any_hit = op.ReduceMax(op.Cast(hits, to=ir.DataType.INT32), [2], keepdims=1)
        return op.Cast(any_hit, to=ir.DataType.BOOL), op.ReduceSum(shares, [2], keepdims=1)

    def _every_expert(self) -> Any:
        """Give 0 … E−1, int64 `[E]`."""
        return constant(self._op, np.arange(self._experts))

    def _experts_in_use(self) -> Any:
        """Give the experts that a token chose and then others, int64 `[M]`."""
        op, ids = self._op, self._inputs["expert_ids"]
        every = op.Cast(self._every_expert(), to=ir.DataType.INT32)
        hits = op.Equal(op.Reshape(ids, [-1, 1]), every)
        used = op.ReduceMax(op.Cast(hits, to=ir.DataType.INT32), [0], keepdims=0)
        _, order = op.TopK(op.Cast(used, to=ir.DataType.FLOAT), [self._experts], _outputs=2)
        choices = op.ReduceProd(op.Shape(ids), keepdims=1)
        return op.Slice(order, [0], op.Min(choices, [self._experts]), [0])
