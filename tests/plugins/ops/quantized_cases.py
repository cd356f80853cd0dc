"""Inputs that every implementation of the operators with packed weights must get right."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from drl.plugins.ops import (
    QUANTIZED_GATHER,
    QUANTIZED_HEAD,
    QUANTIZED_LINEAR,
    QUANTIZED_PROJECTIONS,
    QUANTIZED_ROUTED_FFN,
    Operator,
)
from drl.plugins.ops.activations import GATED
from drl.plugins.ops.packing import LAYOUT, pack_int4, pack_int8, pack_int8_block
from tests.plugins.ops.case import TOLERANCES, Array, Case, Maker

PACK = {"int8": pack_int8, "int4": pack_int4, "int8-block": pack_int8_block}
# Where rounded values were computed before, one may fall to the other side in another engine: it
# then differs by one step of 127.
STEP_TOLERANCE = 5e-3


def packed(weights: Array, format: str, prefix: str = "") -> dict[str, Array]:
    """Random weights as the inputs of a node."""
    result = PACK[format](weights)
    start = f"{prefix}_" if prefix else ""
    inputs = {prefix or "weight": result.values, f"{start}scale": result.scales}
    if result.multipliers is not None:
        inputs[f"{start}multiplier"] = result.multipliers
    return inputs


def _odd_rows(x: Array) -> Array:
    """Among ordinary rows: zeros, tiny, huge, and three that are not finite."""
    x = x.copy()
    for row, value in enumerate((0.0, 1e-37, 1e20)):
        x[0, row] *= value
    for row, value in enumerate((np.nan, np.inf, -np.inf)):
        x[1, row, row] = value
    return x


def _nan_rows(x: Array) -> Array:
    x = x.copy()
    x[0, 1], x[1, 0, 3] = 0.0, np.nan
    return x


def _product(
    operator: Operator,
    name: str,
    format: str,
    attributes: dict[str, Any],
    *,
    shape: tuple[int, int] = (2, 3),
    matrices: int = 1,
    columns: int = 45,
    depth: int = 37,
    optional: tuple[str, ...] = (),
    alter: Callable[[Array], Array] = lambda x: x,
) -> Case:
    """A case of an operator that multiplies x by one weight."""
    make = Maker(name, "fp32")
    drawn = {
        "norm": make.f32(depth),
        "bias": make.f32(matrices * columns),
        "residual": make.f32(*shape, columns),
    }
    inputs = {
        "x": alter(make.f32(*shape, depth)),
        **packed(make.f32(matrices, columns, depth, scale=depth**-0.5), format),
        **{part: drawn[part] for part in optional},
    }
    # A large epsilon, so that one that is left out shows.
    attributes = {**attributes, "epsilon": 0.25, "layout": LAYOUT}
    tolerance = STEP_TOLERANCE if "norm" in optional else TOLERANCES["fp32"]
    return Case(operator, f"{name}_{format}", inputs, attributes, "fp32", tolerance)


def _linear(
    name: str, format: str, activation: str = "none", columns: int = 45, **kwargs: Any
) -> Case:
    attributes = {"columns": columns, "activation": activation}
    matrices = 2 if GATED.get(activation) else 1
    return _product(
        QUANTIZED_LINEAR,
        name,
        format,
        attributes,
        matrices=matrices,
        columns=columns,
        **kwargs,
    )


def quantized_linear_cases() -> Iterator[Case]:
    for format in PACK:
        for activation in ("none", *GATED):
            yield _linear(activation, format, activation)
        for part in ("norm", "bias", "residual"):
            yield _linear(part, format, optional=(part,))
        everything = ("norm", "bias", "residual")
        yield _linear("everything", format, "gelu", optional=everything)
        yield _linear("everything_gated", format, "silu_glu", optional=everything)
        yield _linear("odd_rows", format, "relu", alter=_odd_rows)
        yield _linear("odd_rows_gated", format, "silu_glu", alter=_odd_rows)
        yield _linear("odd_rows_normed", format, optional=("norm",), alter=_nan_rows)
        yield _linear("one_token", format, shape=(1, 1))
        yield _linear("smallest", format, columns=1, depth=1)
        yield _linear("whole_panels", format, columns=64, depth=96)
        yield _linear("one_more", format, columns=65, depth=97)
        yield _linear("extremes", format, depth=300, alter=np.ones_like)


def quantized_projections_cases() -> Iterator[Case]:
    for format in PACK:
        for name, queries, kv, optional in (
            ("whole_panels", 32, 32, ()),
            ("within_panels", 24, 8, ()),
            ("across_panels", 33, 5, ()),
            ("norm", 25, 10, ("norm",)),
            ("bias", 25, 10, ("bias",)),
            ("norm_bias", 25, 10, ("norm", "bias")),
        ):
            yield _product(
                QUANTIZED_PROJECTIONS,
                name,
                format,
                {"query_columns": queries, "kv_columns": kv},
                columns=queries + 2 * kv,
                optional=optional,
            )


def _head(
    name: str,
    format: str,
    candidates: int,
    columns: int = 77,
    factor: float = 0.5,
    **kwargs: Any,
) -> Case:
    attributes = {"columns": columns, "factor": factor}
    case = _product(QUANTIZED_HEAD, name, format, attributes, columns=columns, **kwargs)
    return replace(case, inputs={**case.inputs, "candidates": np.array([candidates])})


def _head_ties(format: str) -> Case:
    """Columns that are equal in threes, and a bias of whole numbers."""
    make = Maker("ties", "fp32")
    weights = np.repeat(make.f32(1, 9, 20), 3, axis=1)
    inputs = {
        "x": make.f32(2, 3, 20),
        **packed(weights[:, make.random.permutation(27)], format),
        "candidates": np.array([12]),
    }
    attributes = {"columns": 27, "factor": 1.0, "epsilon": 0.0, "layout": LAYOUT}
    return Case(QUANTIZED_HEAD, f"ties_{format}", inputs, attributes, "fp32", TOLERANCES["fp32"])


def _head_odd_bias(format: str) -> Case:
    """Columns that are never or always chosen, by a bias that is not finite."""
    case = _head("odd_bias", format, 77, optional=("bias",))
    case.inputs["bias"][[3, 40]] = -np.inf
    case.inputs["bias"][[0, 50]] = np.nan
    return case


def quantized_head_cases() -> Iterator[Case]:
    for format in PACK:
        for candidates in (0, 1, 5, 77):
            yield _head(f"candidates{candidates}", format, candidates)
            yield _head(f"bias{candidates}", format, candidates, optional=("bias",))
        yield _head("norm", format, 0, optional=("norm", "bias"))
        for candidates in (0, 3):
            yield _head(f"odd_rows{candidates}", format, candidates, alter=_odd_rows, factor=1e-20)
        yield _head("one_column", format, 1, columns=1)
        yield _head("sharp", format, 4, factor=400.0)
        yield _head_ties(format)
        yield _head_odd_bias(format)


def quantized_gather_cases() -> Iterator[Case]:
    for name, (vocabulary, depth) in {"odd": (45, 37), "whole": (64, 32), "one": (1, 1)}.items():
        make = Maker(name, "fp32")
        tokens = make.random.integers(0, vocabulary, (3, 5))
        tokens[0, :2] = 0, vocabulary - 1
        table, attributes = make.f32(vocabulary, depth), {"depth": depth, "layout": LAYOUT}
        for format in ("int8", "int8-block"):
            inputs = {"tokens": tokens, **packed(table, format)}
            yield Case(QUANTIZED_GATHER, f"{name}_{format}", inputs, attributes, "fp32", 1e-7)


def _routed(
    name: str,
    formats: tuple[str, str, str] = ("int8", "int8", "int8"),
    *,
    activation: str = "silu_glu",
    k: int = 2,
    experts: int = 4,
    shape: tuple[int, int] = (2, 5),
    choose: Callable[[Array], Array] = lambda ids: ids,
    alter: Callable[[Array], Array] = lambda hidden: hidden,
    biased: bool = False,
    residual: bool = False,
) -> Case:
    """`formats` are those of up, down and gate."""
    name = f"{name}_{'_'.join(formats)}"
    make, width, inner = Maker(name, "fp32"), 37, 45
    order = np.argsort(make.random.random((*shape, experts)), axis=-1)
    up, gate = make.f32(2, experts, inner, width, scale=width**-0.5)
    down = make.f32(experts, width, inner, scale=inner**-0.5)
    inputs = {
        "hidden": alter(make.f32(*shape, width)),
        "expert_ids": choose(order[..., :k].astype(np.int32)),
        "gates": make.random.random((*shape, k)).astype(np.float32),
        **packed(up, formats[0], "up"),
        **packed(down, formats[1], "down"),
    }
    if GATED[activation]:
        inputs |= packed(gate, formats[2], "gate")
    if biased:
        inputs["up_bias"], inputs["down_bias"] = make.f32(experts, inner), make.f32(experts, width)
        if GATED[activation]:
            inputs["gate_bias"] = make.f32(experts, inner)
    if residual:
        inputs["residual"] = make.f32(*shape, width)
    attributes = {"activation": activation, "inner": inner, "layout": LAYOUT}
    return Case(QUANTIZED_ROUTED_FFN, name, inputs, attributes, "fp32", STEP_TOLERANCE)


def _pad(ids: Array) -> Array:
    """Make the last two tokens of the first row padding, and one choice of another token none."""
    ids = ids.copy()
    ids[0, -2:] = -1
    ids[-1, 0, -1] = -1
    return ids


def quantized_routed_ffn_cases() -> Iterator[Case]:
    for activation in GATED:
        yield _routed(activation, activation=activation, choose=_pad)
    for format in PACK:
        formats = (format, format, format)
        yield _routed("gated", formats, choose=_pad)
        yield _routed("ungated", formats, activation="relu", choose=_pad)
        yield _routed("everything", formats, choose=_pad, biased=True, residual=True)
        yield _routed("biased_ungated", formats, activation="gelu", biased=True)
        yield _routed("odd_rows", formats, alter=_odd_rows, activation="relu", biased=True)
    yield _routed("mixed", ("int8", "int4", "int8"), residual=True)
    yield _routed("mixed", ("int4", "int8", "int8"))
    yield _routed("mixed", ("int8", "int8", "int4"))
    yield _routed("mixed", ("int4", "int8-block", "int4"))
    for k in (1, 4):
        yield _routed(f"k{k}", k=k)
    yield _routed("one_token", shape=(1, 1))
    yield _routed("one_expert", k=1, experts=1)
    yield _routed("same_expert_for_all", k=1, choose=lambda ids: np.full_like(ids, 2))
    yield _routed("nothing_but_padding", choose=lambda ids: np.full_like(ids, -1), residual=True)


def quantized_cases() -> list[Case]:
    """Every case of every operator with packed weights."""
    makers = (
        quantized_linear_cases,
        quantized_projections_cases,
        quantized_routed_ffn_cases,
        quantized_head_cases,
        quantized_gather_cases,
    )
    return [case for maker in makers for case in maker()]
