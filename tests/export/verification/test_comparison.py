import pytest

from drl.export.routes import LayerRoutes
from drl.export.verification.limits import LIMITS
from drl.export.verification.report import (
    BackendReport,
    Comparison,
    KeptStates,
    PathComparison,
)

FP32 = LIMITS["fp32"]


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
