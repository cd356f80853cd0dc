from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxscript
import pytest

from drl.export.passes import TypedPrecision
from drl.export.passes.tracing import in_float32
from drl.export.passes.typed_precision import cast_tensor
from drl.plugins.ops import EXPERT_ROUTE, ROUTED_FFN_COMBINE
from tests.export.passes.one_node import one_node, run
from tests.plugins.ops.cases import expert_route_cases, routed_ffn_combine_cases

FLOAT, HALF, BFLOAT = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16
WIDTH = 8


class _Graph:
    """A graph under construction, with weights that lie in a file."""

    def __init__(self) -> None:
        graph = ir.Graph([], [], nodes=[], opset_imports={"": 24}, name="graph")
        self.builder = onnxscript.GraphBuilder(graph)
        self.op = self.builder.op
        self._random = np.random.default_rng(0)

    def weight(self, name: str, *shape: int) -> ir.Value:
        array = self._random.standard_normal(shape).astype(np.float32)
        return self.builder.initializer(ir.tensor(array, name=name))

    def input(self, name: str, *dims: int | str) -> ir.Value:
        return self.builder.input(name, FLOAT, list(dims))

    def typed(self, half: ir.DataType = HALF, **outputs: ir.Value) -> ir.Model:
        for name, value in outputs.items():
            self.builder.add_output(value, name)
        model = ir.Model(self.builder.graph, ir_version=11)
        TypedPrecision(half)(model)
        return model


def _types(model: ir.Model) -> dict[str, list[Any]]:
    """The types of the float inputs and outputs of the nodes of each operator."""
    found: dict[str, list[Any]] = {}
    for node in model.graph:
        values = (*(v for v in node.inputs if v is not None), *node.outputs)
        kinds = [v.dtype for v in values if v.dtype is not None and v.dtype.is_floating_point()]
        found.setdefault(node.op_type, []).append(kinds)
    return found


@pytest.mark.parametrize("half", [HALF, BFLOAT])
def test_products_are_half_and_norms_and_softmax_float32(half: ir.DataType) -> None:
    g = _Graph()
    x = g.input("encoder_states", "B", "S", WIDTH)
    normed = g.op.RMSNormalization(x, g.weight("norm", WIDTH), axis=-1)
    product = g.op.MatMul(normed, g.weight("up", WIDTH, WIDTH))
    model = g.typed(half, probabilities=g.op.Softmax(g.op.Relu(product), axis=-1))
    types = _types(model)
    assert types["RMSNormalization"] == [[FLOAT] * 3]
    assert types["MatMul"] == [[half] * 3]
    assert types["Relu"] == [[half] * 2]
    assert types["Softmax"] == [[FLOAT] * 2]
    assert model.graph.inputs[0].dtype == half
    assert model.graph.outputs[0].dtype == FLOAT
    assert model.graph.initializers["up"].dtype == half
    assert model.graph.initializers["norm"].dtype == FLOAT


def test_a_node_follows_its_inputs_and_half_wins() -> None:
    g = _Graph()
    precise = g.op.Softmax(g.input("budget", "B", WIDTH), axis=-1)
    still = g.op.Mul(precise, 2.0)
    product = g.op.MatMul(still, g.weight("up", WIDTH, WIDTH))
    both = g.op.Add(product, still)
    model = g.typed(sum=both)
    types = _types(model)
    assert types["Mul"] == [[FLOAT] * 3]
    assert types["Add"] == [[HALF] * 3]


def test_a_node_that_asks_for_float32_gets_it_and_the_wish_goes() -> None:
    g = _Graph()
    product = g.op.MatMul(g.input("encoder_states", "B", WIDTH), g.weight("up", WIDTH, WIDTH))
    model = g.typed(scaled=in_float32(g.op.Mul(product, 3.0)))
    assert _types(model)["Mul"] == [[FLOAT] * 3]
    assert not any("precision" in node.metadata_props for node in model.graph)


def test_a_value_is_cast_once_for_all_its_readers() -> None:
    g = _Graph()
    x = g.op.Softmax(g.input("budget", "B", WIDTH), axis=-1)
    names = ("q", "k", "v")
    products = {name: g.op.MatMul(x, g.weight(f"{name}.weight", WIDTH, WIDTH)) for name in names}
    model = g.typed(**products)
    casts = [node for node in model.graph if node.op_type == "Cast"]
    assert len([node for node in casts if node.inputs[0] is x]) == 1


def test_a_weight_that_is_read_in_both_types_is_there_in_both() -> None:
    g = _Graph()
    table = g.weight("table", WIDTH, WIDTH)
    product = g.op.MatMul(g.input("encoder_states", "B", WIDTH), table)
    precise = g.op.RMSNormalization(g.input("budget", "B", WIDTH), g.op.Identity(table), axis=-1)
    precise.producer().replace_input_with(1, table)
    model = g.typed(product=product, precise=precise)
    kinds = {name: value.dtype for name, value in model.graph.initializers.items()}
    assert kinds == {"table": FLOAT, "table.float16": HALF}
    assert {v.const_value.name for v in model.graph.initializers.values()} == {"table"}  # type: ignore[union-attr]


@pytest.mark.parametrize("half", [HALF, BFLOAT])
def test_states_keys_and_values_are_half_at_the_border_and_all_else_float32(
    half: ir.DataType,
) -> None:
    g = _Graph()
    outputs = {
        "encoder_states": "encoder_states",
        "present_k.0": "past_k.0",
        "cross_v.3": "cross_v.3",
        "logits": "cross_bias",
    }
    given = {name: g.input(source, "B", WIDTH) for name, source in outputs.items()}
    model = g.typed(half, **{name: g.op.Relu(value) for name, value in given.items()})
    kinds = [half, half, half, FLOAT]
    assert [value.dtype for value in model.graph.inputs] == kinds
    assert [value.name for value in model.graph.outputs] == list(outputs)
    assert [value.dtype for value in model.graph.outputs] == kinds


def test_operators_of_ours_get_the_types_of_their_schema() -> None:
    model = one_node(next(routed_ffn_combine_cases()))
    TypedPrecision(HALF)(model)
    (node,) = [node for node in model.graph if node.op_type == ROUTED_FFN_COMBINE.name]
    kinds = dict(zip(("inner", "expert_ids", "gates", "down"), node.inputs, strict=True))
    assert {name: v.dtype for name, v in kinds.items() if v is not None} == {
        "inner": HALF,
        "expert_ids": ir.DataType.INT32,
        "gates": FLOAT,
        "down": HALF,
    }
    assert node.outputs[0].dtype == HALF


def test_routers_of_ours_compute_in_float32() -> None:
    model = one_node(next(expert_route_cases()))
    TypedPrecision(HALF)(model)
    (node,) = [node for node in model.graph if node.op_type == EXPERT_ROUTE.name]
    floats = [v for v in node.inputs if v is not None and v.dtype is not None]
    assert {v.dtype for v in floats if v.dtype.is_floating_point()} == {FLOAT}  # type: ignore[union-attr]


def test_a_typed_graph_gives_what_the_other_gave_up_to_rounding() -> None:
    def build() -> tuple[_Graph, ir.Value]:
        g = _Graph()
        x = g.op.Softmax(g.input("budget", "B", WIDTH), axis=-1)
        return g, g.op.Add(x, g.op.MatMul(x, g.weight("up", WIDTH, WIDTH)))

    plain, value = build()
    plain.builder.add_output(value, "sum")
    feeds = {"budget": np.random.default_rng(2).standard_normal((4, WIDTH)).astype(np.float32)}
    expected = run(ir.Model(plain.builder.graph, ir_version=11), feeds)["sum"]
    g, value = build()
    found = run(g.typed(sum=value), feeds)["sum"]
    assert 0 < np.abs(found - expected).max() < 5e-3


def test_what_has_been_typed_is_refused() -> None:
    g = _Graph()
    model = g.typed(x=g.op.MatMul(g.input("past_k.0", "B", WIDTH), g.weight("w", WIDTH, WIDTH)))
    with pytest.raises(ir.passes.PreconditionError, match="already"):
        TypedPrecision(HALF)(model)


def test_a_weight_beyond_the_range_is_named_when_it_is_read() -> None:
    tensor = ir.tensor(np.array([1.0, 7e4], np.float32), name="decoder.layers.0.ffn.down.weight")
    with pytest.raises(OverflowError, match=r"layers\.0\.ffn\.down\.weight reaches 7e\+04"):
        cast_tensor(tensor, HALF).numpy()
    kept = cast_tensor(tensor, BFLOAT).numpy()
    assert kept.dtype == ml_dtypes.bfloat16
