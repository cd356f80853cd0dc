"""What an operator cannot run is refused with one line: which operator, what, and why."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.plugins.native.operator_graphs import Node, graph_model, run, same_bits, session
from tests.plugins.native.operator_nodes import (
    PANELS,
    cached_attention,
    cross_attention,
    encoder_attention,
    expert_route,
    float_head,
    gather,
    head,
    linear,
    of_every_operator,
    projections,
    quantized_states,
    rounded,
    routed_ffn,
)
from tests.plugins.native.sets import needs_library

pytestmark = needs_library


def refusal(node: Node) -> str:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - ONNX Runtime has a class per status
        run(node)
    message = str(caught.value)
    assert "\n" not in message
    return message


def changed(node: Node, name: str, value: Any) -> Node:
    """The call with another input, or without it for None, or with another attribute."""
    if name in node.attributes:
        return replace(node, attributes={**node.attributes, name: value})
    inputs = {**node.inputs, name: value}
    return replace(node, inputs={k: array for k, array in inputs.items() if array is not None})


def packed_types(node: Node) -> set[str]:
    return {str(array.dtype) for array in node.inputs.values()}


LAYOUTS = [node for node in of_every_operator() if "layout" in node.attributes]


@pytest.mark.parametrize("node", LAYOUTS, ids=str)
def test_packed_weights_of_another_layout_are_refused_at_loading(node: Node) -> None:
    sentence = "packed weights of layout 3; this library reads layout 2: install a newer drl"
    assert f"{node.operator.name}: {sentence}" in refusal(changed(node, "layout", 3))
    sentence = "packed weights of layout 1; this library reads layout 2: export again"
    assert f"{node.operator.name}: {sentence}" in refusal(changed(node, "layout", 1))


def test_the_operators_with_packed_weights_have_a_layout() -> None:
    assert {node.operator.name for node in LAYOUTS} == {
        node.operator.name for node in of_every_operator() if "uint8" in packed_types(node)
    }


@pytest.mark.parametrize("node", of_every_operator(), ids=str)
def test_an_attribute_that_is_missing_or_of_another_type_is_named(node: Node) -> None:
    for name, value in node.attributes.items():
        line = f"{node.operator.name}: attribute {name} is missing or not "
        rest = {key: other for key, other in node.attributes.items() if key != name}
        assert line in refusal(replace(node, attributes=rest))
        wrong = "seven" if not isinstance(value, str) else 7
        assert line in refusal(changed(node, name, wrong))


@pytest.mark.parametrize("form", ["int8", PANELS])
def test_a_count_must_be_positive(form: str) -> None:
    for node, name in (
        (linear(form), "columns"),
        (projections(form), "query_columns"),
        (projections(form), "kv_columns"),
    ):
        for value in (0, -1, 2**31):
            message = refusal(changed(node, name, value))
            sentence = f"attribute {name} must be in [1, 2147483647] and is {value}"
            assert f"{node.operator.name}: {sentence}" in message


def test_an_activation_that_does_not_exist_is_refused_with_those_that_do() -> None:
    known = "relu, gelu, gelu_tanh, silu, silu_glu, gelu_glu"
    for form in ("int8", PANELS):
        message = refusal(changed(linear(form), "activation", "softmax"))
        assert f"must be one of none, {known} and is softmax" in message
    message = refusal(changed(routed_ffn(), "activation", "none"))
    assert f"must be one of {known} and is none" in message


def _others(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """The shape with each of its dimensions one longer, and with a dimension more or less."""
    for axis in range(len(shape)):
        yield tuple(size + (i == axis) for i, size in enumerate(shape))
    yield (*shape, 1)
    if shape:
        yield shape[:-1]


@pytest.mark.parametrize("node", of_every_operator(), ids=str)
def test_every_dimension_of_every_input_is_checked(node: Node) -> None:
    """One of the inputs is named: two that differ do not tell which of them is wrong."""
    free = {
        "QuantizedGather": ("tokens", (0, 1)),
        "QuantizedHead": ("x", (0, 1)),
        "Head": ("x", (0, 1)),
        "Projections": ("x", (0, 1)),
        "QuantizedProjections": ("x", (0, 1)),
        "CrossAttention": ("q", (1,)),
        "QuantizedCrossAttention": ("q", (1,)),
        "QuantizeStates": ("x", (0, 1)),
    }
    loose, axes = free.get(node.operator.name, ("", ()))
    for name, array in node.inputs.items():
        for axis, shape in enumerate(_others(array.shape)):
            if name != loose or axis not in axes:
                message = refusal(changed(node, name, np.zeros(shape, array.dtype)))
                assert f"{node.operator.name}: " in message
                assert any(other in message for other in (*node.inputs, "experts")), message


def test_a_message_gives_the_shape_that_is_needed() -> None:
    node = linear("int8", "silu_glu", (2, 3), 70, 37, ("norm", "bias", "residual"))
    for name, needed, wrong in (
        ("weight", "[2, 3, 10, 32, 4]", (2, 3, 9, 32, 4)),
        ("scale", "[2, 96]", (2, 64)),
        ("norm", "[37]", (36,)),
        ("bias", "[140]", (70,)),
        ("residual", "[2, 3, 70]", (2, 3, 71)),
    ):
        array = np.zeros(wrong, node.inputs[name].dtype)
        given = str(list(wrong))
        assert f"QuantizedLinear: {name} must be {needed} and is {given}" in refusal(
            changed(node, name, array)
        )
    node = changed(linear("int4"), "multiplier", np.zeros((1, 3, 1, 32), np.uint8))
    assert "multiplier must be [1, 3, 2, 32] and is [1, 3, 1, 32]" in refusal(node)
    node = changed(linear("int8-block"), "weight", np.zeros((1, 3, 1, 8, 32, 4), np.uint8))
    assert "weight must be [1, 3, 2, 8, 32, 4] and is [1, 3, 1, 8, 32, 4]" in refusal(node)
    node = changed(linear("int4"), "weight", np.zeros((1, 3, 2, 6, 32, 4), np.uint8))
    assert "weight must have values of 4 or 8 bits and has 6" in refusal(node)
    node = changed(linear(), "x", np.zeros(37, np.float32))
    assert "x must have 3 dimensions and is [37]" in refusal(node)
    node = changed(linear(), "x", np.zeros((3, 37), np.float32))
    assert "QuantizedLinear: x must have 3 dimensions and is [3, 37]" in refusal(node)
    node = changed(routed_ffn(), "up", np.zeros((4, 3), np.uint8))
    assert "up must have 5 or 6 dimensions and is [4, 3]" in refusal(node)


def test_a_message_gives_the_shape_of_panels_that_is_needed() -> None:
    node = linear(PANELS, "silu_glu", (2, 3), 70, 37, ("norm", "bias", "residual"))
    for name, needed, wrong in (
        ("weight", "[2, 2, 37, 64]", (1, 2, 37, 64)),
        ("weight", "[2, 2, 37, 64]", (2, 1, 37, 64)),
        ("weight", "[2, 2, 37, 64]", (2, 2, 38, 64)),
        ("weight", "[2, 2, 37, 64]", (2, 2, 37, 32)),
        ("norm", "[37]", (36,)),
        ("bias", "[140]", (70,)),
        ("residual", "[2, 3, 70]", (2, 3, 71)),
    ):
        message = refusal(changed(node, name, np.zeros(wrong, np.float32)))
        assert f" Linear: {name} must be {needed} and is {list(wrong)}" in message
    node = projections(PANELS, (2, 3), ("norm", "bias"))  # of 48 and twice 20 columns
    message = refusal(changed(node, "kv_columns", 41))
    assert " Projections: weight must be [1, 3, 40, 64] and is [1, 2, 40, 64]" in message
    message = refusal(changed(node, "bias", np.zeros(48, np.float32)))
    assert " Projections: bias must be [88] and is [48]" in message
    message = refusal(changed(node, "x", np.zeros((3, 40), np.float32)))
    assert " Projections: x must have 3 dimensions and is [3, 40]" in message


def test_a_gate_must_fit_the_activation() -> None:
    node = changed(routed_ffn(activation="silu_glu"), "activation", "silu")
    assert "QuantizedRoutedFFN: activation silu takes no gate" in refusal(node)
    node = changed(routed_ffn(activation="silu"), "gate_bias", np.zeros((4, 70), np.float32))
    assert "QuantizedRoutedFFN: activation silu takes no gate_bias" in refusal(node)
    node = changed(routed_ffn(activation="silu"), "activation", "silu_glu")
    assert "gate must be [4, 3, 10, 32, 4] and is missing" in refusal(node)
    node = changed(routed_ffn(activation="silu_glu"), "gate_scale", None)
    assert "gate_scale must be [4, 96] and is missing" in refusal(node)


@pytest.mark.parametrize("expert", [-2, 4])
def test_an_expert_that_does_not_exist_is_refused(expert: int) -> None:
    node = routed_ffn()
    ids = node.inputs["expert_ids"].copy()
    ids[1, 2, 1] = expert
    assert "QuantizedRoutedFFN: an expert id" in refusal(changed(node, "expert_ids", ids))


def test_candidates_must_be_a_number_of_columns() -> None:
    for count in (-1, 102):
        message = refusal(changed(head(), "candidates", np.array([count])))
        assert f"QuantizedHead: candidates must be in [0, 101] and is {count}" in message
        message = refusal(changed(float_head(), "candidates", np.array([count])))
        assert f"Head: candidates must be in [0, 101] and is {count}" in message


def test_a_head_needs_columns_and_a_depth() -> None:
    node = changed(float_head(), "weight", np.zeros((0, 37), np.float32))
    assert "Head: weight must have at least one column and is [0, 37]" in refusal(node)
    node = changed(
        changed(float_head(), "x", np.zeros((2, 3, 0), np.float32)),
        "weight",
        np.zeros((101, 0), np.float32),
    )
    assert "Head: weight must have at least one number in a column and is [101, 0]" in refusal(node)


def test_a_token_that_has_no_row_is_refused() -> None:
    for token in (-1, 64):
        message = refusal(changed(gather(), "tokens", np.array([[3, token]])))
        assert f"QuantizedGather: tokens has {token}, not in [0, 64)" in message


def test_a_cache_without_room_is_refused() -> None:
    node = cached_attention((2, 3), longest=5)  # of 10 slots
    message = refusal(changed(node, "lengths", np.array([8, 0], np.int32)))
    assert "CachedAttention: 8 tokens and 3 new tokens, and the cache has 10 slots" in message
    message = refusal(changed(node, "lengths", np.array([0, -1], np.int32)))
    assert "CachedAttention: lengths has -1" in message
    for past in ("past_k", "past_v"):
        node = changed(node, past, node.inputs[past][:, :, :1])
    message = refusal(changed(node, "lengths", np.array([0, 0], np.int32)))
    assert "CachedAttention: 0 tokens and 3 new tokens, and the cache has 1 slot" in message


def test_a_depth_that_no_sum_can_have_is_refused() -> None:
    node = linear()
    for depth in (0, 131073):
        x = np.zeros((2, 3, depth), np.float32)
        sentence = f"weight must have a depth in [1, 131072] and has {depth}"
        assert f"QuantizedLinear: {sentence}" in refusal(changed(node, "x", x))


def test_a_dimension_that_must_not_be_empty_is_named() -> None:
    node = cross_attention()
    none = {name: node.inputs[name][:, :, :0] for name in ("k", "v")}
    none["bias"] = node.inputs["bias"][:, :0]
    message = refusal(replace(node, inputs={**node.inputs, **none}))
    assert "CrossAttention: k must have at least one state and is [2, 2, 0, 8]" in message
    flat = {name: node.inputs[name][..., :0] for name in ("q", "k", "v")}
    message = refusal(replace(node, inputs={**node.inputs, **flat}))
    assert "k must have at least one number in a head and is [2, 2, 11, 0]" in message
    node = cached_attention()
    flat = {name: node.inputs[name][..., :0] for name in ("q", "k", "v", "past_k", "past_v")}
    message = refusal(replace(node, inputs={**node.inputs, **flat}))
    assert "past_k must have at least one number in a head and is [2, 2, 10, 0]" in message
    for node in (linear(PANELS), projections(PANELS)):
        flat = {"x": node.inputs["x"][..., :0], "weight": node.inputs["weight"][:, :, :0]}
        message = refusal(replace(node, inputs={**node.inputs, **flat}))
        sentence = "x must have at least one number in a state and is [2, 3, 0]"
        assert f" {node.operator.name}: {sentence}" in message
    node = expert_route()
    flat = {"hidden": node.inputs["hidden"][..., :0], "weight": node.inputs["weight"][:0]}
    message = refusal(replace(node, inputs={**node.inputs, **flat}))
    assert "hidden must have at least one number in a state and is [2, 3, 0]" in message


def test_rows_of_int8_have_a_number_and_a_scale() -> None:
    for node, name in (
        (rounded(cached_attention()), "past_k"),
        (rounded(cross_attention()), "k"),
    ):
        short = changed(node, name, node.inputs[name][..., :2])
        sentence = "must have a number in a head and 2 bytes behind it and has 2 bytes in all"
        assert f"{node.operator.name}: {name} {sentence}" in refusal(short)


def test_states_must_have_the_heads_that_the_node_says() -> None:
    message = refusal(changed(quantized_states(), "head_dim", 6))
    assert "QuantizeStates: x must be [2, 3, 18] and is [2, 3, 15]" in message


def test_heads_must_share_keys_evenly() -> None:
    message = refusal(changed(cached_attention(heads=4), "num_heads", 5))
    assert "num_heads is 5 and past_k has 2 heads, no divisor of it" in message
    message = refusal(changed(cross_attention(heads=4), "num_heads", 3))
    assert "num_heads is 3 and k has 2 heads, no divisor of it" in message


def test_queries_of_an_encoder_divide_into_heads() -> None:
    node = encoder_attention(heads=4)  # of 8 numbers each
    message = refusal(changed(node, "num_heads", 5))
    assert "EncoderAttention: q has 32 numbers per token, and num_heads is 5, no div" in message
    message = refusal(changed(node, "num_heads", 64))
    assert "EncoderAttention: q has 32 numbers per token, and num_heads is 64, no div" in message
    for columns in (0, 20, 24):
        message = refusal(changed(node, "k", np.zeros((2, 3, columns), np.float32)))
        sentence = f"k has {columns} numbers per token, and a head of q has 8; num_heads is 4"
        assert f"EncoderAttention: {sentence}" in message


def test_lengths_of_sources_are_those_of_their_tokens() -> None:
    node = encoder_attention((2, 3))
    for length in (-1, 4):
        message = refusal(changed(node, "lengths", np.array([3, length], np.int32)))
        assert f"EncoderAttention: lengths has {length}, and rows have 3 tokens" in message


def test_a_bias_has_as_many_distances_on_either_side() -> None:
    message = refusal(encoder_attention(distances=4))
    assert "EncoderAttention: bias has 4 distances; their number must be odd" in message
    assert "bias has 0 distances" in refusal(encoder_attention(distances=0))


def test_rows_must_share_sources_evenly() -> None:
    node = cross_attention((6, 2), sources=4)
    assert "q has 6 rows and k 4 sources, no divisor of it" in refusal(node)


def test_experts_must_divide_into_groups() -> None:
    node = expert_route()
    message = refusal(changed(node, "weight", np.zeros((16, 13), np.float32)))
    assert "ExpertRoute: 13 experts do not divide into 3 groups" in message
    for k in (-1, 13):
        message = refusal(changed(node, "k", np.array([k])))
        assert f"ExpertRoute: k must be in [0, 12] and is {k}" in message


def test_an_unknown_instruction_set_is_refused_at_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRL_NATIVE_ISA", "avx9")
    message = refusal(projections())
    assert "QuantizedProjections: " in message
    assert "must be avx512vnni, avx2 or scalar" in message


def test_a_node_must_name_all_its_outputs() -> None:
    node = head()
    proto = node.proto()
    proto.output[2] = ""
    model = graph_model(node, [proto])
    del model.graph.output[2]
    with pytest.raises(Exception, match="INVALID_GRAPH"):
        session(model)


def test_after_a_refusal_a_session_goes_on() -> None:
    node = head()
    running = session(node.model())
    with pytest.raises(Exception, match="candidates must be"):
        running.run(None, {**node.inputs, "candidates": np.array([-1])})
    assert same_bits(running.run(node.outputs, node.inputs), run(node))
