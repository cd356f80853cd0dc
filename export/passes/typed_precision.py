"""Type a graph: products in half precision, what needs more in float32, casts between them."""

import re

import ml_dtypes  # noqa: F401  (gives NumPy the type bfloat16)
import numpy as np
import onnx_ir as ir

from drl.export.passes.tracing import PRECISION
from drl.plugins.ops import DOMAIN, OPERATORS

SINGLE = ir.DataType.FLOAT
_PRODUCTS = frozenset({"MatMul", "Gemm", "Attention", "TensorScatter"})
_PRECISE = frozenset(
    {
        "ExpertRoute",
        "RMSNormalization",
        "LayerNormalization",
        "RotaryEmbedding",
        "Softmax",
        "LogSoftmax",
        "TopK",
    }
)
_HALF_VALUES = re.compile(r"encoder_states|(?:cross|past|present)_[kv]\.\d+")


class TypedPrecision(ir.passes.InPlacePass):
    """Give every value of an fp32 graph the type that it is computed in.

    Products, attention and the cache are of the half type; norms, rotations, softmax, rankings and
    nodes that ask for it compute in float32. All other nodes follow their inputs: half as soon as
    one of them is. What reads weights alone, as an embedding does, is half. Weights become the
    type of those who read them, and are converted when they are written.

    States, keys and values that enter or leave the graph are half, all other inputs and outputs
    float32.

    Args:
        half: float16 or bfloat16.
    """

    def __init__(self, half: ir.DataType) -> None:
        super().__init__()
        self._half = half
        self._typed: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def requires(self, model: ir.Model) -> None:
        """Check that every value has a type, none but float32 among the floats, none nested."""
        for node in model.graph:
            if any(a.type == ir.AttributeType.GRAPH for a in node.attributes.values()):
                raise ir.passes.PreconditionError(f"{node.name} holds a graph; specialise it first")
            for value in node.outputs:
                if value.dtype is None:
                    raise ir.passes.PreconditionError(f"{value.name} of {node.name} has no type")
                if value.dtype.is_floating_point() and value.dtype != SINGLE:
                    raise ir.passes.PreconditionError(f"{value.name} is {value.dtype} already")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Type inputs, nodes and outputs, in this order."""
        graph = model.graph
        self._typed.clear()
        for value in graph.inputs:
            if _is_float(value) and _HALF_VALUES.fullmatch(value.name or ""):
                value.type = ir.TensorType(self._half)
        for node in list(graph):
            self._type_node(node)
        for index, value in enumerate(graph.outputs):
            if _is_float(value):
                wanted = self._half if _HALF_VALUES.fullmatch(value.name or "") else SINGLE
                self._type_output(graph, index, wanted)
        _name_weights(graph)
        return ir.passes.PassResult(model, modified=True)

    def _type_node(self, node: ir.Node) -> None:
        wanted = self._argument_types(node)
        for index, value in enumerate(node.inputs):
            if value is not None and _is_float(value):
                node.replace_input_with(index, self._as(value, wanted[0][index]))
        for index, value in enumerate(node.outputs):
            if _is_float(value):
                value.type = ir.TensorType(wanted[1][index])
        if node.op_type == "Cast" and _is_float(node.outputs[0]):
            node.attributes["to"] = ir.AttrInt64("to", wanted[1][0])
        node.metadata_props.pop(PRECISION, None)

    def _argument_types(self, node: ir.Node) -> tuple[list[ir.DataType], list[ir.DataType]]:
        """The types of a node's inputs and outputs, as far as those are floats."""
        if node.domain == DOMAIN:
            operator = OPERATORS[node.op_type]
            free = SINGLE if node.op_type in _PRECISE else self._half
            return (
                [argument.dtype or free for argument in operator.inputs],
                [argument.dtype or free for argument in operator.outputs],
            )
        kind = self._precision(node)
        return [kind] * len(node.inputs), [kind] * len(node.outputs)

    def _precision(self, node: ir.Node) -> ir.DataType:
        if node.metadata_props.get(PRECISION) == "float32" or node.op_type in _PRECISE:
            return SINGLE
        if node.op_type in _PRODUCTS:
            return self._half
        floats = [value for value in node.inputs if value is not None and _is_float(value)]
        computed = [value for value in floats if not value.is_initializer()]
        if not computed:
            stored = any(isinstance(v.const_value, ir.ExternalTensor) for v in floats)
            return self._half if stored else SINGLE
        return self._half if any(v.dtype == self._half for v in computed) else SINGLE

    def _as(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Return `value` in the type `dtype`, converted at most once."""
        if value.dtype == dtype:
            return value
        key = (value, dtype)
        if key not in self._typed:
            convert = self._constant if value.is_initializer() else self._cast
            self._typed[key] = convert(value, dtype)
        return self._typed[key]

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        node = ir.node("Cast", [value], {"to": dtype}, name=f"{value.name}/{_word(dtype)}")
        result = node.outputs[0]
        result.name = f"{value.name}.{_word(dtype)}"
        result.type, result.shape = ir.TensorType(dtype), value.shape
        producer = value.producer()
        if producer is not None:
            node.metadata_props.update(producer.metadata_props)
            node.metadata_props.pop(PRECISION, None)
            assert producer.graph is not None
            producer.graph.insert_after(producer, node)
        else:
            graph = value.graph
            assert isinstance(graph, ir.Graph)
            graph.insert_before(graph[0], node)
        return result

    def _constant(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        graph = value.graph
        assert isinstance(graph, ir.Graph)
        tensor = value.const_value
        assert tensor is not None
        typed = ir.Value(
            name=f"{value.name}.{_word(dtype)}",
            type=ir.TensorType(dtype),
            shape=value.shape,
            const_value=cast_tensor(tensor, dtype),
        )
        graph.register_initializer(typed)
        return typed

    def _type_output(self, graph: ir.Graph, index: int, wanted: ir.DataType) -> None:
        value = graph.outputs[index]
        if value.dtype == wanted:
            return
        name = value.name
        typed = self._as(value, wanted)
        value.name = f"{name}.{_word(value.dtype)}"
        typed.name, typed.shape = name, value.shape
        graph.outputs[index] = typed


def cast_tensor(tensor: ir.TensorProtocol, dtype: ir.DataType) -> ir.LazyTensor:
    """Return `tensor` in another type, converted when it is read.

    Raises, when it is read:
        OverflowError: A value lies beyond the range of `dtype`.
    """

    def convert() -> ir.TensorProtocol:
        source = tensor.numpy()
        with np.errstate(over="ignore"):
            array = source.astype(dtype.numpy())
        if not np.isfinite(array).all():
            largest = np.abs(source).max()
            raise OverflowError(f"{tensor.name} reaches {largest:.3g}, beyond {_word(dtype)}")
        return ir.Tensor(array, dtype=dtype, name=tensor.name)

    shape = ir.Shape(list(tensor.shape))  # type: ignore[arg-type]
    return ir.LazyTensor(convert, dtype=dtype, shape=shape, name=tensor.name)


def _is_float(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_floating_point()


def _word(dtype: ir.DataType | None) -> str:
    assert dtype is not None
    return dtype.name.lower()


def _name_weights(graph: ir.Graph) -> None:
    """Drop weights that nothing reads any more; one that is left of two gets the plain name."""
    for value in list(graph.initializers.values()):
        if not value.uses() and not value.is_graph_output():
            assert value.name is not None
            del graph.initializers[value.name]
    for value in list(graph.initializers.values()):
        plain = re.sub(r"\.(?:b?float16|float)$", "", value.name or "")
        if plain != value.name and plain not in graph.initializers:
            value.name = plain
