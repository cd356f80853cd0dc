"""The PyTorch modules against the NumPy references of the operators that stand for them."""

import numpy as np
import pytest
import torch
from torch import Tensor

from drl.export.model import DualRouterModel, PathRouterConfig
from drl.export.model.attention import LayerCache, SelfAttention
from drl.export.model.encoder import Layer
from drl.export.model.experts import Experts, SparseFeedForward
from drl.export.model.group_router import GroupChoice, GroupRouter
from drl.export.model.path_router import keep_counts, select_states
from drl.plugins.ops import (
    CACHED_ATTENTION,
    EXPERT_ROUTE,
    GROUP_ROUTE,
    PATH_SCORE,
    ROUTED_FFN,
    SELECT_STATES,
)
from tests.models import TINY, random_model, tiny_config

Array = np.ndarray


def _array(tensor: Tensor) -> Array:
    return tensor.detach().numpy()


def _sparse_layer(model: DualRouterModel) -> SparseFeedForward:
    layer = model.encoder.layers[1]
    assert isinstance(layer, Layer)
    assert isinstance(layer.ffn, SparseFeedForward)
    return layer.ffn


def _tokens(rows: int, width: int) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(0, TINY.vocab_size, (rows, width))
    mask = torch.arange(width) < torch.randint(1, width + 1, (rows, 1))
    return tokens, mask


def test_group_router_is_two_tables() -> None:
    model = random_model()
    router = model.group_router
    assert isinstance(router, GroupRouter)
    table = router(model.embedding.weight)
    tokens, _ = _tokens(3, 7)
    choice = router(model.embedding(tokens))
    log_probs, allowed = GROUP_ROUTE.reference(
        _array(tokens), _array(table.log_probs), _array(table.allowed)
    )
    np.testing.assert_allclose(_array(choice.log_probs), log_probs, atol=1e-6)
    np.testing.assert_array_equal(_array(choice.allowed), allowed)
    assert (allowed.sum(axis=-1) == TINY.top_groups).all()


def test_equal_groups_go_to_the_lowest_index() -> None:
    router = GroupRouter(groups=4, d_model=8, top_groups=2)
    router.prototypes.data = torch.ones(4, 8)
    assert router(torch.randn(5, 8)).allowed[:, :2].all()


@pytest.mark.parametrize("k", [1, 2, 4])
def test_expert_router_is_expert_route(k: int) -> None:
    model = random_model()
    layer = _sparse_layer(model)
    tokens, mask = _tokens(4, 9)
    embedded, groups = model.embed(tokens)
    assert groups is not None
    route = layer.router(embedded, groups, mask, k, "x")
    ids, gates = EXPERT_ROUTE.reference(
        _array(embedded),
        _array(layer.router.weight.T),
        _array(layer.router.prior_scale),
        _array(groups.log_probs),
        _array(groups.allowed),
        _array(mask),
        np.array([k]),
    )
    clear = _array(route.margin()) > 1e-5
    np.testing.assert_array_equal(_array(route.expert_ids)[clear], ids[clear])
    np.testing.assert_allclose(_array(route.gates), gates, atol=1e-5)


def test_equal_experts_go_to_the_lowest_index() -> None:
    layer = _sparse_layer(random_model())
    layer.router.weight.data.zero_()
    everything = GroupChoice(torch.zeros(1, 3, 4), torch.ones(1, 3, 4, dtype=torch.bool))
    mask = torch.ones(1, 3, dtype=torch.bool)
    route = layer.router(torch.randn(1, 3, TINY.d_model), everything, mask, 3, "x")
    assert route.expert_ids.tolist() == [[[0, 1, 2]] * 3]


@pytest.mark.parametrize(
    "activation", ["silu_glu", "gelu_glu", "relu", "gelu", "gelu_tanh", "silu"]
)
def test_experts_are_routed_ffn(activation: str) -> None:
    experts = Experts(tiny_config(activation=activation))
    for weight in experts.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    model = random_model()
    tokens, mask = _tokens(3, 8)
    embedded, groups = model.embed(tokens)
    assert groups is not None
    route = _sparse_layer(model).router(embedded, groups, mask, 2, "x")
    weights = [_array(experts.up), _array(experts.down)]
    weights += [] if experts.gate is None else [_array(experts.gate)]
    expected = ROUTED_FFN.reference(
        _array(embedded),
        _array(route.expert_ids),
        _array(route.gates),
        *weights,
        activation=activation,
    )
    np.testing.assert_allclose(_array(experts(embedded, route)), expected, atol=2e-5)


@pytest.mark.parametrize("head", ["linear", "attention", "greedy"])
def test_path_router_is_path_score(head: str) -> None:
    model = random_model(tiny_config(path_router=PathRouterConfig(head)))  # type: ignore[arg-type]
    router = model.path_router
    assert router is not None
    tokens, mask = _tokens(5, 11)
    states, groups = model.embed(tokens)
    assert groups is not None
    budget = torch.linspace(0, 1, 5)
    scores = router(states, mask, groups, budget)
    query = [] if router.query is None else [_array(router.query)]
    saliency, logits = PATH_SCORE.reference(
        _array(states),
        _array(mask),
        _array(groups.log_probs),
        _array(budget),
        _array(router.saliency.weight[0]),
        _array(router.saliency.bias[0]),
        _array(router.hidden.weight.T),
        _array(router.hidden.bias),
        _array(router.output.weight.T),
        _array(router.output.bias),
        *query,
        pooling="attention" if query else "saliency",
        max_source_length=TINY.max_source_length,
    )
    np.testing.assert_allclose(_array(scores.saliency), saliency, atol=2e-5)
    np.testing.assert_allclose(_array(scores.logits), logits, atol=2e-5)


def test_select_states_is_select_states() -> None:
    states, lengths = torch.randn(4, 10, 6), torch.tensor([10, 3, 7, 1])
    saliency = torch.randn(4, 10).round()  # rounding makes ties
    counts = keep_counts(lengths, TINY.paths[1])
    assert counts.tolist() == [8, 3, 6, 1]
    kept, bias = select_states(states, saliency, lengths, counts)
    expected, kept_lengths, expected_bias = SELECT_STATES.reference(
        _array(states),
        _array(saliency),
        _array(lengths).astype(np.int32),
        _array(counts).astype(np.int32),
    )
    np.testing.assert_array_equal(kept_lengths, _array(counts))
    np.testing.assert_array_equal(_array(kept), expected)
    np.testing.assert_allclose(_array(bias), expected_bias, atol=1e-6)


def test_self_attention_over_a_cache_is_cached_attention() -> None:
    attention = SelfAttention(TINY, bidirectional=False)
    model = random_model()
    x = torch.randn(3, 2, TINY.d_model)
    shape = (3, TINY.kv_heads, 12, TINY.head_dim)
    cache = LayerCache(torch.randn(shape), torch.randn(shape))
    past = _array(cache.keys).copy(), _array(cache.values).copy()
    lengths = torch.tensor([4, 0, 9])
    positions = lengths[:, None] + torch.arange(2)
    seen = torch.arange(11) <= positions[..., None]
    shared = model.decoder.attention_input(positions, seen)
    plain = type(shared)(shared.positions, shared.bias, rotary=None)
    attention.o.weight.data = torch.eye(TINY.d_model)
    actual = attention(x, plain, cache)
    output, keys, values = CACHED_ATTENTION.reference(
        _array(attention.q(x)),
        _array(attention.k(x)),
        _array(attention.v(x)),
        *past,
        _array(lengths).astype(np.int32),
        num_heads=TINY.num_heads,
        scale=TINY.softmax_scale,
    )
    np.testing.assert_allclose(_array(actual), output, atol=1e-5)
    np.testing.assert_allclose(_array(cache.keys), keys, atol=1e-6)
    np.testing.assert_allclose(_array(cache.values), values, atol=1e-6)
