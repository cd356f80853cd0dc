"""The oracle itself: its ways of computing one thing must agree."""

import pytest
import torch

from drl.export.model import ModelConfig, PathConfig, PathRouterConfig, generate
from drl.export.model.generate import pad
from tests.models import DENSE, TINY, random_model, random_prompts, tiny_config

CONFIGS = {
    "every feature": TINY,
    "relative bias": tiny_config(position="t5_bias", attention_scale=1.0, activation="gelu_glu"),
    "dense": tiny_config(**DENSE),
    "ungated and untied": tiny_config(activation="relu", tie_embeddings=False, d_shared=0),
}


@pytest.fixture(params=CONFIGS, ids=lambda name: name.replace(" ", "-"))
def config(request: pytest.FixtureRequest) -> ModelConfig:
    return CONFIGS[request.param]


def test_a_cache_changes_nothing(config: ModelConfig) -> None:
    model, prompts = random_model(config), random_prompts(6, config)
    for path in range(len(config.paths)):
        cached = generate(model, prompts, path=path, max_new_tokens=16)
        full = generate(model, prompts, path=path, max_new_tokens=16, use_cache=False)
        assert cached == full


def test_a_sequence_does_not_depend_on_its_batch(config: ModelConfig) -> None:
    model, prompts = random_model(config), random_prompts(8, config)
    together = generate(model, prompts, max_new_tokens=16)
    alone = [generate(model, [prompt], max_new_tokens=16)[0] for prompt in prompts]
    assert together == alone


def test_generations_vary_and_end_at_different_steps() -> None:
    """What the tests that compare generations rest on."""
    made = [g.tokens for g in generate(random_model(), random_prompts(48), max_new_tokens=40)]
    assert len({tuple(tokens) for tokens in made}) > 30
    assert len({len(tokens) for tokens in made}) > 4


def test_every_path_and_expert_is_used() -> None:
    model, prompts = random_model(), random_prompts(24)
    taken = {
        made.path
        for budget in (0.2, 0.5, 0.8, 1.0)
        for made in generate(model, prompts, budget=budget, max_new_tokens=1)
    }
    assert taken == {0, 1, 2}
    tokens, lengths = pad(prompts, 0)
    with torch.inference_mode():
        output = model(tokens, lengths, tokens, lengths, path=2)
    for route in (*output.encoded.routes, *output.routes):
        assert set(route.expert_ids.flatten().tolist()) == {-1, *range(8)}


def test_a_budget_bounds_the_cost_of_the_path() -> None:
    model, prompts = random_model(), random_prompts(24)
    for budget, most in ((0.0, 0), (0.5, 0), (0.74, 0), (0.75, 1), (1.0, 2)):
        made = generate(model, prompts, budget=budget, max_new_tokens=1)
        assert max(g.path for g in made) <= most


def test_a_budget_is_compared_with_the_cost_as_it_was_given() -> None:
    """0.7 is less in fp32 than in fp64, where 7 of 10 layers cost it; the runtime has fp64."""
    layers = tuple(range(10))
    for depth, budget in ((7, 0.7), (6, 0.6), (9, 0.9), (3, 0.3)):
        paths = (PathConfig("short", layers[:1]), PathConfig("most", layers[:depth]))
        paths += (PathConfig("full", layers),)
        router = PathRouterConfig("greedy", threshold=0.5)
        config = tiny_config(decoder_layers=10, paths=paths, path_router=router)
        model = random_model(config)
        assert model.path_router is not None
        with torch.no_grad():  # unsure of every path, it takes the dearest that fits
            model.path_router.output.weight.zero_()
            model.path_router.output.bias.fill_(-100.0)
        (made,) = generate(model, [[5, 6, 7]], budget=budget, max_new_tokens=1)
        assert made.path == 1, budget


def test_padding_routes_nowhere() -> None:
    model = random_model()
    tokens, lengths = pad([[5, 6, 7], [8] * 9], 0)
    encoded = model.encode(tokens, lengths)
    (route,) = encoded.routes
    assert (route.expert_ids[0, 3:] == -1).all()
    assert (route.gates[0, 3:] == 0).all()
    assert (route.expert_ids[1] >= 0).all()
