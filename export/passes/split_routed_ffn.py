"""Split every routed feed-forward layer into the two operators that GPU kernels implement."""

import onnx_ir as ir

from drl.plugins.ops import DOMAIN

_INNER_INPUTS = ("hidden", "expert_ids", "up", "gate", "up_bias", "gate_bias")
_COMBINE_INPUTS = ("inner", "expert_ids", "gates", "down", "down_bias")
_INPUTS = (
    "hidden",
    "expert_ids",
    "gates",
    "up",
    "down",
    "gate",
    "up_bias",
    "down_bias",
    "gate_bias",
)


class SplitRoutedFFN(ir.passes.InPlacePass):
    """Replace `drl.RoutedFFN` by `drl.RoutedFFNInner` and `drl.RoutedFFNCombine`.

    A kernel for a GPU then needs no memory of its own between the two products. The inner values
    are rounded to the type of the graph.
    """

    def requires(self, model: ir.Model) -> None:
        """Check that the shapes are known that the inner values get theirs from."""
        for node in _nodes(model):
            ids, up = node.inputs[1], node.inputs[3]
            for value, rank in ((ids, 3), (up, 3)):
                if value is None or value.shape is None or len(value.shape) != rank:
                    name = "nothing" if value is None else repr(value.name)
                    raise ir.passes.PreconditionError(
                        f"node {node.name!r}: {name} has no known shape of {rank} dimensions"
                    )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Split every node, those inside branches included."""
        nodes = _nodes(model)
        for node in nodes:
            _split(node)
        return ir.passes.PassResult(model, modified=bool(nodes))


def _nodes(model: ir.Model) -> list[ir.Node]:
    nodes = model.graph.all_nodes()
    return [node for node in nodes if (node.domain, node.op_type) == (DOMAIN, "RoutedFFN")]


def _split(node: ir.Node) -> None:
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    label = node.name or "RoutedFFN"
    padded = [*node.inputs, *[None] * (len(_INPUTS) - len(node.inputs))]
    given = dict(zip(_INPUTS, padded, strict=True))
    attributes = {"activation": node.attributes["activation"].as_string()}
    first = _half("RoutedFFNInner", [given[name] for name in _INNER_INPUTS], attributes, label)
    first.outputs[0].name = f"{node.outputs[0].name}.inner"
    first.outputs[0].type = _type_of(node)
    first.outputs[0].shape = _inner_shape(given["expert_ids"], given["up"])
    given["inner"] = first.outputs[0]
    second = _half("RoutedFFNCombine", [given[name] for name in _COMBINE_INPUTS], {}, label)
    for part in (first, second):
        part.metadata_props.update(node.metadata_props)
    old, new = node.outputs[0], second.outputs[0]
    new.name, new.type, new.shape = old.name, old.type, old.shape
    ir.convenience.replace_nodes_and_values(graph, node, [node], [first, second], [old], [new])


def _half(
    operator: str, inputs: list[ir.Value | None], attributes: dict[str, str], label: str
) -> ir.Node:
    while inputs[-1] is None:
        inputs.pop()
    return ir.node(operator, inputs, attributes, domain=DOMAIN, name=f"{label}/{operator}")


def _type_of(node: ir.Node) -> ir.TypeProtocol | None:
    hidden = node.inputs[0]
    return node.outputs[0].type or (None if hidden is None else hidden.type)


def _inner_shape(ids: ir.Value | None, up: ir.Value | None) -> ir.Shape:
    assert ids is not None  # `requires` has checked both
    assert up is not None
    assert ids.shape is not None
    assert up.shape is not None
    return ir.Shape([*ids.shape, up.shape[2]])
