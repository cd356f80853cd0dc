import numpy as np
import pytest
import torch

from drl.export.model import Route
from drl.export.verification.comparison import RouteTally, lead_over
from drl.export.verification.limits import LIMITS
from drl.export.verification.report import (
    BackendReport,
    Comparison,
    KeptStates,
    LayerRoutes,
    PathComparison,
)

FP32 = LIMITS["fp32"]


def route(layer: str, chosen: list[list[int]], leads: list[list[float]]) -> Route:
    """Routes `[B, T]` of one expert each, of four; `leads` over the next best."""
    ids = torch.tensor(chosen, dtype=torch.int32)[..., None]
    probabilities = torch.full((*ids.shape[:2], 4), 0.1)
    lead = torch.tensor(leads)[..., None]
    probabilities.scatter_(-1, ids.clamp(min=0).long(), 0.1 + lead)
    return Route(layer, ids, torch.ones(ids.shape), probabilities, ids[..., 0] >= 0)


def experts(chosen: list[list[int]]) -> np.ndarray:
    return np.array(chosen, np.int32)[..., None]


def test_clear_choices_are_told_from_near_ties_and_rows_that_differ_leave() -> None:
    rows = np.ones(3, bool)
    tally = RouteTally()
    one = route("decoder.layers.1", [[0, 1], [2, 3], [1, -1]], [[0.5, 0.5], [5e-4, 0.5], [0.2, 0]])
    tally.add([one], {1: experts([[0, 1], [3, 3], [1, 0]])}, rows)
    assert rows.tolist() == [True, False, True]
    (found,) = tally.layers()
    assert found == LayerRoutes("decoder.layers.1", 4, 0, 1, 1, pytest.approx(5e-4, abs=1e-6))
    two = route("decoder.layers.3", [[0, 1], [2, 3], [1, -1]], [[0.5, 0.3], [0.5, 0.5], [0.2, 0]])
    tally.add([two], {3: experts([[0, 2], [0, 0], [1, -1]])}, rows)
    assert tally.layers()[1] == LayerRoutes("decoder.layers.3", 3, 1, 0, 0, pytest.approx(0.3))
    assert rows.tolist() == [False, False, True]


def test_without_rows_every_layer_counts_for_itself() -> None:
    tally = RouteTally()
    wrong = {1: experts([[1]]), 3: experts([[1]])}
    for layer in (1, 3):
        tally.add([route(f"decoder.layers.{layer}", [[0]], [[0.5]])], wrong)
    assert [found.wrong for found in tally.layers()] == [1, 1]


def test_after_a_difference_a_full_expert_says_nothing_of_the_rest_of_a_row() -> None:
    """An expert that is full for a later token may be so because of the one that flipped."""
    chosen = route("encoder.layers.1", [[0, 0, 0, 1]], [[5e-4, 0.5, 0.5, 0.5]])
    actual = {1: experts([[1, 0, -1, 2]])}
    tally = RouteTally(capacity=2)
    tally.add([chosen], actual)
    assert tally.layers()[0].flips == 1
    assert tally.layers()[0].wrong == 0
    without = RouteTally()
    without.add([chosen], actual)
    assert without.layers()[0].wrong == 2


def test_another_expert_than_the_next_best_is_no_near_tie() -> None:
    probabilities = torch.tensor([[[0.4, 0.3, 0.2995, 0.0005]] * 4])
    ids = torch.tensor([[[0, 1]] * 4], dtype=torch.int32)
    gates, mask = torch.ones(ids.shape), torch.ones(ids.shape[:2], dtype=torch.bool)
    chosen = Route("decoder.layers.1", ids, gates, probabilities, mask)
    actual = np.array([[[2, 0], [0, 3], [0, -1], [1, 0]]], np.int32)
    tally = RouteTally()
    tally.add([chosen], {1: actual})
    (found,) = tally.layers()
    assert (found.clear, found.wrong, found.near_ties, found.flips) == (1, 1, 3, 2)
    assert found.widest == pytest.approx(0.2995)
    impossible = np.array([[[0, 0], [0, 4], [2, 0], [0, 2]]], np.int32)
    lead = lead_over(chosen, impossible)
    assert np.isinf(lead).tolist() == [[True, True, False, False]]


def path(**changes: object) -> PathComparison:
    usual: dict[str, object] = {
        "path": "full",
        "positions": 4,
        "step_positions": 3,
        "all_positions": 4,
        "all_step_positions": 3,
        "largest": 1e-6,
        "mean": 1e-7,
        "relative": 1e-6,
        "kl_mean": 0.0,
        "kl_max": 0.0,
        "same": 4,
        "clear": 4,
        "clear_same": 4,
        "routes": (),
        "kept": KeptStates(1),
        "ranking": 0.0,
    }
    return PathComparison(**(usual | changes))  # type: ignore[arg-type]


def report(*paths: PathComparison, forced: PathComparison | None = None) -> BackendReport:
    def compare(*paths: PathComparison) -> Comparison:
        return Comparison(0.0, (), 0.0, 0, 0, paths)

    made = BackendReport("ort-cpu", "", "fp32", FP32, compare(*paths))
    if forced is None:
        return made
    return BackendReport("ort-cpu", "", "fp32", FP32, compare(*paths), compare(forced))


@pytest.mark.parametrize(
    ("changes", "failure"),
    [
        ({"relative": 2e-4}, "logits of path full differ by 2.0e-04"),
        ({"relative": float("nan")}, "logits of path full differ by nan"),
        ({"positions": 0}, "nothing is left to compare on path full"),
        ({"step_positions": 0}, "no cached step is left to compare on path full"),
        ({"clear_same": 3}, "1 of 4 clear predictions of path full are other tokens"),
        ({"kept": KeptStates(3, 3, float("nan"))}, "3 of 3 sources keep other states"),
        ({"kept": KeptStates(3, 1, 0.1)}, "1 of 3 sources keep other states on path full"),
        ({"ranking": float("inf")}, "normalisers or candidates of path full"),
        (
            {"routes": (LayerRoutes("decoder.layers.1", 9, 1, 0, 0, 0.02),)},
            "decoder.layers.1 takes other experts where the choice is clear",
        ),
    ],
)
def test_what_exceeds_a_limit_is_a_failure(changes: dict[str, object], failure: str) -> None:
    found = report(path(**changes))
    assert not found.passed
    assert found.failures[0].startswith(failure)


def test_near_ties_that_flip_are_no_failure() -> None:
    flips = (LayerRoutes("decoder.layers.1", 9, 0, 3, 3, 9e-4),)
    assert report(path(routes=flips, kept=KeptStates(3, 1, 1e-4))).passed


@pytest.mark.parametrize("left", [{"positions": 0}, {"step_positions": 0}])
def test_forced_routes_do_not_stand_for_what_was_not_compared_without(
    left: dict[str, object],
) -> None:
    found = report(path(**left), forced=path())
    assert not found.passed
    assert "is left to compare on path full" in found.failures[0]
    assert report(path(positions=1, step_positions=1), forced=path()).passed


def test_without_cached_steps_none_has_to_be_left() -> None:
    assert report(path(step_positions=0, all_step_positions=0)).passed


def test_json_has_no_infinity() -> None:
    document = report(path(ranking=float("inf"), largest=1.23456e-5)).to_dict()
    assert document["free"]["paths"][0]["ranking"] is None
    assert document["free"]["paths"][0]["largest"] == 1.23e-5
    assert document["passed"] is False
