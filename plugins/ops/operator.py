"""What an operator of the domain `drl` is: its schema, its NumPy reference and its ONNX body."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import onnxscript

from drl.plugins.ops.schema import Argument, Attribute, AttributeValue, Form, Schema

DOMAIN = "drl"
VERSION = 1
# The opset of the standard operators that the bodies are made of.
BODY_OPSET = 24

_ATTRIBUTE_TYPES = {
    int: ir.AttributeType.INT,
    float: ir.AttributeType.FLOAT,
    str: ir.AttributeType.STRING,
}
_CONSTANT_FIELDS: dict[type, str] = {int: "value_int", float: "value_float"}


@dataclass(frozen=True, kw_only=True)
class Operator(Schema):
    """An operator: schema, NumPy reference and body in standard operators, in one place.

    `reference(*arrays, **attributes)` defines the result. `body(op, *values, **attributes)` traces
    the same computation with an `onnxscript.OpBuilder`; it is given the inputs of its form only,
    text attributes as they are and numeric attributes as scalar values. Both return one result,
    or a tuple of them where the operator has several outputs.

    An `overloaded` operator may be used in several forms in one graph. Its nodes name their form
    in ONNX's field `overload`, and so do its functions. ONNX Runtime reads it from version 1.27
    on; earlier ones would take any of the functions for all nodes.
    """

    reference: Callable[..., Any]
    body: Callable[..., Any]
    overloaded: bool = False

    def emit(
        self,
        op: onnxscript.OpBuilder,
        *inputs: ir.Value | None,
        name: str | None = None,
        **attributes: AttributeValue,
    ) -> Any:
        """Add a node of this operator to the graph that `op` builds.

        Sets dtype and shape of every output, which the builder cannot infer for this domain.
        None stands for an absent optional input. Returns the output value, or a tuple of them
        where the operator has several.

        Raises:
            OperatorError: An input or attribute is missing, unknown, or of the wrong type, rank
                or size.
        """
        given = list(inputs)
        while given and given[-1] is None:
            given.pop()
        form = self.form_of(given, attributes)
        types = self.output_types(given, attributes)
        results = getattr(op, self.name)(
            *given,
            **attributes,
            _domain=DOMAIN,
            _version=VERSION,
            _outputs=len(self.outputs),
            _name=name,
        )
        op.builder.root.graph.opset_imports.setdefault(DOMAIN, VERSION)
        values = tuple(results) if len(self.outputs) > 1 else (results,)
        values[0].producer().overload = self.overload(form)
        for value, (dtype, shape) in zip(values, types, strict=True):
            value.type = ir.TensorType(dtype)
            value.shape = shape
        return values if len(values) > 1 else values[0]

    def overload(self, form: Form) -> str:
        """What the nodes and the function of a form have in the field `overload`."""
        return form.overload if self.overloaded else ""

    def function(self, form: Form) -> ir.Function:
        """The body of one form, as an ONNX function with the operator's plain name."""
        choices = dict(form.choices)
        numbers = [attribute for attribute in self.attributes if not attribute.choices]
        # A node leaves an absent input in the middle empty; the body does not read it.
        last = max(i for i, argument in enumerate(self.inputs) if argument.name in form.inputs)
        formal = self.inputs[: last + 1]

        def trace(op: onnxscript.OpBuilder, *values: ir.Value) -> Sequence[ir.Value]:
            given = {
                argument.name: value if argument.name in form.inputs else None
                for argument, value in zip(formal, values, strict=True)
            }
            constants = {attribute.name: _constant(op, attribute) for attribute in numbers}
            results = self.body(op, **given, **choices, **constants)
            outputs = results if isinstance(results, tuple) else (results,)
            for constant in constants.values():
                if not constant.uses():
                    op.builder.graph.remove(constant.producer())
            for argument, value in zip(self.outputs, outputs, strict=True):
                value.name = argument.name
            return outputs

        function = onnxscript.build_function(
            trace,
            [_formal_input(argument) for argument in formal],
            domain=DOMAIN,
            name=self.name,
            attributes=[
                ir.Attr(attribute.name, _ATTRIBUTE_TYPES[attribute.type], None)
                for attribute in self.attributes
            ],
            opset_imports={"": BODY_OPSET},
        )
        function.overload = self.overload(form)
        for node in function.all_nodes():
            node.metadata_props.clear()  # the builder's module scopes mean nothing in here
            _name_apart(node, function.graph)
        return function


def _name_apart(node: ir.Node, outermost: ir.Graph) -> None:
    """Name the results of a nested graph's node after that graph.

    The builder counts from zero in every graph, and names must be unique over all of them.
    """
    if isinstance(node.graph, ir.Graph) and node.graph is not outermost:
        for value in node.outputs:
            value.name = f"{node.graph.name}.{value.name}"


def _formal_input(argument: Argument) -> ir.Value:
    """An input of a function; FT stays open, so that one body serves every float type."""
    kind = None if argument.dtype is None else ir.TensorType(argument.dtype)
    return ir.Value(name=argument.name, type=kind)


def _constant(op: onnxscript.OpBuilder, attribute: Attribute) -> Any:
    """A numeric attribute as a scalar value, by reference to the attribute of the node."""
    target = _CONSTANT_FIELDS[attribute.type]
    kind = _ATTRIBUTE_TYPES[attribute.type]
    return op.Constant(**{target: ir.RefAttr(target, attribute.name, kind)})
