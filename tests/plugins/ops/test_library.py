"""The functions that a graph of `drl` nodes needs, and the forms that it may not mix."""

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import onnxscript
import pytest

from drl.plugins.ops import (
    CACHED_ATTENTION,
    OPERATORS,
    PATH_SCORE,
    QUANTIZED_LINEAR,
    ROUTED_FFN,
    OperatorError,
    functions_for,
)
from drl.plugins.ops.packing import LAYOUT
from tests.plugins.ops.case import Maker
from tests.plugins.ops.engines import run_onnxruntime
from tests.plugins.ops.quantized_cases import packed
from tests.plugins.ops.values import (
    BOOL,
    FP32,
    attention_inputs,
    ffn_inputs,
    linear_attributes,
    linear_inputs,
    new_builder,
    value,
)


def test_one_function_per_operator_with_its_plain_name() -> None:
    builder = new_builder()
    for scale in (0.5, 0.25):
        CACHED_ATTENTION.emit(builder.op, *attention_inputs(), num_heads=4, scale=scale)
    ROUTED_FFN.emit(builder.op, *ffn_inputs(gated=True), activation="silu_glu")
    builder.op.Relu(value("x", FP32, 1))
    functions = functions_for(builder.graph.all_nodes())
    assert [function.identifier() for function in functions] == [
        ("drl", "CachedAttention", ""),
        ("drl", "RoutedFFN", ""),
    ]
    assert [v.name for v in functions[0].inputs] == [
        a.name for a in CACHED_ATTENTION.inputs if not a.optional
    ]
    assert [v.name for v in functions[0].outputs] == ["output", "present_k", "present_v"]


def test_bodies_use_standard_operators_only() -> None:
    for activation in ("silu_glu", "relu"):
        builder = new_builder()
        inputs = ffn_inputs(gated=activation == "silu_glu")
        ROUTED_FFN.emit(builder.op, *inputs, activation=activation)
        for function in functions_for(builder.graph.all_nodes()):
            assert {node.domain for node in function.all_nodes()} == {""}
            assert function.opset_imports == {"": 24}


def test_nodes_in_nested_graphs_are_found() -> None:
    builder = new_builder()
    inputs = ffn_inputs(gated=False)

    def on(op: onnxscript.OpBuilder) -> Any:
        return ROUTED_FFN.emit(op, *inputs, activation="relu")

    branches = {
        "then_branch": builder.subgraph(on, [], [ir.val("on")], name="on"),
        "else_branch": builder.subgraph(
            lambda op: op.Identity(inputs[0]), [], [ir.val("off")], name="off"
        ),
    }
    builder.op.If(value("condition", BOOL), **branches)
    assert [f.name for f in functions_for(builder.graph.all_nodes())] == ["RoutedFFN"]
    assert builder.graph.opset_imports["drl"] == 1


@pytest.mark.parametrize(
    ("emit_other", "message"),
    [
        (
            lambda op: ROUTED_FFN.emit(
                op, *ffn_inputs(gated=False), name="layers.1", activation="gelu"
            ),
            "activation=gelu",
        ),
        (
            lambda op: ROUTED_FFN.emit(
                op, *ffn_inputs(gated=True), name="layers.1", activation="silu_glu"
            ),
            "RoutedFFN(hidden, expert_ids, gates, up, down, gate, activation=silu_glu)",
        ),
    ],
    ids=["activation", "inputs"],
)
def test_two_forms_of_one_operator_are_refused(emit_other: Any, message: str) -> None:
    builder = new_builder()
    inputs = ffn_inputs(gated=False)
    ROUTED_FFN.emit(builder.op, *inputs, name="layers.0", activation="relu")
    emit_other(builder.op)
    with pytest.raises(OperatorError, match=r"nodes 'layers\.0' and 'layers\.1'") as caught:
        functions_for(builder.graph.all_nodes())
    assert message in str(caught.value)


def test_form_tells_bias_from_no_bias() -> None:
    builder = new_builder()
    bias = value("bias", FP32, 1, 4, "T", "L")
    CACHED_ATTENTION.emit(builder.op, *attention_inputs(), num_heads=4, scale=0.5)
    CACHED_ATTENTION.emit(builder.op, *attention_inputs(), bias, num_heads=4, scale=0.5)
    with pytest.raises(OperatorError, match="in two forms"):
        functions_for(builder.graph.all_nodes())


def _two_forms() -> ir.Model:
    """x through an int4 layer with an activation, then through an int8 layer with a residual."""
    make, builder = Maker("two_forms", "fp32"), new_builder()
    x = builder.input("x", FP32, ["B", "T", 8])

    def layer(x: ir.Value, name: str, format: str, *rest: ir.Value | None, activation: str) -> Any:
        arrays = packed(make.f32(8, 8), format)
        given = [
            builder.initializer(ir.tensor(arrays[part], name=f"{name}.{part}"))
            if part in arrays
            else None
            for part in ("weight", "scale", "multiplier")
        ]
        return QUANTIZED_LINEAR.emit(
            builder.op,
            x,
            *given,
            *rest,
            columns=8,
            activation=activation,
            epsilon=0.0,
            layout=LAYOUT,
        )

    middle = layer(x, "first", "int4", activation="relu")
    builder.add_output(layer(middle, "second", "int8", None, None, x, activation="none"), "y")
    model = ir.Model(builder.graph, ir_version=11)
    for function in functions_for(model.graph.all_nodes()):
        model.functions[function.identifier()] = function
    return model


def test_overloaded_operator_has_a_function_per_form() -> None:
    model = _two_forms()
    nodes = [node for node in model.graph if node.domain == "drl"]
    assert [node.overload for node in nodes] == [
        "x,weight,scale,multiplier,activation=relu",
        "x,weight,scale,residual,activation=none",
    ]
    assert sorted(model.functions) == [
        ("drl", "QuantizedLinear", overload) for overload in sorted(n.overload for n in nodes)
    ]
    assert all(node.op_identifier() in model.functions for node in nodes)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


@pytest.mark.skipif(
    tuple(int(part) for part in onnxruntime.__version__.split(".")[:2]) < (1, 27),
    reason="ONNX Runtime before 1.27 ignores overloads",
)
def test_every_node_runs_the_body_of_its_own_form() -> None:
    """ONNX Runtime tells overloads apart."""
    model = _two_forms()
    proto, x = ir.to_proto(model), Maker("x", "fp32").f32(2, 3, 8)
    values = {name: v.const_value.numpy() for name, v in model.graph.initializers.items()}
    expected = x
    for name, activation in (("first", "relu"), ("second", "none")):
        arrays = {key.split(".")[1]: a for key, a in values.items() if key.startswith(name)}
        expected = QUANTIZED_LINEAR.reference(
            expected,
            **arrays,
            residual=x if name == "second" else None,
            columns=8,
            activation=activation,
            epsilon=0.0,
            layout=LAYOUT,
        )
    actual = run_onnxruntime(proto, {"x": x})["y"]
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-5)


def test_node_with_another_forms_overload_is_refused() -> None:
    node = QUANTIZED_LINEAR.emit(
        new_builder().op, *linear_inputs(), **linear_attributes("relu")
    ).producer()
    node.name, node.overload = "odd", "x,weight,scale,activation=none"
    with pytest.raises(OperatorError, match=r"node 'odd' has the overload .*=none', but its form"):
        functions_for([node])


def test_unused_attributes_leave_nothing_in_a_body() -> None:
    builder = new_builder()
    QUANTIZED_LINEAR.emit(builder.op, *linear_inputs(), **linear_attributes())
    (function,) = functions_for(builder.graph.all_nodes())
    referred = {
        attribute.ref_attr_name
        for node in function.all_nodes()
        for attribute in node.attributes.values()
        if attribute.is_ref()
    }
    assert referred == {"columns"}


def test_unknown_operator_is_refused() -> None:
    node = ir.node("Unheard", [], domain="drl", name="odd")
    with pytest.raises(OperatorError, match=r"node 'odd': there is no operator drl\.Unheard"):
        functions_for([node])


def test_node_that_does_not_fit_is_refused() -> None:
    node = ir.node("RoutedFFN", ffn_inputs(gated=False), {"activation": "tanh"}, domain="drl")
    with pytest.raises(OperatorError, match="must be one of"):
        functions_for([node])


def test_function_is_the_same_every_time() -> None:
    builder = new_builder()
    PATH_SCORE.emit(
        builder.op,
        value("states", FP32, "B", "S", 16),
        value("mask", BOOL, "B", "S"),
        value("log_probs", FP32, "B", "S", 4),
        value("budget", FP32, "B"),
        value("sw", FP32, 16),
        value("sb", FP32),
        value("w1", FP32, 22, 8),
        value("b1", FP32, 8),
        value("w2", FP32, 8, 3),
        value("b2", FP32, 3),
        pooling="saliency",
        max_source_length=64,
    )
    CACHED_ATTENTION.emit(builder.op, *attention_inputs(), num_heads=4, scale=0.5)
    ROUTED_FFN.emit(builder.op, *ffn_inputs(gated=True), activation="gelu_glu")
    first, second = (
        [
            ir.serde.serialize_function(function).SerializeToString(deterministic=True)
            for function in functions_for(builder.graph.all_nodes())
        ]
        for _ in range(2)
    )
    assert first == second


def test_model_with_one_attention_body_and_two_scales_checks() -> None:
    """Numeric attributes are references, so layers may differ in them."""
    builder = new_builder()
    inputs = attention_inputs()
    builder.graph.inputs.extend(inputs)
    for index, scale in enumerate((0.5, 0.25)):
        output, *_ = CACHED_ATTENTION.emit(builder.op, *inputs, num_heads=4, scale=scale)
        builder.add_output(output, f"output.{index}")
    model = ir.Model(builder.graph, ir_version=11)
    for function in functions_for(model.graph.all_nodes()):
        model.functions[function.identifier()] = function
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def test_library_lists_the_operators_by_name() -> None:
    assert sorted(OPERATORS) == [
        "CachedAttention",
        "CrossAttention",
        "EncoderAttention",
        "ExpertCapacity",
        "ExpertRoute",
        "GroupRoute",
        "Head",
        "Linear",
        "PathScore",
        "Projections",
        "QuantizeStates",
        "QuantizedCachedAttention",
        "QuantizedCrossAttention",
        "QuantizedGather",
        "QuantizedHead",
        "QuantizedLinear",
        "QuantizedProjections",
        "QuantizedRoutedFFN",
        "RoutedFFN",
        "RoutedFFNCombine",
        "RoutedFFNInner",
        "SelectStates",
    ]
    assert all(name == operator.name for name, operator in OPERATORS.items())
