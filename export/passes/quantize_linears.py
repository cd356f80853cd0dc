"""Quantise the products with weight matrices to fp8 (E4M3)."""

import re
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

FP8 = ir.DataType.FLOAT8E4M3FN
LARGEST = 448.0  # of E4M3
_SMALLEST = float(np.finfo(np.float16).tiny)
"""Of a scale: those of float16 lose digits below it."""


class QuantizeLinears(ir.passes.InPlacePass):
    """Let every product of states with a weight matrix read both in fp8.

    States have one scale per tensor, a weight one per output. An engine fuses the pairs of
    quantisation and dequantisation with the product; elsewhere they compute what that gives. Heads,
    experts and routers stay as they are: the first are wide and decide between tokens, the others
    are read as stacks or in float32.

    Args:
        magnitudes: How far each value goes, by its name in the float32 graph. What goes further
            later is clipped, so they should have room to spare.
    """

    def __init__(self, magnitudes: Mapping[str, float]) -> None:
        super().__init__()
        self._magnitudes = magnitudes

    def requires(self, model: ir.Model) -> None:
        """Check that the graph has its precision, and that the states' magnitudes are known."""
        if not any(_is_half(value) for node in model.graph for value in node.outputs):
            raise ir.passes.PreconditionError("nothing is in half precision: type the graph first")
        for node in _linears(model.graph):
            states = node.inputs[0]
            assert states is not None
            if _plain(states) not in self._magnitudes:
                raise ir.passes.PreconditionError(f"no magnitude of {states.name} is known")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Quantise both inputs of every linear; states once for all that read them."""
        linears = _linears(model.graph)
        quantized: dict[ir.Value, ir.Value] = {}
        for node in linears:
            for index, value in enumerate(node.inputs):
                assert value is not None
                if value not in quantized:
                    known = value.is_initializer()
                    quantized[value] = _weight(value, node) if known else self._states(value, node)
                node.replace_input_with(index, quantized[value])
        for value in quantized:
            if value.is_initializer() and not value.uses():
                assert value.name is not None
                del model.graph.initializers[value.name]
        return ir.passes.PassResult(model, modified=bool(linears))

    def _states(self, value: ir.Value, reader: ir.Node) -> ir.Value:
        scale = max(self._magnitudes[_plain(value)] / LARGEST, _SMALLEST)
        assert value.dtype is not None
        step = _initializer(
            reader, f"{value.name}.scale", ir.tensor(np.array(scale, value.dtype.numpy()))
        )
        quantize = ir.node(
            "QuantizeLinear",
            [value, step],
            {"output_dtype": FP8},
            name=f"{value.name}/quantize",
        )
        quantize.outputs[0].name = f"{value.name}.fp8"
        quantize.outputs[0].type = ir.TensorType(FP8)
        return _dequantize(quantize.outputs[0], step, value, {}, [quantize], reader)


def _linears(graph: ir.Graph) -> list[ir.Node]:
    """The products of computed states with a matrix of weights."""
    found = []
    for node in graph:
        if node.op_type != "MatMul" or node.domain:
            continue
        states, weight = node.inputs
        assert states is not None
        assert weight is not None
        if states.is_initializer() or not weight.is_initializer() or _dequantized(states):
            continue
        if weight.shape is not None and len(weight.shape) == 2 and _is_half(weight):
            found.append(node)
    return found


def _is_half(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.itemsize == 2


def _dequantized(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and producer.op_type == "DequantizeLinear"


def _plain(value: ir.Value) -> str:
    """The name that the value has, or is cast from, in the float32 graph."""
    return re.sub(r"\.b?float16$", "", value.name or "")


def _weight(value: ir.Value, reader: ir.Node) -> ir.Value:
    """Quantise a weight `[in, out]`, each output by a scale of its own."""
    tensor = value.const_value
    assert tensor is not None
    assert value.dtype is not None
    half, name = value.dtype, tensor.name or ""

    def scales() -> npt.NDArray[np.float32]:
        largest = np.abs(tensor.numpy().astype(np.float32)).max(axis=0)
        rounded = np.maximum(largest / LARGEST, _SMALLEST).astype(half.numpy())
        return rounded.astype(np.float32)

    def quantize() -> ir.TensorProtocol:
        weights = tensor.numpy().astype(np.float32) / scales()
        clipped = np.clip(weights, -LARGEST, LARGEST).astype(FP8.numpy())
        return ir.Tensor(clipped, dtype=FP8, name=name)

    def tell_scales() -> ir.TensorProtocol:
        return ir.Tensor(scales().astype(half.numpy()), dtype=half, name=f"{name}.scale")

    rows, columns = tensor.shape
    shape = ir.Shape([rows, columns])  # type: ignore[list-item]
    outputs = ir.Shape([columns])  # type: ignore[list-item]
    packed = _initializer(
        reader, f"{name}.fp8", ir.LazyTensor(quantize, dtype=FP8, shape=shape, name=name)
    )
    steps = ir.LazyTensor(tell_scales, dtype=half, shape=outputs, name=f"{name}.scale")
    step = _initializer(reader, f"{name}.scale", steps)
    return _dequantize(packed, step, value, {"axis": 1}, [], reader)


def _dequantize(
    quantized: ir.Value,
    step: ir.Value,
    original: ir.Value,
    attributes: Mapping[str, int],
    before: list[ir.Node],
    reader: ir.Node,
) -> ir.Value:
    """Add the nodes before `reader`, and give the value that stands for `original`."""
    node = ir.node(
        "DequantizeLinear", [quantized, step], attributes, name=f"{quantized.name}/dequantize"
    )
    node.outputs[0].name = f"{original.name}.from_fp8"
    node.outputs[0].type, node.outputs[0].shape = original.type, original.shape
    graph = reader.graph
    assert isinstance(graph, ir.Graph)
    for added in (*before, node):
        added.metadata_props.update(reader.metadata_props)
    graph.insert_before(reader, [*before, node])
    return node.outputs[0]


def _initializer(reader: ir.Node, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    graph = reader.graph
    assert isinstance(graph, ir.Graph)
    if tensor.name is None:
        tensor.name = name
    value = ir.Value(
        name=name,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(list(tensor.shape)),  # type: ignore[arg-type]
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value
