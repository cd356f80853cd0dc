"""Sampling against transformers' filters: its distribution, and no influence of other rows."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drl.runtime import GenerationConfig
from drl.runtime.processors.sampling import Sampler
from tests.runtime.processors.warpers import expected_probabilities


def draw(logits: np.ndarray, config: GenerationConfig, draws: np.ndarray) -> np.ndarray:
    """The tokens of one row of logits for many draws."""
    rows = np.repeat(logits[None], len(draws), 0)
    return Sampler([config] * len(draws)).sample(rows, draws, np.empty_like(rows))


def sampling_configs() -> st.SearchStrategy[GenerationConfig]:
    return st.builds(
        GenerationConfig,
        temperature=st.sampled_from([0.3, 1.0, 1.7, 1e-6]),
        top_k=st.sampled_from([None, 0, 1, 2, 7, 300, 10_000]),
        top_p=st.sampled_from([None, 1e-9, 0.5, 0.9, 1.0]),
        min_p=st.sampled_from([None, 0.0, 0.05, 1.0]),
        typical_p=st.sampled_from([None, None, 0.1, 0.9]),
        epsilon_cutoff=st.sampled_from([None, None, 0.003]),
        eta_cutoff=st.sampled_from([None, None, 0.003]),
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_k": 1},
        {"top_k": 5},
        {"top_k": 400},
        {"top_p": 0.3},
        {"top_p": 0.95},
        {"top_p": 1.0},
        {"min_p": 0.1},
        {"min_p": 1.0},
        {"top_k": 30, "top_p": 0.8, "min_p": 0.02},
        {"top_k": 300, "top_p": 0.9},
        {"typical_p": 0.2},
        {"typical_p": 0.9},
        {"epsilon_cutoff": 0.002},
        {"eta_cutoff": 0.002},
        {"top_p": 0.9, "typical_p": 0.8, "epsilon_cutoff": 0.001, "eta_cutoff": 0.002},
    ],
)
@pytest.mark.parametrize("spread", [0.05, 2.0])  # nearly uniform: more than the first look
@pytest.mark.parametrize("vocab_size", [20, 700])
def test_tokens_come_as_often_as_they_are_likely(
    options: dict[str, Any], spread: float, vocab_size: int
) -> None:
    random = np.random.default_rng(1)
    logits = (random.normal(size=vocab_size) * spread).astype(np.float32)
    config = GenerationConfig(temperature=0.8, **options)
    expected = expected_probabilities(logits, config)
    # A fine regular grid of draws measures each probability to within a cell.
    count = 4000
    tokens = draw(logits, config, (np.arange(count) + 0.5) / count)
    found = np.bincount(tokens, minlength=vocab_size) / count
    np.testing.assert_allclose(found, expected, atol=1.5 / count)
    assert set(np.flatnonzero(found)) <= set(np.flatnonzero(expected))


@settings(deadline=None)
@given(st.lists(sampling_configs(), min_size=1, max_size=9), st.integers(0, 2**32 - 1))
def test_a_row_does_not_depend_on_the_others(configs: list[GenerationConfig], seed: int) -> None:
    random = np.random.default_rng(seed)
    spread = random.choice([0.01, 1.0, 8.0])
    vocab_size = int(random.choice([3, 300, 900]))
    logits = (random.normal(size=(len(configs), vocab_size)) * spread).astype(np.float32)
    logits = np.round(logits, 1)  # ties
    draws = random.random(len(configs))
    together = Sampler(configs).sample(logits, draws, np.empty_like(logits))
    for row, config in enumerate(configs):
        one = slice(row, row + 1)
        alone = Sampler([config]).sample(logits[one], draws[one], np.empty_like(logits[one]))
        assert alone[0] == together[row]


@settings(deadline=None)
@given(sampling_configs(), st.integers(0, 2**32 - 1))
def test_only_allowed_tokens_are_drawn(config: GenerationConfig, seed: int) -> None:
    random = np.random.default_rng(seed)
    logits = (random.normal(size=400) * 3).astype(np.float32)
    logits[random.integers(0, 400, 50)] = -np.inf
    draws = np.array([0.0, 0.5, np.nextafter(1.0, 0.0)])
    allowed = expected_probabilities(logits, config) > 0
    assert allowed[draw(logits, config, draws)].all()


def test_ties_with_the_last_of_top_k_are_kept_and_those_of_top_p_cut_by_id() -> None:
    logits = np.zeros(600, np.float32)
    logits[0] = -1
    draws = np.linspace(0, 0.999, 4000)
    config = GenerationConfig(temperature=1.0, top_k=3)
    assert set(draw(logits, config, draws).tolist()) == set(range(1, 600))
    config = GenerationConfig(temperature=1.0, top_p=1e-6)
    assert set(draw(logits, config, draws).tolist()) == {1}


CHI_SQUARED: list[dict[str, Any]] = [
    {"temperature": 0.6},
    {"temperature": 1.7},
    {"top_k": 9},
    {"top_p": 0.8},
    {"min_p": 0.05},
    {"typical_p": 0.7},
    {"epsilon_cutoff": 0.01},
    {"eta_cutoff": 0.02},
    {"temperature": 1.4, "top_k": 25, "top_p": 0.95, "min_p": 0.01},
    {"temperature": 0.9, "top_k": 30, "typical_p": 0.8, "eta_cutoff": 0.01},
]


@pytest.mark.parametrize("options", CHI_SQUARED)
@pytest.mark.parametrize("vocab_size", [40, 600])
def test_random_draws_pass_a_chi_squared_test(options: dict[str, Any], vocab_size: int) -> None:
    random = np.random.default_rng(11)
    logits = (random.normal(size=vocab_size) * 2).astype(np.float32)
    config = GenerationConfig(do_sample=True, **options)
    count = 20_000
    tokens = np.concatenate(
        [draw(logits, config, part) for part in random.random(count).reshape(20, -1)]
    )
    expected = expected_probabilities(logits, config) * count
    found = np.bincount(tokens, minlength=vocab_size)
    assert not found[expected == 0].any()
    # Cells too small for the approximation are counted together.
    rare = expected < 10
    expected = np.append(expected[~rare], expected[rare].sum())
    found = np.append(found[~rare], found[rare].sum())
    found, expected = found[expected > 0], expected[expected > 0]
    statistic = ((found - expected) ** 2 / expected).sum()
    assert statistic < chi_squared_limit(len(expected) - 1)


def chi_squared_limit(freedom: int) -> float:
    """What one in ten thousand exceeds. Source: Wilson and Hilferty 1931."""
    share = 2 / (9 * freedom)
    return float(freedom * (1 - share + 3.72 * share**0.5) ** 3)


def test_a_tiny_temperature_is_greedy() -> None:
    logits = np.array([1.0, 3.0, 2.0, -1e30], np.float32)
    for options in ({}, {"top_p": 0.9}):
        config = GenerationConfig(temperature=1e-30, **options)
        assert draw(logits, config, np.array([0.0, 0.999])).tolist() == [1, 1]


def test_logits_are_left_as_they_are() -> None:
    logits = np.random.default_rng(0).normal(size=(2, 50)).astype(np.float32)
    before = logits.copy()
    configs = [GenerationConfig(temperature=2.0), GenerationConfig(temperature=2.0, top_k=3)]
    Sampler(configs).sample(logits, np.array([0.1, 0.9]), np.empty_like(logits))
    np.testing.assert_array_equal(logits, before)
