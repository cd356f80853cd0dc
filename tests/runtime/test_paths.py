"""The choice of path."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drl.runtime import RequestError
from drl.runtime.manifest import PathInfo, RouterInfo
from drl.runtime.paths import choose_path, find_path

COSTS = (0.25, 0.5, 1.0)
PATHS = [PathInfo(name, (0,), 1, 1.0, cost) for name, cost in zip("abc", COSTS, strict=True)]
LINEAR, GREEDY = RouterInfo("linear", 0.5), RouterInfo("greedy", 0.5)


@pytest.mark.parametrize(
    ("router", "logits", "budget", "expected"),
    [
        (LINEAR, [0, 1, 2], 1.0, 2),
        (LINEAR, [0, 1, 2], 0.99, 1),
        (LINEAR, [0, 1, 2], 0.5, 1),
        (LINEAR, [0, 1, 2], 0.3, 0),
        (LINEAR, [0, 1, 2], 0.0, 0),  # none fits: the cheapest
        (LINEAR, [2, 2, 2], 1.0, 0),  # ties: the cheapest
        (LINEAR, [-9, -9, -9], 1.0, 0),
        (RouterInfo("attention", 0.5), [0, 3, 2], 1.0, 1),
        (GREEDY, [-1, 0, 5], 1.0, 1),  # sigmoid(0) = threshold
        (GREEDY, [-1, -1e-3, -5], 1.0, 2),  # none reaches it: the last candidate
        (GREEDY, [-1, -1, 5], 0.5, 1),
        (GREEDY, [9, 9, 9], 1.0, 0),
        (GREEDY, [-1e30, 1e30, 0], 1.0, 1),
        (None, None, 1.0, 2),
        (None, None, 0.6, 1),
        (None, None, 0.0, 0),
    ],
)
def test_choice(
    router: RouterInfo | None, logits: list[float] | None, budget: float, expected: int
) -> None:
    values = None if logits is None else np.array(logits, np.float32)
    assert choose_path(COSTS, router, values, budget) == expected


@given(
    st.lists(st.floats(-50, 50, width=32), min_size=3, max_size=3),
    st.floats(0, 1),
    st.floats(0.01, 0.99),
)
def test_greedy_takes_the_cheapest_that_reaches_the_threshold(
    logits: list[float], budget: float, threshold: float
) -> None:
    candidates = [index for index, cost in enumerate(COSTS) if cost <= budget] or [0]
    reached = [i for i in candidates if 1 / (1 + math.exp(-logits[i])) >= threshold]
    chosen = choose_path(
        COSTS, RouterInfo("greedy", threshold), np.array(logits, np.float32), budget
    )
    assert chosen == (reached[0] if reached else candidates[-1])


@pytest.mark.parametrize(
    ("path", "expected"), [("a", 0), ("c", 2), (1, 1), (np.int64(2), 2), ("1", 1), ("auto", None)]
)
def test_paths_are_found_by_name_and_index(path: object, expected: int | None) -> None:
    assert find_path(PATHS, path) == expected


@pytest.mark.parametrize("path", ["d", "", "3", "-1", 3, -1, "9" * 5000, "½"])
def test_unknown_paths_are_answered_with_the_known_ones(path: object) -> None:
    with pytest.raises(RequestError, match=r"this bundle has auto, a, b, c \(or 0 to 2\)"):
        find_path(PATHS, path)


@pytest.mark.parametrize("path", [None, True, 1.0, ["a"]])
def test_paths_of_other_types_are_refused(path: object) -> None:
    with pytest.raises(RequestError, match="must be a name or an index"):
        find_path(PATHS, path)


def test_a_path_may_be_called_like_a_number() -> None:
    paths = [PathInfo(name, (0,), 1, 1.0, 1.0) for name in ("1", "0")]
    assert find_path(paths, "1") == 0
    assert find_path(paths, "0") == 1
