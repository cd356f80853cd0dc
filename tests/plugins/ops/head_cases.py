"""Inputs that every implementation of the head with float weights must get right."""

from collections.abc import Callable, Iterator

import numpy as np

from drl.plugins.ops import HEAD
from tests.plugins.ops.case import TOLERANCES, Array, Case, Maker


def _head(
    name: str,
    candidates: int,
    *,
    shape: tuple[int, int] = (2, 3),
    columns: int = 77,
    depth: int = 37,
    factor: float = 0.5,
    biased: bool = False,
    alter: Callable[[Array], Array] = lambda x: x,
) -> Case:
    make = Maker(name, "fp32")
    inputs = {
        "x": alter(make.f32(*shape, depth)),
        "weight": make.f32(columns, depth, scale=depth**-0.5),
        "candidates": np.array([candidates]),
        **({"bias": make.f32(columns)} if biased else {}),
    }
    return Case(HEAD, name, inputs, {"factor": factor}, "fp32", TOLERANCES["fp32"])


def _ties() -> Case:
    """Columns that are equal in threes, of numbers whose products and sums are exact."""
    case = _head("ties", 12, columns=27, alter=np.round)
    thirds = np.random.default_rng(0).permutation(np.repeat(np.arange(9), 3))
    case.inputs["weight"] = np.round(case.inputs["weight"] * 8)[thirds]
    return case


def _odd_bias(candidates: int) -> Case:
    """Columns that are never or always chosen, by a bias that is not finite."""
    case = _head(f"odd_bias{candidates}", candidates, biased=True)
    case.inputs["bias"][[3, 40]] = -np.inf
    case.inputs["bias"][[0, 50]] = np.nan
    return case


def _barred() -> Case:
    case = _head("barred", 77, biased=True)
    case.inputs["bias"][::2] = -np.inf
    return case


def _nan_row(x: Array) -> Array:
    x = x.copy()
    x[0, 1, 3] = np.nan
    return x


def head_cases() -> Iterator[Case]:
    for candidates in (0, 1, 5, 77):
        yield _head(f"candidates{candidates}", candidates)
        yield _head(f"bias{candidates}", candidates, biased=True)
    for candidates in (0, 3):
        yield _head(f"nan_row{candidates}", candidates, alter=_nan_row)
        yield _odd_bias(candidates)
    yield _odd_bias(77)
    yield _barred()
    yield _ties()
    yield _head("one_column", 1, columns=1)
    yield _head("one_number", 3, depth=1)
    yield _head("one_token", 4, shape=(1, 1))
    yield _head("large", 4, factor=400.0)
