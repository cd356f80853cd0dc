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

    Absent inputs go, and `k` of `ExpertRoute` becomes an attribute, since a plugin cannot have
    shapes that depend on values. The functions of these operators go too.

    Returns:
        The plugins that the model needs, in alphabetical order.

    Raises:
        CudaKernelError: `k` is not a constant, or only one of two biases is there.
    """
    forms = set()
    for node in model.graph.all_nodes():
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
