"""Inputs that every implementation of the linears with float weights must get right."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from drl.plugins.ops import LINEAR, PROJECTIONS, Operator
from drl.plugins.ops.activations import GATED
from drl.plugins.ops.panels import pack_panels
from tests.plugins.ops.case import TOLERANCES, Array, Case, Maker


def _odd_rows(x: Array) -> Array:
    """Among ordinary rows: zeros, tiny numbers, and three that are not finite."""
    x = x.copy()
    for row, factor in enumerate((0.0, 1e-37)):
        x[0, row] *= factor
    for row, value in enumerate((np.nan, np.inf, -np.inf)):
        x[1, row, row] = value
    return x


def _product(
    operator: Operator,
    name: str,
    attributes: dict[str, Any],
    *,
    shape: tuple[int, int] = (2, 3),
    matrices: int = 1,
    columns: int = 77,
    depth: int = 37,
    optional: tuple[str, ...] = (),
    alter: Callable[[Array], Array] = lambda x: x,
) -> Case:
    make = Maker(name, "fp32")
    drawn = {
        "norm": make.f32(depth),
        "bias": make.f32(matrices * columns),
        "residual": make.f32(*shape, columns),
    }
    inputs = {
        "x": alter(make.f32(*shape, depth)),
        "weight": pack_panels(make.f32(matrices, columns, depth, scale=depth**-0.5)),
        **{part: drawn[part] for part in optional},
    }
    # A large epsilon, so that one that is left out shows.
    attributes = {**attributes, "epsilon": 0.25}
    return Case(operator, name, inputs, attributes, "fp32", TOLERANCES["fp32"])


def _linear(name: str, activation: str = "none", columns: int = 77, **kwargs: Any) -> Case:
    attributes = {"columns": columns, "activation": activation}
    matrices = 2 if GATED.get(activation) else 1
    return _product(LINEAR, name, attributes, matrices=matrices, columns=columns, **kwargs)


def linear_cases() -> Iterator[Case]:
    for activation in ("none", *GATED):
        yield _linear(activation, activation)
    for part in ("norm", "bias", "residual"):
        yield _linear(part, optional=(part,))
    everything = ("norm", "bias", "residual")
    yield _linear("everything", "gelu", optional=everything)
    yield _linear("everything_gated", "silu_glu", optional=everything)
    yield _linear("bias_gated", "gelu_glu", optional=("bias",))
    yield _linear("odd_rows", "relu", alter=_odd_rows, optional=("bias", "residual"))
    yield _linear("odd_rows_normed", alter=_odd_rows, optional=("norm",))
    yield _linear("one_token", shape=(1, 1))
    yield _linear("smallest", columns=1, depth=1)
    yield _linear("whole_panels", columns=128, depth=96)
    yield _linear("one_less", columns=63)
    yield _linear("one_more", "silu_glu", columns=65, depth=129)


def projections_cases() -> Iterator[Case]:
    for name, queries, kv, optional in (
        ("whole_panels", 64, 64, ()),
        ("within_a_panel", 24, 8, ()),
        ("across_panels", 65, 35, ()),
        ("norm", 50, 20, ("norm",)),
        ("bias", 50, 20, ("bias",)),
        ("norm_bias", 50, 20, ("norm", "bias")),
    ):
        attributes = {"query_columns": queries, "kv_columns": kv}
        columns = queries + 2 * kv
        yield _product(PROJECTIONS, name, attributes, columns=columns, optional=optional)
    attributes = {"query_columns": 50, "kv_columns": 20}
    yield _product(PROJECTIONS, "odd_rows", attributes, columns=90, alter=_odd_rows)
