"""All operators of the domain `drl`, and the functions that a graph of them needs."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

import onnx_ir as ir

from drl.plugins.ops.cached_attention import CACHED_ATTENTION
from drl.plugins.ops.expert_capacity import EXPERT_CAPACITY
from drl.plugins.ops.expert_route import EXPERT_ROUTE
from drl.plugins.ops.group_route import GROUP_ROUTE
from drl.plugins.ops.operator import DOMAIN, Operator
from drl.plugins.ops.path_score import PATH_SCORE
from drl.plugins.ops.routed_ffn import ROUTED_FFN
from drl.plugins.ops.schema import Form, OperatorError
from drl.plugins.ops.select_states import SELECT_STATES

OPERATORS: Mapping[str, Operator] = MappingProxyType(
    {
        operator.name: operator
        for operator in (
            GROUP_ROUTE,
            EXPERT_ROUTE,
            EXPERT_CAPACITY,
            ROUTED_FFN,
            PATH_SCORE,
            SELECT_STATES,
            CACHED_ATTENTION,
        )
    }
)


def functions_for(nodes: Iterable[ir.Node]) -> list[ir.Function]:
    """One function per `drl` operator among the nodes, in alphabetical order.

    Nodes of other domains are passed over. A function carries its operator's plain name, so all
    nodes of one operator must use the same form.

    Args:
        nodes: All nodes of one model, those of nested graphs included.

    Raises:
        OperatorError: A `drl` node is unknown, does not fit its schema, or uses its operator in
            another form than an earlier node does.
    """
    first: dict[str, tuple[Form, ir.Node]] = {}
    for node in nodes:
        if node.domain != DOMAIN:
            continue
        operator = OPERATORS.get(node.op_type)
        if operator is None:
            raise OperatorError(
                f"node {node.name!r}: there is no operator {DOMAIN}.{node.op_type}; "
                f"there are {', '.join(sorted(OPERATORS))}"
            )
        form = operator.form(node)
        known, earlier = first.setdefault(operator.name, (form, node))
        if form != known:
            raise OperatorError(
                f"nodes {earlier.name!r} and {node.name!r} use {operator.name} in two forms, "
                f"{known} and {form}; a graph can hold only one of them"
            )
    return [OPERATORS[name].function(form) for name, (form, _) in sorted(first.items())]
