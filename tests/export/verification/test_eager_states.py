import numpy as np
import pytest
import torch

from drl.export.model import DualRouterModel
from drl.export.verification.eager_states import EagerStates, forced_routes
from tests.models import random_model, tiny_config

SOURCE = torch.tensor([[5, 9, 11, 30, 7]])
LENGTHS = torch.tensor([5])


@torch.inference_mode()
def encode(model: DualRouterModel, **given: torch.Tensor) -> EagerStates:
    watched = EagerStates({name.replace("__", "."): x for name, x in given.items()})
    with watched.watching(model):
        model.encode(SOURCE, LENGTHS)
    return watched


def test_every_place_is_told_in_the_order_in_which_it_runs(tiny_model: DualRouterModel) -> None:
    told = encode(tiny_model).told
    assert list(told) == [
        "encoder.embedding",
        *(f"encoder.layers.{i}.{part}" for i in range(3) for part in ("self_attention", "ffn")),
        "encoder.norm",
    ]
    with torch.inference_mode():
        assert torch.equal(told["encoder.norm"], tiny_model.encode(SOURCE, LENGTHS).states)


def test_what_is_given_is_read_by_what_comes_next_alone(tiny_model: DualRouterModel) -> None:
    plain = encode(tiny_model).told
    given = plain["encoder.layers.0.ffn"] * 0.5
    told = encode(tiny_model, encoder__layers__0__ffn=given).told
    assert torch.equal(told["encoder.layers.0.ffn"], plain["encoder.layers.0.ffn"])
    with torch.inference_mode():
        layer = tiny_model.encoder.layers[1]
        mask = torch.ones(1, 1, 5, dtype=torch.bool)
        shared = tiny_model.encoder.attention_input(torch.arange(5)[None], mask)
        expected = given + layer.self_attention(layer.self_attention_norm(given), shared=shared)
    torch.testing.assert_close(told["encoder.layers.1.self_attention"], expected)


def test_a_norm_that_ends_a_stack_reads_what_is_given_and_is_replaced_itself(
    tiny_model: DualRouterModel,
) -> None:
    last = torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(0))
    states = torch.ones(1, 5, 64)
    watched = EagerStates({"encoder.layers.2.ffn": last, "encoder.norm": states})
    with torch.inference_mode(), watched.watching(tiny_model):
        encoded = tiny_model.encode(SOURCE, LENGTHS)
        norm = tiny_model.encoder.norm
        assert norm is not None
        assert torch.equal(watched.told["encoder.norm"], norm(last))
    assert torch.equal(encoded.states, states)


def test_the_model_is_as_before_after_the_block_even_if_it_fails(
    tiny_model: DualRouterModel,
) -> None:
    before = encode(tiny_model).told["encoder.norm"]
    with pytest.raises(RuntimeError, match="inside"), EagerStates().watching(tiny_model):
        raise RuntimeError("inside")
    with pytest.raises(RuntimeError, match="inside"), forced_routes(tiny_model, {}):
        raise RuntimeError("inside")
    for module in (tiny_model.encoder, tiny_model.encoder.layers[0]):
        assert not {"place", "finish", "residual"} & vars(module).keys()
    assert torch.equal(encode(tiny_model).told["encoder.norm"], before)


@torch.inference_mode()
def test_forced_experts_run_with_the_routers_gates_for_them(tiny_model: DualRouterModel) -> None:
    own = tiny_model.encode(SOURCE, LENGTHS)
    (route,) = own.routes
    ids = np.full(route.expert_ids.shape, -1, np.int32)
    ids[0, :, 0] = 3
    with forced_routes(tiny_model, {"encoder.layers.1": ids}) as chosen:
        forced = tiny_model.encode(SOURCE, LENGTHS)
    assert torch.equal(chosen[0].expert_ids, route.expert_ids)
    (taken,) = forced.routes
    assert np.array_equal(taken.expert_ids.numpy(), ids)
    assert torch.equal(taken.gates[..., 0], route.probabilities[..., 3])
    assert not taken.gates[..., 1].any()
    assert not torch.allclose(forced.states, own.states)
    with forced_routes(tiny_model, {"encoder.layers.1": route.expert_ids.numpy()}):
        same = tiny_model.encode(SOURCE, LENGTHS)
    assert torch.equal(same.states, own.states)


@torch.inference_mode()
def test_forced_experts_are_weighed_as_the_model_weighs() -> None:
    model = random_model(tiny_config(gates="normalized", expert_output_scale=0.8))
    (route,) = model.encode(SOURCE, LENGTHS).routes
    with forced_routes(model, {"encoder.layers.1": route.expert_ids.numpy()}):
        (taken,) = model.encode(SOURCE, LENGTHS).routes
    torch.testing.assert_close(taken.gates, route.gates)
