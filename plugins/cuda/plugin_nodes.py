"""Turns the nodes of operators that have kernels into nodes of TensorRT plugins."""

from dataclasses import dataclass

import onnx_ir as ir

from drl.plugins.cuda.errors import CudaKernelError
from drl.plugins.ops import DOMAIN, OPERATORS

NAMESPACE = DOMAIN
"""Namespace of the plugins."""
OPERATORS_WITH_PLUGINS = ("ExpertRoute", "RoutedFFNInner", "RoutedFFNCombine")
# What a plugin takes beside tensors; it can have no default, and one is all that TensorRT hands on
# in a known order.
_ATTRIBUTES = {"ExpertRoute": "k", "RoutedFFNInner": "activation"}


@dataclass(frozen=True)
class PluginForm:
    """An operator with the inputs that a plugin of it takes: a plugin has no optional ones.

    Attributes:
        operator: Its name.
        inputs: Names of the inputs, in the order of the operator's schema.
    """

    operator: str
    inputs: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of the plugin: the operator, and the optional inputs that are there."""
        optional = {a.name for a in OPERATORS[self.operator].inputs if a.optional}
        return "_".join([self.operator, *(name for name in self.inputs if name in optional)])

    @property
    def attribute(self) -> str | None:
        """The one attribute, or None."""
        return _ATTRIBUTES.get(self.operator)


def use_plugins(model: ir.Model) -> tuple[PluginForm, ...]:
    """Make every node whose operator has a kernel a node of its plugin, in place.

    Absent inputs go, masks become int32, and `k` of `ExpertRoute` becomes an attribute, since a
    plugin cannot have shapes that depend on values. The functions of these operators go too.

    Returns:
        The plugins that the model needs, in alphabetical order.

    Raises:
        CudaKernelError: `k` is not a constant, or only one of two biases is there.
    """
    forms = set()
    numbers: dict[tuple[ir.Value, int], ir.Value] = {}
    for node in list(model.graph.all_nodes()):
        if node.domain != DOMAIN or node.op_type not in OPERATORS_WITH_PLUGINS:
            continue
        attributes = [ir.AttrString("plugin_namespace", NAMESPACE)]
        names = [argument.name for argument in OPERATORS[node.op_type].inputs]
        given = [
            (name, value)
            for name, value in zip(names, node.inputs, strict=False)
            if value is not None
        ]
        if node.op_type == "ExpertRoute":
            (k,) = (value for name, value in given if name == "k")
            attributes.append(ir.AttrInt64("k", _constant(node, k)))
            given = [(name, value) for name, value in given if name != "k"]
        form = PluginForm(node.op_type, tuple(name for name, _ in given))
        if "gate" in form.inputs and ("up_bias" in form.inputs) != ("gate_bias" in form.inputs):
            raise CudaKernelError(
                f"node {node.name!r}: the plugin takes both biases or none; give zeros for the "
                "other, or build without plugins"
            )
        forms.add(form)
        given = [(name, _as_number(node, value, numbers)) for name, value in given]
        node.resize_inputs(len(given))
        for index, (_, value) in enumerate(given):
            node.replace_input_with(index, value)
        node.op_type = form.name
        for attribute in attributes:
            node.attributes.add(attribute)
    for identifier in list(model.functions):
        if identifier[0] == DOMAIN and identifier[1] in OPERATORS_WITH_PLUGINS:
            del model.functions[identifier]
    return tuple(sorted(forms, key=lambda form: form.name))


def _as_number(
    node: ir.Node, value: ir.Value, known: dict[tuple[ir.Value, int], ir.Value]
) -> ir.Value:
    """The value itself, or its int32 cast if it is boolean, which plugins cannot have.

    Nodes of one graph share the cast, which stands before the first of them.
    """
    if value.dtype != ir.DataType.BOOL:
        return value
    graph = node.graph
    assert graph is not None
    if (value, id(graph)) not in known:
        name = f"{node.name}/{value.name}_as_int32"
        cast = ir.node("Cast", [value], {"to": ir.DataType.INT32}, name=name)
        number = cast.outputs[0]
        number.name = f"{value.name}.as_int32"
        number.type, number.shape = ir.TensorType(ir.DataType.INT32), value.shape
        graph.insert_before(node, cast)
        known[value, id(graph)] = number
    return known[value, id(graph)]


def _constant(node: ir.Node, value: ir.Value) -> int:
    producer = value.producer()
    constant = value.const_value
    if constant is None and producer is not None and producer.op_type == "Constant":
        attribute = producer.attributes.get("value") or producer.attributes.get("value_ints")
        if attribute is not None:
            stored = attribute.value
            constant = stored if isinstance(stored, ir.TensorProtocol) else ir.tensor(stored)
    if constant is None:
        raise CudaKernelError(
            f"node {node.name!r}: the number of experts is not a constant, so no plugin can take "
            "its place; build without plugins"
        )
    return int(constant.numpy().item())
