"""Emitting `drl` nodes: types and shapes of their outputs, and what is refused."""

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
import pytest

from drl.plugins.ops import (
    CACHED_ATTENTION,
    EXPERT_ROUTE,
    GROUP_ROUTE,
    QUANTIZED_HEAD,
    QUANTIZED_LINEAR,
    QUANTIZED_ROUTED_FFN,
    ROUTED_FFN,
    SELECT_STATES,
    OperatorError,
)
from tests.plugins.ops.values import (
    BOOL,
    FP16,
    FP32,
    INT32,
    INT64,
    UINT8,
    attention_inputs,
    dims,
    ffn_inputs,
    linear_attributes,
    linear_inputs,
    new_builder,
    value,
)


class TestEmit:
    def test_sets_dtype_and_shape_of_every_output(self) -> None:
        output, present_k, present_v = CACHED_ATTENTION.emit(
            new_builder().op, *attention_inputs(FP16), num_heads=4, scale=0.5
        )
        assert [v.dtype for v in (output, present_k, present_v)] == [FP16] * 3
        assert dims(output) == ["B", "T", 32]
        assert dims(present_k) == dims(present_v) == ["B", 2, "C", 8]

    def test_dimension_of_no_input_is_named_after_its_symbol(self) -> None:
        kept, lengths, bias = SELECT_STATES.emit(
            new_builder().op,
            value("states", FP16, "B", "S", 16),
            value("saliency", FP32, "B", "S"),
            value("source_lengths", INT32, "B"),
            value("keep_counts", INT32, "B"),
        )
        assert (kept.dtype, dims(kept)) == (FP16, ["B", "K", 16])
        assert (lengths.dtype, dims(lengths)) == (INT32, ["B"])
        assert (bias.dtype, dims(bias)) == (FP32, ["B", "K"])

    def test_known_size_wins_over_a_name(self) -> None:
        log_probs, _ = GROUP_ROUTE.emit(
            new_builder().op,
            value("tokens", INT64, "batch", None),
            value("table", FP32, "V", "G"),
            value("allowed", BOOL, 100, 4),
        )
        assert dims(log_probs) == ["batch", None, 4]

    def test_value_without_a_shape_is_let_through(self) -> None:
        output = ROUTED_FFN.emit(
            new_builder().op,
            ir.Value(name="hidden", type=ir.TensorType(FP32)),
            *ffn_inputs(gated=False)[1:],
            activation="relu",
        )
        assert dims(output) == ["B", "T", 16]

    def test_node_has_name_domain_and_attributes(self) -> None:
        builder = new_builder()
        output = ROUTED_FFN.emit(
            builder.op, *ffn_inputs(gated=False), name="layers.0.ffn", activation="relu"
        )
        node = output.producer()
        assert (node.domain, node.op_type, node.name) == ("drl", "RoutedFFN", "layers.0.ffn")
        assert node.attributes["activation"].value == "relu"
        assert builder.graph.opset_imports["drl"] == 1

    def test_absent_trailing_input_is_no_input(self) -> None:
        output = ROUTED_FFN.emit(
            new_builder().op, *ffn_inputs(gated=False), None, activation="relu"
        )
        assert len(output.producer().inputs) == 5

    def test_attribute_gives_a_dimension_of_the_output(self) -> None:
        for bits in (None, 4, 8):
            y = QUANTIZED_LINEAR.emit(
                new_builder().op, *linear_inputs(bits=bits), **linear_attributes()
            )
            assert (y.dtype, dims(y)) == (FP32, ["B", "T", 45])

    def test_dimension_that_depends_on_a_value_has_a_name_of_its_own(self) -> None:
        outputs = QUANTIZED_HEAD.emit(
            new_builder().op,
            *linear_inputs(),
            None,
            value("bias", FP32, 45),
            value("candidates", INT64, 1),
            columns=45,
            factor=1.0,
            epsilon=0.0,
            layout=2,
        )
        assert [dims(output) for output in outputs] == [
            ["B", "T", "N|0"],
            ["B", "T", "c"],
            ["B", "T", "c"],
            ["B", "T"],
        ]
        assert [output.dtype for output in outputs] == [FP32, FP32, INT32, FP32]

    def test_overloaded_node_names_its_form(self) -> None:
        inputs = [*linear_inputs(bits=4), None, value("bias", FP32, 45)]
        y = QUANTIZED_LINEAR.emit(new_builder().op, *inputs, **linear_attributes("relu"))
        assert y.producer().overload == "x,weight,scale,multiplier,bias,activation=relu"
        output = ROUTED_FFN.emit(new_builder().op, *ffn_inputs(gated=False), activation="relu")
        assert output.producer().overload == ""


Inputs = list[ir.Value | None]


def _replace(inputs: Sequence[ir.Value | None], index: int, new: ir.Value | None) -> Inputs:
    return [*inputs[:index], new, *inputs[index + 1 :]]


ATTENTION = {"num_heads": 4, "scale": 0.5}
LINEAR, GLU = linear_attributes(), linear_attributes("silu_glu")
ROUTED = {"activation": "relu", "inner": 45, "layout": 2}


def _routed_inputs() -> Inputs:
    return [
        value("hidden", FP32, "B", "T", 37),
        value("ids", INT32, "B", "T", "k"),
        value("gates", FP32, "B", "T", "k"),
        value("up", UINT8, 4, 2, 10, 32, 4),
        value("up_scale", FP32, 4, 64),
        value("down", UINT8, 4, 2, 12, 32, 4),
        value("down_scale", FP32, 4, 64),
    ]


RELU, SILU_GLU = {"activation": "relu"}, {"activation": "silu_glu"}


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes", "message"),
    [
        pytest.param(
            CACHED_ATTENTION,
            _replace(attention_inputs(), 5, value("lengths", INT64, "B")),
            ATTENTION,
            "CachedAttention: input 'lengths' must be int32, but 'lengths' has int64",
            id="dtype",
        ),
        pytest.param(
            CACHED_ATTENTION,
            _replace(attention_inputs(), 1, value("x", FP16, "B", "T", 16)),
            ATTENTION,
            "CachedAttention: input 'k' must be float, but 'x' has float16",
            id="mixed-float-types",
        ),
        pytest.param(
            CACHED_ATTENTION,
            _replace(attention_inputs(), 0, value("x", INT32, "B", "T", 32)),
            ATTENTION,
            "input 'q' must be float or float16 or bfloat16, but 'x' has int32",
            id="not-a-float",
        ),
        pytest.param(
            CACHED_ATTENTION,
            _replace(attention_inputs(), 0, ir.Value(name="x")),
            ATTENTION,
            "input 'q' must be float or float16 or bfloat16, but 'x' has no dtype",
            id="no-dtype",
        ),
        pytest.param(
            CACHED_ATTENTION,
            _replace(attention_inputs(), 0, value("x", FP32, "B", 4, "T", 8)),
            ATTENTION,
            "input 'q' must be [B, T, H*h], but 'x' is [B,4,T,8]",
            id="rank",
        ),
        pytest.param(
            CACHED_ATTENTION,
            attention_inputs(),
            {"num_heads": 3, "scale": 0.5},
            "input 'q' must be [B, T, H*h] with H*h = 24, but 'q' is [B,T,32]",
            id="product",
        ),
        pytest.param(
            CACHED_ATTENTION,
            [*attention_inputs(), value("bias", FP32, 1, 5, "T", "L")],
            ATTENTION,
            "input 'bias' must be [1 or B, H, T, L] with H = 4, but 'bias' is [1,5,T,L]",
            id="attribute-as-dimension",
        ),
        pytest.param(
            ROUTED_FFN,
            _replace(ffn_inputs(gated=False), 4, value("down", FP32, 3, 24, 16)),
            RELU,
            "input 'down' must be [E, f, d] with E = 4, but 'down' is [3,24,16]",
            id="size",
        ),
        pytest.param(
            EXPERT_ROUTE,
            [
                value("u", FP32, "B", "T", 16),
                value("w", FP32, 16, 8),
                value("scale", FP32),
                value("log_probs", FP32, "B", "T", 4),
                value("allowed", BOOL, "B", "T", 4),
                value("mask", BOOL, "B", "T"),
                value("k", INT64, 2),
            ],
            {},
            "input 'k' must be [1], but 'k' is [2]",
            id="fixed-size",
        ),
        pytest.param(
            ROUTED_FFN,
            ffn_inputs(gated=False),
            SILU_GLU,
            "RoutedFFN lacks its input 'gate'",
            id="missing-gate",
        ),
        pytest.param(
            ROUTED_FFN,
            ffn_inputs(gated=True),
            RELU,
            "RoutedFFN takes no input 'gate' with {'activation': 'relu'}",
            id="needless-gate",
        ),
        pytest.param(
            ROUTED_FFN, ffn_inputs(gated=False)[:4], RELU, "lacks its input 'down'", id="missing"
        ),
        pytest.param(
            CACHED_ATTENTION,
            [*attention_inputs(), None, value("x", FP32, 1)],
            ATTENTION,
            "CachedAttention takes at most 7 inputs, got 8",
            id="too-many",
        ),
        pytest.param(
            ROUTED_FFN,
            ffn_inputs(gated=False),
            {"activation": "swish"},
            "one of silu_glu, gelu_glu, relu, gelu, gelu_tanh, silu, got 'swish'",
            id="unknown-choice",
        ),
        pytest.param(
            CACHED_ATTENTION,
            attention_inputs(),
            {"num_heads": 4, "scale": 1},
            "attribute 'scale' must be float, got 1",
            id="attribute-type",
        ),
        pytest.param(
            CACHED_ATTENTION,
            attention_inputs(),
            {"num_heads": 4},
            "takes the attributes ['num_heads', 'scale'], got ['num_heads']",
            id="missing-attribute",
        ),
        pytest.param(
            QUANTIZED_LINEAR,
            _replace(linear_inputs(), 1, value("weight", UINT8, 1, 2, 9, 32, 4)),
            LINEAR,
            "input 'weight' must be [M, N/32, K/4, 32, 4] with K/4 = 10, "
            "but 'weight' is [1,2,9,32,4]",
            id="packed-depth",
        ),
        pytest.param(
            QUANTIZED_LINEAR,
            _replace(linear_inputs(), 2, value("scale", FP32, 1, 45)),
            LINEAR,
            "input 'scale' must be [M, N/32*32] with N/32*32 = 64, but 'scale' is [1,45]",
            id="scale-without-padding",
        ),
        pytest.param(
            QUANTIZED_LINEAR,
            _replace(linear_inputs(bits=4), 3, None),
            LINEAR,
            "input 'weight' must be [M, N/32, K/4, 32, 4], but 'weight' is [1,2,2,4,32,4]",
            id="blocks-without-multiplier",
        ),
        pytest.param(
            QUANTIZED_LINEAR,
            _replace(linear_inputs(bits=4), 1, value("weight", UINT8, 1, 2, 10, 32, 4)),
            LINEAR,
            "input 'weight' must be [M, N/32, K/32, 4 or 8, 32, 4], but 'weight' is [1,2,10,32,4]",
            id="int8-with-multiplier",
        ),
        pytest.param(
            QUANTIZED_LINEAR,
            linear_inputs(bits=6),
            LINEAR,
            "input 'weight' must be [M, N/32, K/32, 4 or 8, 32, 4], but 'weight' is [1,2,2,6,32,4]",
            id="bits-that-no-value-has",
        ),
        pytest.param(
            QUANTIZED_LINEAR,
            linear_inputs(),
            GLU,
            "input 'weight' must be [M, N/32, K/4, 32, 4] with M = 2, "
            "but 'weight' is [1,2,10,32,4]",
            id="one-matrix-for-a-glu",
        ),
        pytest.param(
            QUANTIZED_LINEAR,
            [*linear_inputs(matrices=2), None, value("bias", FP32, 45)],
            GLU,
            "input 'bias' must be [M*N] with M*N = 90, but 'bias' is [45]",
            id="bias-of-one-matrix",
        ),
        pytest.param(
            QUANTIZED_LINEAR,
            _replace(linear_inputs(), 1, value("weight", FP32, 1, 2, 10, 32, 4)),
            LINEAR,
            "input 'weight' must be uint8, but 'weight' has float",
            id="packed-dtype",
        ),
        pytest.param(
            QUANTIZED_HEAD,
            linear_inputs(),
            {"columns": 45, "factor": 1.0, "epsilon": 0.0, "layout": 2},
            "QuantizedHead lacks its input 'candidates'",
            id="no-candidates",
        ),
        pytest.param(
            QUANTIZED_ROUTED_FFN,
            _replace(_routed_inputs(), 5, value("down", UINT8, 4, 2, 10, 32, 4)),
            ROUTED,
            "input 'down' must be [E, d/32, f/4, 32, 4] with f/4 = 12, but 'down' is [4,2,10,32,4]",
            id="packed-inner",
        ),
        pytest.param(
            QUANTIZED_ROUTED_FFN,
            [*_routed_inputs(), None, None, value("gate", UINT8, 4, 2, 10, 32, 4)],
            {**ROUTED, "activation": "silu_glu"},
            "QuantizedRoutedFFN lacks its input 'gate_scale'",
            id="gate-without-scale",
        ),
        pytest.param(
            QUANTIZED_ROUTED_FFN,
            [*_routed_inputs(), *[None] * 7, value("gate_bias", FP32, 4, 45)],
            ROUTED,
            "QuantizedRoutedFFN takes no input 'gate_bias' without 'gate'",
            id="gate-bias-without-gate",
        ),
        pytest.param(
            QUANTIZED_ROUTED_FFN,
            [*_routed_inputs(), *[None] * 4, value("gate_multiplier", UINT8, 4, 2, 2, 32)],
            ROUTED,
            "QuantizedRoutedFFN takes no input 'gate_multiplier' without 'gate'",
            id="gate-multiplier-without-gate",
        ),
        pytest.param(
            QUANTIZED_LINEAR,
            linear_inputs(),
            {**LINEAR, "layout": 3},
            "QuantizedLinear: attribute 'layout' must be 2, got 3",
            id="another-layout",
        ),
    ],
)
def test_emit_refuses_what_does_not_fit_the_schema(
    operator: Any, inputs: list[ir.Value | None], attributes: dict[str, Any], message: str
) -> None:
    builder = new_builder()
    with pytest.raises(OperatorError) as caught:
        operator.emit(builder.op, *inputs, **attributes)
    assert message in str(caught.value)
    assert builder.graph.num_nodes() == 0
