"""Emitting `drl` nodes: types and shapes of their outputs, and what is refused."""

from typing import Any

import onnx_ir as ir
import pytest

from drl.plugins.ops import (
    CACHED_ATTENTION,
    EXPERT_ROUTE,
    GROUP_ROUTE,
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
    attention_inputs,
    dims,
    ffn_inputs,
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


def _replace(inputs: list[ir.Value], index: int, new: ir.Value) -> list[ir.Value]:
    return [*inputs[:index], new, *inputs[index + 1 :]]


ATTENTION = {"num_heads": 4, "scale": 0.5}
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
            "input 'bias' must be [1|B, H, T, L] with H = 4, but 'bias' is [1,5,T,L]",
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
