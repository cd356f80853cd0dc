"""Make the states between layers, and inside them, outputs of a graph."""

import re
from collections.abc import Collection, Iterator

import numpy as np
import onnx_ir as ir

STATES = "states."
"""What the names of the outputs begin with; the place follows."""

EMBEDDING = "embedding"
_SUBLAYER = re.compile(
    r"(?P<layer>(?P<stack>encoder|decoder)/layers\.\d+)/"
    r"(?P<name>self_attention|cross_attention|ffn)(_norm)?(/|$)"
)


class TapLayers(ir.passes.InPlacePass):
    """Add the residual states `[B, T, d]` after sublayers as outputs `states.<place>`.

    A place is called after the module that ends there, as in `decoder.layers.1.cross_attention`;
    `encoder.embedding` are the states that the first layer reads. Which nodes are a sublayer's is
    known from their namespaces. Inside a branch that the path skips, a place is `[0, 0, d]`.

    Args:
        places: Where; those of other graphs are passed over.
    """

    def __init__(self, places: Collection[str]) -> None:
        super().__init__()
        self._places = frozenset(places)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Add the outputs to `model`. What it tells already is left as it is."""
        graph = model.graph
        told = {value.name for value in graph.outputs}
        branches = _branches(graph)
        found = {place: value for place, value in _states(graph) if place in self._places}
        new = {place: value for place, value in found.items() if STATES + place not in told}
        for place, value in new.items():
            _tell(value, STATES + place, graph, branches)
        return ir.passes.PassResult(model, modified=bool(new))


def _states(graph: ir.Graph) -> Iterator[tuple[str, ir.Value]]:
    """Yield the places of a graph with their values, in the order of its nodes."""
    stack = (graph.name or "").partition(".")[0]
    first: ir.Value | None = None
    members: dict[str, list[ir.Node]] = {}
    for node in graph.all_nodes():
        found = _SUBLAYER.match(node.metadata_props.get("namespace", ""))
        if found is None or found["stack"] != stack:
            continue
        if first is None:
            first = node.inputs[0]
            assert first is not None
            yield f"{stack}.{EMBEDDING}", first
        place = f"{found['layer']}/{found['name']}".replace("/", ".")
        members.setdefault(place, []).append(node)
    for place, nodes in members.items():
        yield place, _result(place, nodes)


def _result(place: str, nodes: list[ir.Node]) -> ir.Value:
    """Return what the nodes of a sublayer hand on: the last value that others read.

    The caches are handed on too, but the product that ends a sublayer comes after them; experts
    chosen are read by nothing but the graph's outputs.
    """
    own = set(nodes)
    handed_on = [
        value
        for node in nodes
        for value in node.outputs
        if any(use.node not in own for use in value.uses()) or _is_first_output(value)
    ]
    if not handed_on:
        raise ir.passes.PreconditionError(f"nothing reads what the nodes of {place} compute")
    return handed_on[-1]


def _is_first_output(value: ir.Value) -> bool:
    """Whether a graph or branch returns the value as its states, which come first."""
    graph = value.graph
    return graph is not None and bool(graph.outputs) and graph.outputs[0] is value


def _branches(graph: ir.Graph) -> dict[ir.Graph, ir.Node]:
    """Return the node that each nested graph belongs to."""
    return {
        attribute.as_graph(): node
        for node in graph.all_nodes()
        for attribute in node.attributes.values()
        if attribute.type == ir.AttributeType.GRAPH
    }


def _tell(value: ir.Value, name: str, main: ir.Graph, branches: dict[ir.Graph, ir.Node]) -> None:
    """Make a value an output of the main graph, by way of the branches that it lies in."""
    graph = value.graph
    assert graph is not None
    copy = _copy(value, name if graph is main else f"{name}.{graph.name}")
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], copy)
    else:
        graph.insert_after(producer, copy)
    told = copy.outputs[0]
    while graph is not main:
        assert isinstance(graph, ir.Graph)
        graph.outputs.append(told)
        choice = branches[graph]
        outer = choice.graph
        assert isinstance(outer, ir.Graph)
        for other in _graphs(choice):
            if other is not graph:
                other.append(nothing := _nothing(told, f"{name}.{other.name}"))
                other.outputs.append(nothing.outputs[0])
        choice.resize_outputs(len(choice.outputs) + 1)
        inner, told = told, choice.outputs[-1]
        told.name = name if outer is main else f"{name}.{outer.name}"
        told.type, told.shape = inner.type, _varying(inner.shape, name)
        graph = outer
    main.outputs.append(told)


def _varying(shape: ir.Shape | None, name: str) -> ir.Shape:
    """Return the shape of what a branch tells: `T.2` is the T of layer 2, 0 where it is skipped."""
    layer = re.search(r"\.layers\.(\d+)", name)
    if shape is None or layer is None:
        return ir.Shape([None, None, None])
    dims = (dim if isinstance(dim, int) else dim.value for dim in shape)
    return ir.Shape([f"{dim}.{layer[1]}" if isinstance(dim, str) else dim for dim in dims])


def _graphs(node: ir.Node) -> list[ir.Graph]:
    attributes = node.attributes.values()
    return [item.as_graph() for item in attributes if item.type == ir.AttributeType.GRAPH]


def _copy(value: ir.Value, name: str) -> ir.Node:
    # Passes that remove copies would call an output of the graph by this name; the largest of one
    # number is that number too.
    kind = "Max" if value.is_graph_output() else "Identity"
    node = ir.node(kind, [value], name=name)
    node.outputs[0].name = name
    node.outputs[0].type = value.type or ir.TensorType(ir.DataType.FLOAT)
    node.outputs[0].shape = value.shape.copy() if value.shape is not None else None
    return node


def _nothing(like: ir.Value, name: str) -> ir.Node:
    assert like.dtype is not None
    width = like.shape[2] if like.shape is not None else 0
    shape = (0, 0, width if isinstance(width, int) else 0)
    empty = ir.tensor(np.zeros(shape, like.dtype.numpy()), dtype=like.dtype)
    node = ir.node("Constant", [], {"value": empty}, name=name)
    node.outputs[0].name = name
    node.outputs[0].type, node.outputs[0].shape = like.type, ir.Shape(shape)
    return node
