"""What paths cost in milliseconds, and which one a budget buys."""

import json
from pathlib import Path
from typing import Any

import pytest

from drl.runtime import Engine
from drl.runtime.costs import CostModel, PathCost
from drl.runtime.errors import BundleError, RequestError
from tests.runtime.toy import ToyBackend, toy_bundle, toy_engine

NAMES = ("fast", "mid", "full")


def document(**changes: Any) -> dict[str, Any]:
    paths = {
        name: {"alpha_ms": 2.0, "beta_ms": 0.1 * scale, "gamma_ms": 1.0 * scale}
        for scale, name in enumerate(NAMES, start=1)
    }
    values = {"format": "drl-costs", "format_version": 1, "device": "cpu", "threads": 2}
    return values | {"paths": paths} | changes


def write(folder: Path, **changes: Any) -> Path:
    (folder / "costs.json").write_text(json.dumps(document(**changes)))
    return folder


def test_the_time_is_a_plane() -> None:
    assert PathCost(2.0, 0.5, 3.0).milliseconds(source=10, new=4) == 19.0


@pytest.mark.parametrize(
    ("budget", "path"), [(1.0, 0), (13.0, 0), (23.9, 0), (24.0, 1), (34.9, 1), (35.0, 2), (9e9, 2)]
)
def test_the_dearest_path_that_fits_is_taken(tmp_path: Path, budget: float, path: int) -> None:
    costs = CostModel.load(write(tmp_path))
    assert costs.choose(NAMES, source=10, new=10, budget_ms=budget) == path


def test_no_calibration_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"has no costs.json.*drl-bench .* --calibrate"):
        CostModel.load(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "other"},
        {"format_version": 2},
        {"paths": []},
        {"paths": {"fast": {}}},
        {"paths": {"fast": {"alpha_ms": "x", "beta_ms": 1, "gamma_ms": 1}}},
        {"paths": {"fast": {"alpha_ms": float("nan"), "beta_ms": 1, "gamma_ms": 1}}},
        {"threads": None},
    ],
)
def test_damage_is_one_line(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match="--calibrate"):
        CostModel.load(write(tmp_path, **changes))


def test_a_file_that_is_no_json_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "costs.json").write_text("{")
    with pytest.raises(BundleError, match="cannot be read"):
        CostModel.load(tmp_path)


def test_a_path_without_costs_is_named(tmp_path: Path) -> None:
    costs = CostModel.load(write(tmp_path))
    with pytest.raises(BundleError, match="knows nothing of path 'new'"):
        costs.choose(("fast", "new"), 1, 1, 1.0)


def test_a_budget_in_milliseconds_chooses_the_path(tmp_path: Path) -> None:
    engine = toy_engine(write(tmp_path), head=None)  # without a router the dearest path is taken
    prompts = [[5] * 10, [5] * 40]  # at 5 new tokens: 8, 14, 20 and 11, 20, 29 milliseconds
    for budget, paths in ((1, ["fast", "fast"]), (15, ["mid", "fast"]), (25.5, ["full", "mid"])):
        results = engine.generate(prompts, max_new_tokens=5, budget_ms=budget)
        assert [result.path for result in results] == paths
    (piece, *_) = engine.stream(prompts[0], max_new_tokens=1, budget_ms=7.0)
    assert piece.result is None or piece.result.path == "mid"


def test_the_path_router_chooses_among_the_paths_that_fit(tmp_path: Path) -> None:
    engine = toy_engine(write(tmp_path))
    prompts = [[token] * 10 for token in range(5, 45)]
    names = {result.path for result in engine.generate(prompts, max_new_tokens=5, budget_ms=15)}
    assert names == {"fast", "mid"}
    (lower,) = engine.generate(prompts[:1], max_new_tokens=5, budget_ms=15, budget=0.3)
    assert lower.path == "fast"


@pytest.mark.parametrize("budget", [0, -1.0, float("nan"), "10", True])
def test_a_wrong_budget_is_refused(tmp_path: Path, budget: Any) -> None:
    with pytest.raises(RequestError, match="budget_ms must be a number above 0"):
        toy_engine(write(tmp_path)).generate([[5]], budget_ms=budget)


def test_a_path_and_a_budget_contradict_each_other(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="contradict each other"):
        toy_engine(write(tmp_path)).generate([[5]], budget_ms=5.0, path="fast")


def test_a_budget_without_calibration_says_how_to_make_one(tmp_path: Path) -> None:
    engine = toy_engine(tmp_path)
    with pytest.raises(BundleError, match="--calibrate"):
        engine.generate([[5]], budget_ms=5.0)
    engine.generate([[5]], max_new_tokens=2)  # which nobody needs who asks for none


def test_times_of_another_device_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"cost on cpu, and this engine runs on cuda; .* cuda`"):
        CostModel.load(write(tmp_path), "cuda")
    CostModel.load(write(tmp_path, device="cuda"), "cuda")


def test_an_engine_takes_the_times_of_its_own_kind_of_device(tmp_path: Path) -> None:
    bundle = toy_bundle(write(tmp_path, device="cuda"), head=None)
    options = {"max_new_tokens": 5, "budget_ms": 15}
    with Engine(bundle, ToyBackend(bundle.manifest), device="cuda:1") as engine:
        assert engine.generate([[5] * 10], **options)[0].path == "mid"
    with (
        Engine(bundle, ToyBackend(bundle.manifest)) as engine,
        pytest.raises(BundleError, match="cost on cuda, and this engine runs on cpu; run `drl-b"),
    ):
        engine.generate([[5] * 10], **options)
