"""The NumPy references against hand-worked numbers and laws that they must obey.

Everything else is tested against the references, so these tests do not use them as an oracle.
"""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drl.plugins.ops import (
    CACHED_ATTENTION,
    CROSS_ATTENTION,
    ENCODER_ATTENTION,
    EXPERT_ROUTE,
    GROUP_ROUTE,
    PATH_SCORE,
    ROUTED_FFN,
    ROUTED_FFN_COMBINE,
    ROUTED_FFN_INNER,
    SELECT_STATES,
)
from drl.plugins.ops.activations import activate
from tests.plugins.ops.case import Array, Case, Maker
from tests.plugins.ops.cases import routed_ffn_cases
from tests.plugins.ops.engines import one_node_model, run_evaluator, run_onnxruntime

seeds = st.integers(0, 2**32 - 1)


def f32(values: object, *shape: int) -> Array:
    """An array with the shape of the nested lists, or the shape given."""
    array = np.array(values, np.float32)
    return array.reshape(shape) if shape else array


@pytest.mark.parametrize(
    ("bias", "expected"),
    [
        ([0, -1e4], 1),
        ([-1e4, -9999, -1e4], 1 + math.e / (1 + math.e)),
        ([-1e4, -1e4], 1.5),
        ([-2e4, 0, -np.inf], 2),
    ],
)
def test_cross_attention_takes_states_at_the_end_as_absent(
    bias: list[float], expected: float
) -> None:
    """Keys are all alike and values 1, 2, …: bias alone says what is seen of them."""
    keys = np.ones((1, 1, len(bias), 1), np.float32)
    values = np.arange(1, len(bias) + 1, dtype=np.float32).reshape(keys.shape)
    y = CROSS_ATTENTION.reference(
        np.ones((1, 1, 1), np.float32), keys, values, f32([bias]), num_heads=1, scale=1.0
    )
    np.testing.assert_allclose(y.item(), expected, rtol=1e-6)


def test_encoder_attention_adds_the_bias_of_a_distance() -> None:
    """Queries and keys are 0: the bias alone says where a token looks."""
    zeros, values = np.zeros((1, 4, 1), np.float32), f32([1, 2, 3, 4], 1, 4, 1)
    bias = f32([[-1e4], [-1e4], [0]])  # of distances -1, 0 and 1, and of those farther away
    for length, own, expected in (
        # The last of three sees no token behind itself, and so all of them alike.
        (3, bias, [2.5, 3, 2, 0]),
        (4, bias[::-1], [2.5, 1, 1.5, 2]),
    ):
        lengths = np.array([length], np.int32)
        y = ENCODER_ATTENTION.reference(zeros, zeros, values, lengths, own, num_heads=1, scale=1.0)
        np.testing.assert_allclose(y[0, :, 0], expected)


@given(seed=seeds, length=st.integers(1, 9), padding=st.integers(0, 3))
def test_encoder_attention_head_by_head(seed: int, length: int, padding: int) -> None:
    random = np.random.default_rng(seed)
    tokens, heads, width = length + padding, 4, 3
    q = random.standard_normal((1, tokens, heads * width)).astype(np.float32)
    k, v = random.standard_normal((2, 1, tokens, 2 * width)).astype(np.float32)
    bias = random.standard_normal((7, heads)).astype(np.float32)
    lengths = np.array([length], np.int32)
    y = ENCODER_ATTENTION.reference(q, k, v, lengths, bias, num_heads=heads, scale=0.3)
    for head in range(heads):
        own, shared = (slice(i * width, (i + 1) * width) for i in (head, head // 2))
        for i in range(length):
            scores = [
                0.3 * q[0, i, own] @ k[0, j, shared] + bias[min(max(j - i + 3, 0), 6), head]
                for j in range(length)
            ]
            weights = np.exp(scores) / np.exp(scores).sum()
            np.testing.assert_allclose(
                y[0, i, own], weights @ v[0, :length, shared], rtol=1e-4, atol=1e-5
            )
    assert not y[0, length:].any()


def test_cross_attention_does_not_look_at_absent_states() -> None:
    keys, values = f32([0, 60], 1, 1, 2, 1), f32([3, np.nan], 1, 1, 2, 1)
    q, bias = np.full((1, 1, 1), 240, np.float32), f32([[0, -1e4]])  # a score of 14400
    y = CROSS_ATTENTION.reference(q, keys, values, bias, num_heads=1, scale=1.0)
    np.testing.assert_array_equal(y, [[[3]]])


def test_group_route_looks_up_rows() -> None:
    table, allowed = f32([[-1, -2], [-3, -4]]), np.array([[True, False], [False, True]])
    log_probs, groups = GROUP_ROUTE.reference(np.array([[1, 0]]), table, allowed)
    np.testing.assert_array_equal(log_probs, [[[-3, -4], [-1, -2]]])
    np.testing.assert_array_equal(groups, [[[False, True], [True, False]]])


def test_expert_route_by_hand() -> None:
    """Two groups of two experts; the second group is not allowed; scores ln 1 and ln 3."""
    ids, gates = EXPERT_ROUTE.reference(
        f32([1, 1], 1, 2, 1),
        f32([[0, math.log(3), 50, 50]]),
        f32(2),
        f32([-1, -1, -1, -1], 1, 2, 2),
        np.array([[[True, False], [True, False]]]),
        np.array([[True, False]]),
        np.array([2]),
    )
    np.testing.assert_array_equal(ids, [[[1, 0], [-1, -1]]])
    np.testing.assert_allclose(gates, f32([[[0.75, 0.25], [0, 0]]]), rtol=1e-6)
    assert (ids.dtype, gates.dtype) == (np.int32, np.float32)


def test_expert_route_prior_favours_the_likely_group() -> None:
    """With no score of their own, experts share their group's probability."""
    _, gates = EXPERT_ROUTE.reference(
        np.zeros((1, 1, 3), np.float32),
        np.zeros((3, 4), np.float32),
        f32(1),
        np.log(f32([[[0.8, 0.2]]])),
        np.ones((1, 1, 2), bool),
        np.ones((1, 1), bool),
        np.array([4]),
    )
    np.testing.assert_allclose(gates[0, 0], [0.4, 0.4, 0.1, 0.1], rtol=1e-6)


def test_routed_ffn_by_hand() -> None:
    """One input feature x = 2: experts are relu(2·up)·down."""
    output = ROUTED_FFN.reference(
        f32([2, 2, 2], 1, 3, 1),
        np.array([[[0, 1], [1, -1], [2, 0]]], np.int32),
        f32([[[0.5, 0.25], [1, 9], [1, 0]]]),
        f32([1, 3, -1], 3, 1, 1),
        f32([10, 100, 1000], 3, 1, 1),
        activation="relu",
    )
    np.testing.assert_allclose(output[0, :, 0], [0.5 * 20 + 0.25 * 600, 600, 0])


def test_routed_ffn_multiplies_the_activated_gate_by_the_up_projection() -> None:
    x, up, gate, down = 2.0, 3.0, -0.5, 7.0
    output = ROUTED_FFN.reference(
        f32(x, 1, 1, 1),
        np.zeros((1, 1, 1), np.int32),
        np.ones((1, 1, 1), np.float32),
        f32(up, 1, 1, 1),
        f32(down, 1, 1, 1),
        f32(gate, 1, 1, 1),
        activation="silu_glu",
    )
    silu = (x * gate) / (1 + math.exp(-x * gate))
    assert output.item() == pytest.approx(silu * x * up * down, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("relu", 1.5),
        ("silu", 1.5 / (1 + math.exp(-1.5))),
        ("gelu", 0.75 * (1 + math.erf(1.5 / math.sqrt(2)))),
        ("gelu_tanh", 0.75 * (1 + math.tanh(math.sqrt(2 / math.pi) * (1.5 + 0.044715 * 1.5**3)))),
    ],
)
def test_activation(name: str, value: float) -> None:
    assert activate(name, f32(1.5)).item() == pytest.approx(value, rel=1e-6)
    assert abs(activate(name, f32(-200.0)).item()) < 1e-6
    assert activate(name, f32(200.0)).item() == pytest.approx(200)


def test_path_score_by_hand() -> None:
    """Zero weights pool the valid states evenly; the hidden layer passes the features through."""
    groups = np.log(f32([[[0.5, 0.5], [0.9, 0.1], [0.01, 0.99]]]))
    features = np.eye(1 + 2 + 2, dtype=np.float32)
    saliency, logits = PATH_SCORE.reference(
        f32([2, 4, 100], 1, 3, 1),
        np.array([[True, True, False]]),
        groups,
        f32([0.5]),
        f32([0]),
        f32(0.25),
        features,
        np.zeros(5, np.float32),
        features,
        np.zeros(5, np.float32),
        pooling="saliency",
        max_source_length=8,
    )
    np.testing.assert_allclose(saliency, [[0.25, 0.25, 0]])
    relative_length = math.log(3) / math.log(9)
    state = np.array([3.0, relative_length, 0.5, 0.7, 0.3])
    gelu = [x * 0.5 * (1 + math.erf(x / math.sqrt(2))) for x in state]
    np.testing.assert_allclose(logits[0], gelu, rtol=1e-6)


def test_path_score_attention_pools_by_the_query() -> None:
    """Scores 0 and ln 3 after division by sqrt(4) give weights 1/4 and 3/4."""
    states = np.zeros((1, 2, 4), np.float32)
    states[0, 1, 0] = 1.0
    hidden = np.zeros((4 + 2 + 1, 1), np.float32)
    hidden[0] = 1.0
    _, logits = PATH_SCORE.reference(
        states,
        np.ones((1, 2), bool),
        np.zeros((1, 2, 1), np.float32),
        f32([0]),
        np.zeros(4, np.float32),
        f32(0),
        hidden,
        f32([0]),
        f32([[1]]),
        f32([10]),
        f32([2 * math.log(3), 0, 0, 0]),
        pooling="attention",
        max_source_length=2,
    )
    gelu = 0.75 * 0.5 * (1 + math.erf(0.75 / math.sqrt(2)))
    assert logits.item() == pytest.approx(10 + gelu, rel=1e-6)


def test_select_states_by_hand() -> None:
    """Ties keep the earliest; what is kept stays in order; padding is zero."""
    states = np.arange(1, 9, dtype=np.float32).reshape(2, 4, 1)
    kept, lengths, bias = SELECT_STATES.reference(
        states,
        f32([[0, 2, 0, 3], [1, 9, 9, 9]]),
        np.array([4, 1], np.int32),
        np.array([3, 1], np.int32),
    )
    np.testing.assert_array_equal(kept[..., 0], [[1, 2, 4], [5, 0, 0]])
    np.testing.assert_array_equal(lengths, [3, 1])
    log_sigmoid = [math.log(1 / (1 + math.exp(-a))) for a in (0.0, 2.0, 3.0, 1.0)]
    np.testing.assert_allclose(bias[0], log_sigmoid[:3], rtol=1e-6)
    np.testing.assert_allclose(bias[1], [log_sigmoid[3], -1e4, -1e4], rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(1, 200), st.integers(1, 5))
def test_selection_is_stable_whatever_the_ties(seed: int, length: int, levels: int) -> None:
    """Few distinct saliencies in long rows: every engine must break ties by the lowest index."""
    random = np.random.default_rng(seed)
    count = int(random.integers(1, length + 1))
    inputs = {
        "encoder_states": np.arange(length, dtype=np.float32).reshape(1, length, 1),
        "saliency": random.integers(0, levels, (1, length)).astype(np.float32),
        "source_lengths": np.array([length], np.int32),
        "keep_counts": np.array([count], np.int32),
    }
    ranked = sorted(range(length), key=lambda i: (-inputs["saliency"][0, i], i))
    expected = sorted(ranked[:count])
    model = one_node_model(SELECT_STATES, inputs, {})
    for run in (run_evaluator, run_onnxruntime):
        np.testing.assert_array_equal(run(model, inputs)["kept_states"][0, :, 0], expected)
    kept, _, _ = SELECT_STATES.reference(**inputs)
    np.testing.assert_array_equal(kept[0, :, 0], expected)


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(1, 64), st.integers(1, 64), st.integers(1, 4))
def test_equal_experts_are_chosen_in_order(
    seed: int, experts: int, wanted: int, levels: int
) -> None:
    random = np.random.default_rng(seed)
    k = min(wanted, experts)
    scores = random.integers(0, levels, (1, experts)).astype(np.float32)
    inputs = {
        "hidden": np.ones((1, 1, 1), np.float32),
        "weight": scores,
        "prior_scale": f32(0),
        "group_log_probs": np.zeros((1, 1, 1), np.float32),
        "allowed": np.ones((1, 1, 1), bool),
        "token_mask": np.ones((1, 1), bool),
        "k": np.array([k]),
    }
    expected = sorted(range(experts), key=lambda e: (-scores[0, e], e))[:k]
    model = one_node_model(EXPERT_ROUTE, inputs, {})
    for run in (run_evaluator, run_onnxruntime):
        np.testing.assert_array_equal(run(model, inputs)["expert_ids"][0, 0], expected)
    ids, gates = EXPERT_ROUTE.reference(**inputs)
    np.testing.assert_array_equal(ids[0, 0], expected)
    assert gates.sum() <= 1 + 1e-5


@settings(max_examples=25, deadline=None)
@given(seeds, st.integers(1, 6), st.integers(1, 6), st.sampled_from([1, 2, 4]))
def test_cached_attention_in_pieces_equals_plain_causal_attention(
    seed: int, first: int, second: int, kv_heads: int
) -> None:
    """Two calls over a cache against softmax(q kᵀ) v over the whole sequence, head by head."""
    random, heads, head = np.random.default_rng(seed), 4, 8
    total = first + second
    q = random.standard_normal((1, total, heads * head)).astype(np.float32)
    k, v = random.standard_normal((2, 1, total, kv_heads * head)).astype(np.float32)
    past_k = past_v = random.standard_normal((1, kv_heads, 12, head)).astype(np.float32)
    outputs = []
    for start, stop in ((0, first), (first, total)):
        part = slice(start, stop)
        output, past_k, past_v = CACHED_ATTENTION.reference(
            q[:, part],
            k[:, part],
            v[:, part],
            past_k,
            past_v,
            np.array([start], np.int32),
            num_heads=heads,
            scale=0.3,
        )
        outputs.append(output)
    actual = np.concatenate(outputs, axis=1)[0]
    for index in range(heads):
        mine = slice(index * head, (index + 1) * head)
        shared = index * kv_heads // heads
        theirs = slice(shared * head, (shared + 1) * head)
        for place in range(total):
            powers = np.exp(0.3 * k[0, : place + 1, theirs] @ q[0, place, mine])
            expected = powers @ v[0, : place + 1, theirs] / powers.sum()
            np.testing.assert_allclose(actual[place, mine], expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_routed_ffn_is_the_sum_over_its_slots(seed: int) -> None:
    make = Maker(str(seed), "fp32")
    hidden, up, gate = make.ft(2, 3, 8), make.ft(4, 8, 6), make.ft(4, 8, 6)
    down, gates = make.ft(4, 6, 8), make.random.random((2, 3, 2)).astype(np.float32)
    ids = make.random.integers(-1, 4, (2, 3, 2)).astype(np.int32)

    def run(chosen: Array, weights: Array) -> Array:
        result: Array = ROUTED_FFN.reference(
            hidden, chosen, weights, up, down, gate, activation="gelu_glu"
        )
        return result

    whole = run(ids, gates)
    parts = [run(ids[..., slot : slot + 1], gates[..., slot : slot + 1]) for slot in (0, 1)]
    np.testing.assert_allclose(whole, parts[0] + parts[1], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(whole, run(ids[..., ::-1], gates[..., ::-1]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", list(routed_ffn_cases()), ids=str)
def test_the_halves_of_a_routed_ffn_make_the_whole(case: Case) -> None:
    """Their references are vectorised over experts, that of the whole goes token by token."""
    arrays = case.inputs
    first = {name: arrays[name] for name in ("hidden", "expert_ids", "up")}
    first |= {n: arrays[n] for n in ("gate", "up_bias", "gate_bias") if n in arrays}
    inner = ROUTED_FFN_INNER.reference(**first, **case.attributes)
    assert inner.dtype == arrays["hidden"].dtype
    np.testing.assert_array_equal(inner[arrays["expert_ids"] < 0], 0)
    output = ROUTED_FFN_COMBINE.reference(
        inner, arrays["expert_ids"], arrays["gates"], arrays["down"], arrays.get("down_bias")
    )
    expected = case.expected()["output"]
    assert output.dtype == expected.dtype
    tolerance = case.tolerance  # the inner values are rounded once more
    np.testing.assert_allclose(
        output.astype(np.float32), expected.astype(np.float32), rtol=tolerance, atol=tolerance
    )


def test_combine_looks_at_nothing_where_there_is_no_expert() -> None:
    output = ROUTED_FFN_COMBINE.reference(
        f32([[[[np.nan], [3]]]]),
        np.array([[[-1, 0]]], np.int32),
        f32([[[np.inf, 0.5]]]),
        f32([[[4]]]),
        f32([[10]]),
    )
    assert output.item() == 0.5 * (3 * 4 + 10)


@settings(max_examples=25, deadline=None)
@given(seeds, st.sampled_from(["saliency", "attention"]))
def test_path_score_of_a_row_ignores_padding_and_its_batch_mates(seed: int, pooling: str) -> None:
    make = Maker(str(seed), "fp32")
    states, log_probs = make.ft(2, 5, 8), make.f32(2, 5, 3)
    budget, weights = make.f32(2), [make.f32(8), f32(0.1), make.f32(13, 4)]
    weights += [make.f32(4), make.f32(4, 2), make.f32(2)]
    query = [make.f32(8)] if pooling == "attention" else []

    def run(rows: slice, width: int) -> tuple[Array, Array]:
        mask = make.mask([5, 3], 5)[rows, :width]
        inputs = (states[rows, :width], mask, log_probs[rows, :width], budget[rows], *weights)
        result: tuple[Array, Array] = PATH_SCORE.reference(
            *inputs, *query, pooling=pooling, max_source_length=9
        )
        return result

    saliency, logits = run(slice(0, 2), 5)
    alone_saliency, alone_logits = run(slice(1, 2), 3)
    np.testing.assert_allclose(logits[1:], alone_logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(saliency[1:, :3], alone_saliency, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(saliency[1, 3:], 0)
