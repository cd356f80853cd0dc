"""Lower cached attention to ONNX Runtime's grouped-query attention, which shares its cache."""

from dataclasses import dataclass

import onnx_ir as ir

from drl.plugins.ops import DOMAIN as OPERATORS_DOMAIN

DOMAIN = "com.microsoft"
HEAD_MULTIPLE = 8
"""Head sizes that the kernel takes are multiples of this."""
_BODY = "/body"


@dataclass(frozen=True)
class _Shared:
    """Values that all attention nodes read: the form GroupQueryAttention wants lengths in.

    Attributes:
        last_slots: The last slot that each row fills, int32 `[B]`.
        total: The slots that take part, int32 `[1]`.
        supported: Whether GroupQueryAttention accepts this call, bool `[]`.
    """

    last_slots: ir.Value
    total: ir.Value
    supported: ir.Value


class LowerCachedAttention(ir.passes.InPlacePass):
    """Replace `drl.CachedAttention` by `com.microsoft.GroupQueryAttention`.

    The kernel updates keys and values in place where past and present share memory. On the CPU
    it refuses several new tokens over a cache that is not empty for more than one row; there the
    operator's body takes over, behind one `If` per node. Heads whose size is no multiple of 8 it
    refuses altogether, and their nodes stay as they are.
    """

    def requires(self, model: ir.Model) -> None:
        """Check that the graph has the inputs that the lengths are computed from."""
        names = {value.name for value in model.graph.inputs}
        if missing := {"tokens", "lengths"} - names:
            raise ir.passes.PreconditionError(f"the graph lacks the inputs {sorted(missing)}")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Lower every node, those inside branches included."""
        graph = model.graph
        nodes = [node for node in graph.all_nodes() if _is_lowered(node)]
        if not nodes:
            return ir.passes.PassResult(model, modified=False)
        graph.opset_imports[DOMAIN] = 1
        shared = _insert_shared(graph)
        for node in nodes:
            _replace(node, shared)
        return ir.passes.PassResult(model, modified=True)


def _is_lowered(node: ir.Node) -> bool:
    if (node.domain, node.op_type) != (OPERATORS_DOMAIN, "CachedAttention"):
        return False
    if (node.name or "").endswith(_BODY):  # the other branch of a node that is lowered already
        return False
    past = node.inputs[3]
    assert past is not None
    assert past.shape is not None
    head_dim = past.shape[3]
    return isinstance(head_dim, int) and head_dim % HEAD_MULTIPLE == 0


def _insert_shared(graph: ir.Graph) -> _Shared:
    """Put the nodes that compute the shared values at the start of the graph."""
    inputs = {value.name: value for value in graph.inputs}
    tape = ir.tape.Tape()
    op = tape.op
    one = _constant(tape, [1])
    batch = _int32(tape, op("Shape", [inputs["tokens"]], {"start": 0, "end": 1}))
    width = _int32(tape, op("Shape", [inputs["tokens"]], {"start": 1, "end": 2}))
    filled = op("Add", [inputs["lengths"], width])
    total = op("ReduceMax", [filled], {"keepdims": 1})
    single = op("Or", [op("Equal", [width, one]), op("Equal", [batch, one])])
    supported = op("Squeeze", [op("Or", [single, op("Equal", [total, width])])])
    shared = _Shared(op("Sub", [filled, one]), total, supported)
    named = {"last_slots": shared.last_slots, "total": total, "supported": supported}
    for label, value in named.items():
        value.name = f"grouped_query_attention.{label}"
    for index, node in enumerate(tape.nodes):
        node.name = f"grouped_query_attention/{node.op_type}_{index}"
    first = graph[0]
    graph.insert_before(first, tape.nodes)
    return shared


def _int32(tape: ir.tape.Tape, value: ir.Value) -> ir.Value:
    return tape.op("Cast", [value], {"to": ir.DataType.INT32})


def _constant(tape: ir.tape.Tape, values: list[int]) -> ir.Value:
    return tape.op("Constant", [], {"value": ir.tensor(values, dtype=ir.DataType.INT32)})


def _replace(node: ir.Node, shared: _Shared) -> None:
    """Put an `If` in the place of `node`: the fast kernel where it is supported, else the body."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    label = node.name or "CachedAttention"
    fast = _fast_kernel(node, shared, label)
    body = ir.Node(
        node.domain,
        node.op_type,
        node.inputs,
        node.attributes.values(),
        num_outputs=3,
        name=f"{label}{_BODY}",
    )
    for branch in (fast, body):
        for own, old in zip(branch.outputs, node.outputs, strict=True):
            own.name = f"{branch.name}.{old.name}"
            own.type, own.shape = old.type, old.shape
    choice = ir.node(
        "If",
        [shared.supported],
        {
            "then_branch": ir.Graph([], fast.outputs, nodes=[fast], name=f"{label}/fast"),
            "else_branch": ir.Graph([], body.outputs, nodes=[body], name=f"{label}/general"),
        },
        num_outputs=3,
        name=label,
    )
    for part in (fast, body, choice):
        part.metadata_props.update(node.metadata_props)
    ir.convenience.replace_nodes_and_values(
        graph, node, [node], [choice], node.outputs, choice.outputs
    )


def _fast_kernel(node: ir.Node, shared: _Shared, label: str) -> ir.Node:
    query, key, value, past_k, past_v, _ = node.inputs[:6]
    inputs = [query, key, value, past_k, past_v, shared.last_slots, shared.total]
    if len(node.inputs) > 6:
        inputs += [None, None, None, node.inputs[6]]  # cos, sin, positions, bias
    assert past_k is not None
    assert past_k.shape is not None
    kv_heads = past_k.shape[1]
    assert isinstance(kv_heads, int)
    attributes = {
        "num_heads": node.attributes["num_heads"].as_int(),
        "kv_num_heads": kv_heads,
        "scale": node.attributes["scale"].as_float(),
    }
    return ir.node(
        "GroupQueryAttention",
        inputs,
        attributes,
        domain=DOMAIN,
        num_outputs=3,
        name=f"{label}/grouped_query",
    )
