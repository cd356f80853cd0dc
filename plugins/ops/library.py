"""All operators of the domain `drl`, and the functions that a graph of them needs."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

import onnx_ir as ir

from drl.plugins.ops.cached_attention import CACHED_ATTENTION
from drl.plugins.ops.cross_attention import CROSS_ATTENTION
from drl.plugins.ops.encoder_attention import ENCODER_ATTENTION
from drl.plugins.ops.expert_capacity import EXPERT_CAPACITY
from drl.plugins.ops.expert_route import EXPERT_ROUTE
from drl.plugins.ops.group_route import GROUP_ROUTE
from drl.plugins.ops.head import HEAD
from drl.plugins.ops.linear import LINEAR
from drl.plugins.ops.operator import DOMAIN, Operator
from drl.plugins.ops.path_score import PATH_SCORE
from drl.plugins.ops.projections import PROJECTIONS
from drl.plugins.ops.quantize_states import QUANTIZE_STATES
from drl.plugins.ops.quantized_cached_attention import QUANTIZED_CACHED_ATTENTION
from drl.plugins.ops.quantized_cross_attention import QUANTIZED_CROSS_ATTENTION
from drl.plugins.ops.quantized_gather import QUANTIZED_GATHER
from drl.plugins.ops.quantized_head import QUANTIZED_HEAD
from drl.plugins.ops.quantized_linear import QUANTIZED_LINEAR
from drl.plugins.ops.quantized_projections import QUANTIZED_PROJECTIONS
from drl.plugins.ops.quantized_routed_ffn import QUANTIZED_ROUTED_FFN
from drl.plugins.ops.routed_ffn import ROUTED_FFN
from drl.plugins.ops.routed_ffn_combine import ROUTED_FFN_COMBINE
from drl.plugins.ops.routed_ffn_inner import ROUTED_FFN_INNER
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
            ROUTED_FFN_INNER,
            ROUTED_FFN_COMBINE,
            PATH_SCORE,
            SELECT_STATES,
            CACHED_ATTENTION,
            CROSS_ATTENTION,
            ENCODER_ATTENTION,
            HEAD,
            LINEAR,
            PROJECTIONS,
            QUANTIZED_LINEAR,
            QUANTIZED_PROJECTIONS,
            QUANTIZED_ROUTED_FFN,
            QUANTIZED_HEAD,
            QUANTIZED_GATHER,
            QUANTIZED_CACHED_ATTENTION,
            QUANTIZED_CROSS_ATTENTION,
            QUANTIZE_STATES,
        )
    }
)


def functions_for(nodes: Iterable[ir.Node]) -> list[ir.Function]:
    """One function per `drl` operator and overload among the nodes, in alphabetical order.

    Nodes of other domains are passed over. A function carries its operator's plain name, so all
    nodes of one operator must use the same form, unless it is overloaded.

    Args:
        nodes: All nodes of one model, those of nested graphs included.

    Raises:
        OperatorError: A `drl` node is unknown, does not fit its schema, or uses its operator in
            another form than an earlier node does; or a node's overload is not its form's.
    """
    first: dict[tuple[str, str], tuple[Form, ir.Node]] = {}
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
        overload = operator.overload(form)
        if node.overload != overload:
            raise OperatorError(
                f"node {node.name!r} has the overload {node.overload!r}, but its form is "
                f"{overload!r}"
            )
        known, earlier = first.setdefault((operator.name, overload), (form, node))
        if form != known:
            raise OperatorError(
                f"nodes {earlier.name!r} and {node.name!r} use {operator.name} in two forms, "
                f"{known} and {form}; a graph can hold only one of them"
            )
    return [OPERATORS[name].function(form) for (name, _), (form, _) in sorted(first.items())]
