"""Let the caller say which experts a graph's tokens take, in the place of its own routers."""

import re

import onnx_ir as ir

from drl.plugins.ops import DOMAIN, OPERATORS

_LAYER = re.compile(r"(encoder|decoder)/layers\.\d+(?=/ffn(/|$))")
_ROUTE = ("expert_ids", "gates")


class ForceRoutes(ir.passes.InPlacePass):
    """Feed every operator that runs experts from graph inputs, `routes.<layer>.expert_ids` and so.

    What runs experts reads a route: the experts of each token and the gates that weigh them, after
    any capacity. The routers stay and go on telling what they would have chosen, as outputs of the
    graph. A second run changes nothing.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Add the inputs of every sparse layer to `model`, those inside branches included."""
        inputs = {str(value.name): value for value in model.graph.inputs}
        modified = False
        for node in model.graph.all_nodes():
            for index, part in _route_places(node):
                name = route_inputs(_layer(node))[_ROUTE.index(part)]
                old = node.inputs[index]
                assert old is not None
                if name not in inputs:
                    inputs[name] = _route_input(node, name)
                    model.graph.inputs.append(inputs[name])
                if old is not inputs[name]:
                    node.replace_input_with(index, inputs[name])
                    modified = True
        return ir.passes.PassResult(model, modified)


def route_inputs(layer: str) -> tuple[str, str]:
    """Return the names of the inputs for the expert ids and the gates of `decoder.layers.1`."""
    ids, gates = (f"routes.{layer}.{part}" for part in _ROUTE)
    return ids, gates


def _route_places(node: ir.Node) -> list[tuple[int, str]]:
    """Return the inputs of a node that take a route from a router, with what they are."""
    if node.domain != DOMAIN or "FFN" not in node.op_type:
        return []
    names = [argument.name for argument in OPERATORS[node.op_type].inputs]
    return [(i, name) for i, name in enumerate(names) if name in _ROUTE]


def _layer(node: ir.Node) -> str:
    namespace = node.metadata_props.get("namespace", "")
    found = _LAYER.match(namespace)
    if found is None:
        raise ir.passes.PreconditionError(
            f"node {node.name!r} runs experts and does not say of which layer: its namespace is "
            f"{namespace!r}"
        )
    return found.group().replace("/", ".")


def _route_input(node: ir.Node, name: str) -> ir.Value:
    """Return an input for a route that `node` reads; ids and gates have the shape of the ids."""
    ids = next(node.inputs[i] for i, part in _route_places(node) if part == _ROUTE[0])
    assert ids is not None
    dtype = ir.DataType.INT32 if name.endswith(_ROUTE[0]) else ir.DataType.FLOAT
    shape = ir.Shape([None, None, None]) if ids.shape is None else ids.shape.copy()
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=shape)
