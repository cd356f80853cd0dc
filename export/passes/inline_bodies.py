"""Inline the bodies of operators whose body every parser takes."""

from collections.abc import Collection
from functools import partial

import onnx_ir as ir
import onnxscript

from drl.export.passes.tracing import constant, expand
from drl.plugins.ops import DOMAIN, OPERATORS

_DTYPES = {int: ir.DataType.INT64, float: ir.DataType.FLOAT}


class InlineBodies(ir.passes.InPlacePass):
    """Replace nodes of the domain `drl` by what their operator's body traces.

    Args:
        operators: Names of the operators.
        precision: What the inlined nodes must compute in.
    """

    def __init__(self, operators: Collection[str], precision: str | None = None) -> None:
        super().__init__()
        self._operators = operators
        self._precision = precision

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Inline every node of these operators."""
        nodes = [n for n in model.graph if n.domain == DOMAIN and n.op_type in self._operators]
        for node in nodes:
            expand(node, partial(_trace, node=node), precision=self._precision)
        return ir.passes.PassResult(model, modified=bool(nodes))


def _trace(op: onnxscript.OpBuilder, node: ir.Node) -> object:
    operator = OPERATORS[node.op_type]
    attributes: dict[str, object] = {}
    for attribute in operator.attributes:
        value = node.attributes[attribute.name].value
        attributes[attribute.name] = (
            value if attribute.choices else constant(op, value, _DTYPES[attribute.type])
        )
    return operator.body(op, *node.inputs, **attributes)
