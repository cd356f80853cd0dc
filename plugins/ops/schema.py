"""The schema of an operator of the domain `drl`, and the checks of a node against it."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from drl.plugins.ops.shapes import Dimensions, is_expression

FLOAT_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)

AttributeValue = int | float | str
Values = Sequence[ir.Value | None]


class OperatorError(ValueError):
    """A `drl` operator is used against its schema."""


@dataclass(frozen=True)
class Argument:
    """An input or output of an operator.

    `dtype` None stands for FT: float32, float16 or bfloat16, the same for all FT arguments of a
    node. `dims` are written as in `drl.plugins.ops.shapes`; an empty tuple is a scalar.
    `other_dims` are those that it has where an optional input is given, by that input's name.
    An optional input with `beside` may be given only where the input of that name is.
    """

    name: str
    dtype: ir.DataType | None
    dims: tuple[str, ...]
    optional: bool = False
    other_dims: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    beside: str | None = None

    def __str__(self) -> str:
        return f"{self.name!r} must be [{', '.join(self.dims).replace('|', ' or ')}]"

    def among(self, given: Collection[str]) -> "Argument":
        """This argument with the dims that it has where the inputs `given` are there."""
        for name, dims in self.other_dims.items():
            if name in given:
                return replace(self, dims=dims)
        return self


@dataclass(frozen=True)
class Attribute:
    """An attribute of an operator; every attribute must be given.

    A text attribute chooses the body: `choices` maps each value that it may take to the optional
    inputs which that value needs. `dimension` names the symbol that a number stands for; a text
    stands for the number that `sizes` gives. `only` is the one value that there is.
    """

    name: str
    type: type[int] | type[float] | type[str]
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    dimension: str | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    only: AttributeValue | None = None

    def size(self, value: AttributeValue) -> int:
        """What the dimension is with this value."""
        return self.sizes[value] if isinstance(value, str) else int(value)


@dataclass(frozen=True)
class Form:
    """One way to use an operator: the inputs that are given and the choices that are taken.

    An ONNX function has neither optional inputs nor branches on text, so each form has a body
    of its own.
    """

    operator: str
    inputs: tuple[str, ...]
    choices: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        chosen = "".join(f", {name}={value}" for name, value in self.choices)
        return f"{self.operator}({', '.join(self.inputs)}{chosen})"

    @property
    def overload(self) -> str:
        """The form without the operator's name, as ONNX tells functions of one name apart."""
        return ",".join([*self.inputs, *(f"{name}={value}" for name, value in self.choices)])


@dataclass(frozen=True, kw_only=True)
class Schema:
    """Names, dtypes and dimensions of an operator's inputs, outputs and attributes."""

    name: str
    inputs: tuple[Argument, ...]
    outputs: tuple[Argument, ...]
    attributes: tuple[Attribute, ...] = ()

    def form(self, node: ir.Node) -> Form:
        """The form in which a node uses this operator.

        Raises:
            OperatorError: The node's inputs or attributes do not fit the schema.
        """
        return self.form_of(
            node.inputs, {name: attribute.value for name, attribute in node.attributes.items()}
        )

    def form_of(self, inputs: Values, attributes: Mapping[str, AttributeValue]) -> Form:
        """The form that these inputs and attributes make.

        Raises:
            OperatorError: An attribute or input is missing, unknown or refused.
        """
        self._check_attributes(attributes)
        if len(inputs) > len(self.inputs):
            raise OperatorError(
                f"{self.name} takes at most {len(self.inputs)} inputs, got {len(inputs)}"
            )
        needed, governed = self._optional_inputs(attributes)
        present = {argument.name for argument, _ in self._given(inputs)}
        for argument in self.inputs:
            if argument.name not in present and (not argument.optional or argument.name in needed):
                raise OperatorError(f"{self.name} lacks its input {argument.name!r}")
            if argument.name in present and argument.name in governed - needed:
                raise OperatorError(
                    f"{self.name} takes no input {argument.name!r} with {dict(attributes)}"
                )
            if argument.name in present and argument.beside not in {None, *present}:
                raise OperatorError(
                    f"{self.name} takes no input {argument.name!r} without {argument.beside!r}"
                )
        return Form(
            self.name,
            tuple(argument.name for argument in self.inputs if argument.name in present),
            tuple((a.name, str(attributes[a.name])) for a in self.attributes if a.choices),
        )

    def output_types(
        self, inputs: Values, attributes: Mapping[str, AttributeValue]
    ) -> list[tuple[ir.DataType, ir.Shape]]:
        """Dtype and shape of every output, found by unifying the inputs with the schema.

        A dimension that no input has is named after its symbol.

        Raises:
            OperatorError: An input has the wrong dtype, rank or size.
        """
        float_type = self._check_dtypes(inputs)
        dimensions = self._check_shapes(inputs, attributes)
        of_inputs = {spec for argument in self.inputs for spec in argument.dims}

        def resolve(spec: str) -> int | ir.SymbolicDim | str | None:
            dimension = dimensions.resolve(spec)
            return spec if dimension is None and spec not in of_inputs else dimension

        return [
            (argument.dtype or float_type, ir.Shape([resolve(spec) for spec in argument.dims]))
            for argument in self.outputs
        ]

    def _given(self, inputs: Values) -> Iterator[tuple[Argument, ir.Value]]:
        for argument, value in zip(self.inputs, inputs, strict=False):
            if value is not None:
                yield argument, value

    def _optional_inputs(
        self, attributes: Mapping[str, AttributeValue]
    ) -> tuple[set[str], set[str]]:
        """The optional inputs that the choices taken need, and all that any choice needs."""
        needed: set[str] = set()
        governed: set[str] = set()
        for attribute in self.attributes:
            governed.update(*attribute.choices.values())
            needed.update(attribute.choices.get(str(attributes[attribute.name]), ()))
        return needed, governed

    def _check_attributes(self, attributes: Mapping[str, AttributeValue]) -> None:
        known = {attribute.name: attribute for attribute in self.attributes}
        if attributes.keys() != known.keys():
            raise OperatorError(
                f"{self.name} takes the attributes {sorted(known)}, got {sorted(attributes)}"
            )
        for name, value in attributes.items():
            attribute = known[name]
            if type(value) is not attribute.type:
                raise OperatorError(
                    f"{self.name}: attribute {name!r} must be {attribute.type.__name__}, "
                    f"got {value!r}"
                )
            if attribute.choices and value not in attribute.choices:
                raise OperatorError(
                    f"{self.name}: attribute {name!r} must be one of "
                    f"{', '.join(attribute.choices)}, got {value!r}"
                )
            if attribute.only not in (None, value):
                raise OperatorError(
                    f"{self.name}: attribute {name!r} must be {attribute.only!r}, got {value!r}"
                )

    def _check_dtypes(self, inputs: Values) -> ir.DataType:
        """Check the dtype of every input; return the one that FT stands for."""
        float_type: ir.DataType | None = None
        for argument, value in self._given(inputs):
            expected = argument.dtype or float_type
            allowed = FLOAT_TYPES if expected is None else (expected,)
            if value.dtype is None or value.dtype not in allowed:
                names = " or ".join(dtype.name.lower() for dtype in allowed)
                actual = "no dtype" if value.dtype is None else value.dtype.name.lower()
                raise OperatorError(
                    f"{self.name}: input {argument.name!r} must be {names}, "
                    f"but {value.name!r} has {actual}"
                )
            if argument.dtype is None:
                float_type = value.dtype
        return float_type or ir.DataType.FLOAT

    def _check_shapes(self, inputs: Values, attributes: Mapping[str, AttributeValue]) -> Dimensions:
        """Unify the shapes of the inputs; a value without a shape is let through."""
        dimensions = Dimensions(
            {a.dimension: a.size(attributes[a.name]) for a in self.attributes if a.dimension}
        )
        given = list(self._given(inputs))
        names = {argument.name for argument, _ in given}
        shaped = [(a.among(names), v, v.shape) for a, v in given if v.shape is not None]
        for argument, value, shape in shaped:
            if len(shape) != len(argument.dims):
                raise OperatorError(f"{self.name}: input {argument}, but {value.name!r} is {shape}")
        sizes = [
            (argument, value, spec, actual)
            for argument, value, shape in shaped
            for spec, actual in zip(argument.dims, shape, strict=True)
        ]
        # Plain symbols first, so that sums and products can be worked out from them.
        for argument, value, spec, actual in sorted(sizes, key=lambda s: is_expression(s[2])):
            if not dimensions.bind(spec, actual):
                raise OperatorError(
                    f"{self.name}: input {argument}{dimensions.describe(spec)}, "
                    f"but {value.name!r} is {value.shape}"
                )
        return dimensions
