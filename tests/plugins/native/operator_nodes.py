"""Calls of every native operator, in all its forms and over odd sizes."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from drl.plugins.ops import (
    CACHED_ATTENTION,
    CROSS_ATTENTION,
    ENCODER_ATTENTION,
    EXPERT_ROUTE,
    HEAD,
    LINEAR,
    PROJECTIONS,
    QUANTIZE_STATES,
    QUANTIZED_CACHED_ATTENTION,
    QUANTIZED_CROSS_ATTENTION,
    QUANTIZED_GATHER,
    QUANTIZED_HEAD,
    QUANTIZED_LINEAR,
    QUANTIZED_PROJECTIONS,
    QUANTIZED_ROUTED_FFN,
    ROUTED_FFN,
)
from drl.plugins.ops.activations import GATED
from drl.plugins.ops.packing import LAYOUT, pack_int4, pack_int8, pack_int8_block
from drl.plugins.ops.panels import pack_panels
from drl.plugins.ops.state_rows import quantize_states
from tests.plugins.native.operator_graphs import Node, draw
from tests.plugins.ops.case import Array

FORMATS = {"int8": pack_int8, "int4": pack_int4, "int8-block": pack_int8_block}
PANELS = "float"  # the form of float weights
SHAPES = ((1, 1), (2, 3), (1, 40), (0, 1), (2, 0))  # [B, T]


def weights(form: str, matrices: int, columns: int, depth: int, name: str = "") -> dict[str, Array]:
    """The inputs that hold weights: `weight`, `scale`, … or `up`, `up_scale`, …."""
    drawn = draw(matrices, columns, depth, scale=depth**-0.5)
    if form == PANELS:
        return {name or "weight": pack_panels(drawn)}
    packed = FORMATS[form](drawn)
    start = f"{name}_" if name else ""
    arrays: dict[str, Array] = {name or "weight": packed.values, f"{start}scale": packed.scales}
    if packed.multipliers is not None:
        arrays[f"{start}multiplier"] = packed.multipliers
    return arrays


def layout(form: str) -> dict[str, int]:
    """The attribute of operators with packed weights."""
    return {} if form == PANELS else {"layout": LAYOUT}


def linear(
    form: str = "int8",
    activation: str = "none",
    shape: tuple[int, int] = (2, 3),
    columns: int = 70,
    depth: int = 37,
    optional: tuple[str, ...] = (),
) -> Node:
    matrices = 2 if GATED.get(activation) else 1
    extra = {
        "norm": draw(depth),
        "bias": draw(matrices * columns),
        "residual": draw(*shape, columns),
    }
    inputs = {"x": draw(*shape, depth), **weights(form, matrices, columns, depth)}
    attributes = {"columns": columns, "activation": activation, "epsilon": 1e-6, **layout(form)}
    return Node(
        LINEAR if form == PANELS else QUANTIZED_LINEAR,
        {**inputs, **{name: extra[name] for name in optional}},
        attributes,
        "-".join((form, activation, *optional, str(shape))),
    )


def projections(
    form: str = "int8", shape: tuple[int, int] = (2, 3), optional: tuple[str, ...] = ()
) -> Node:
    queries, kv, depth = 48, 20, 40
    extra = {"norm": draw(depth), "bias": draw(queries + 2 * kv)}
    inputs = {"x": draw(*shape, depth), **weights(form, 1, queries + 2 * kv, depth)}
    attributes = {"query_columns": queries, "kv_columns": kv, "epsilon": 1e-6, **layout(form)}
    return Node(
        PROJECTIONS if form == PANELS else QUANTIZED_PROJECTIONS,
        {**inputs, **{name: extra[name] for name in optional}},
        attributes,
        "-".join((form, *optional, str(shape))),
    )


def head(
    form: str = "int8",
    shape: tuple[int, int] = (2, 3),
    candidates: int = 0,
    optional: tuple[str, ...] = (),
    columns: int = 101,
) -> Node:
    depth = 36
    extra = {"norm": draw(depth), "bias": draw(columns)}
    inputs = {
        "x": draw(*shape, depth),
        **weights(form, 1, columns, depth),
        **{name: extra[name] for name in optional},
        "candidates": np.array([candidates]),
    }
    attributes = {"columns": columns, "factor": 0.5, "epsilon": 1e-6, "layout": LAYOUT}
    return Node(
        QUANTIZED_HEAD,
        inputs,
        attributes,
        "-".join((form, f"c{candidates}", *optional, str(shape))),
    )


def float_head(
    shape: tuple[int, int] = (2, 3),
    candidates: int = 0,
    biased: bool = False,
    columns: int = 101,
    depth: int = 37,
) -> Node:
    inputs = {
        "x": draw(*shape, depth),
        "weight": draw(columns, depth),
        "candidates": np.array([candidates]),
        **({"bias": draw(columns)} if biased else {}),
    }
    name = f"c{candidates}{'-bias' * biased}-{shape}"
    return Node(HEAD, inputs, {"factor": 0.25}, name)


def gather(shape: tuple[int, int] = (2, 3), form: str = "int8-block") -> Node:
    columns, depth = 50, 37
    tokens = np.random.default_rng(0).integers(0, columns, shape)
    inputs = {"tokens": tokens, **weights(form, 1, columns, depth)}
    attributes = {"depth": depth, "layout": LAYOUT}
    return Node(QUANTIZED_GATHER, inputs, attributes, f"{form}-{shape}")


def routed_tokens(shape: tuple[int, int], width: int, experts: int) -> dict[str, Array]:
    """States `[B, T, width]` that chose two experts each, but for padding."""
    chosen = np.argsort(np.random.default_rng(0).random((*shape, experts)))[..., :2]
    ids = chosen.astype(np.int32)
    ids[:1, -1:] = -1
    gates = np.abs(draw(*shape, 2))
    return {"hidden": draw(*shape, width), "expert_ids": ids, "gates": gates}


def expert_biases(experts: int, width: int, inner: int) -> dict[str, Array]:
    return {
        "up_bias": draw(experts, inner),
        "down_bias": draw(experts, width),
        "gate_bias": draw(experts, inner, scale=2),
    }


def float_routed_ffn(
    activation: str = "silu_glu",
    shape: tuple[int, int] = (2, 3),
    optional: tuple[str, ...] = (),
    width: int = 37,
    inner: int = 70,
) -> Node:
    experts = 4
    extra = expert_biases(experts, width, inner)
    raised = draw(experts, width, inner, scale=width**-0.5)
    inputs = {
        **routed_tokens(shape, width, experts),
        "up": raised,
        "down": draw(experts, inner, width, scale=inner**-0.5),
        **({"gate": raised[::-1].copy()} if GATED[activation] else {}),
        **{name: extra[name] for name in optional},
    }
    name = "-".join((activation, *optional, str(shape)))
    return Node(ROUTED_FFN, inputs, {"activation": activation}, name)


def routed_ffn(
    form: str = "int8",
    activation: str = "silu_glu",
    shape: tuple[int, int] = (2, 3),
    optional: tuple[str, ...] = (),
    width: int = 37,
    inner: int = 70,
) -> Node:
    experts = 4
    extra = {**expert_biases(experts, width, inner), "residual": draw(*shape, width, scale=2)}
    inputs = {
        **routed_tokens(shape, width, experts),
        **weights(form, experts, inner, width, "up"),
        **weights(form, experts, width, inner, "down"),
        **(weights(form, experts, inner, width, "gate") if GATED[activation] else {}),
        **{name: extra[name] for name in optional},
    }
    attributes = {"activation": activation, "inner": inner, "layout": LAYOUT}
    name = "-".join((form, activation, *optional, str(shape)))
    return Node(QUANTIZED_ROUTED_FFN, inputs, attributes, name)


def cached_attention(
    shape: tuple[int, int] = (2, 3),
    bias_rows: int | None = None,
    heads: int = 4,
    kv_heads: int = 2,
    width: int = 8,
    longest: int = 5,
) -> Node:
    batch, steps = shape
    capacity = longest + steps + 2
    lengths = np.linspace(longest, 0, batch).astype(np.int32)
    inputs = {
        "q": draw(*shape, heads * width),
        "k": draw(*shape, kv_heads * width),
        "v": draw(*shape, kv_heads * width, scale=2),
        "past_k": draw(batch, kv_heads, capacity, width),
        "past_v": draw(batch, kv_heads, capacity, width, scale=2),
        "lengths": lengths,
    }
    if bias_rows is not None:
        inputs["bias"] = draw(bias_rows, heads, steps, int(lengths.max()) + steps)
    attributes = {"num_heads": heads, "scale": width**-0.5}
    return Node(CACHED_ATTENTION, inputs, attributes, f"{shape}-bias{bias_rows}-{heads}/{kv_heads}")


def cross_attention(
    shape: tuple[int, int] = (6, 2), sources: int = 2, heads: int = 4, width: int = 8
) -> Node:
    states, kv_heads = 11, 2
    bias = np.where(np.arange(states) < 7, 0, -1e4) * np.ones((sources, 1))
    inputs = {
        "q": draw(*shape, heads * width),
        "k": draw(sources, kv_heads, states, width),
        "v": draw(sources, kv_heads, states, width, scale=2),
        "bias": bias.astype(np.float32),
    }
    attributes = {"num_heads": heads, "scale": width**-0.5}
    return Node(CROSS_ATTENTION, inputs, attributes, f"{shape}-{sources}")


def encoder_attention(
    shape: tuple[int, int] = (2, 3),
    distances: int | None = None,
    heads: int = 4,
    kv_heads: int = 2,
    width: int = 8,
) -> Node:
    inputs = {
        "q": draw(*shape, heads * width),
        "k": draw(*shape, kv_heads * width),
        "v": draw(*shape, kv_heads * width, scale=2),
        "lengths": np.linspace(shape[1], 0, shape[0]).astype(np.int32),
    }
    if distances is not None:
        inputs["bias"] = draw(distances, heads)
    attributes = {"num_heads": heads, "scale": width**-0.5}
    name = f"{shape}-bias{distances}-{heads}/{kv_heads}"
    return Node(ENCODER_ATTENTION, inputs, attributes, name)


def rounded(node: Node) -> Node:
    """A call of attention, over keys and values of int8."""
    cached = node.operator is CACHED_ATTENTION
    states = {
        name: quantize_states(node.inputs[name])
        for name in (("past_k", "past_v") if cached else ("k", "v"))
    }
    operator = QUANTIZED_CACHED_ATTENTION if cached else QUANTIZED_CROSS_ATTENTION
    return replace(node, operator=operator, inputs={**node.inputs, **states})


def quantized_states(shape: tuple[int, int] = (2, 3), heads: int = 3, width: int = 5) -> Node:
    attributes = {"kv_heads": heads, "head_dim": width}
    return Node(QUANTIZE_STATES, {"x": draw(*shape, heads * width)}, attributes, str(shape))


def expert_route(
    shape: tuple[int, int] = (2, 3), k: int = 2, biased: bool = False, depth: int = 16
) -> Node:
    groups, experts = 3, 12
    log_probs = draw(*shape, groups)
    inputs = {
        "hidden": draw(*shape, depth),
        "weight": draw(depth, experts),
        "prior_scale": np.array(1.5, np.float32),
        "group_log_probs": log_probs,
        "allowed": log_probs >= np.median(log_probs, axis=-1, keepdims=True),
        "token_mask": np.arange(shape[1]) < np.maximum(1, shape[1] - np.arange(shape[0])[:, None]),
        "k": np.array([k]),
    }
    if biased:
        inputs["bias"] = draw(experts)
    return Node(EXPERT_ROUTE, inputs, {}, f"{shape}-k{k}{'-bias' * biased}")


def of_every_operator() -> list[Node]:
    """One call of each, with all optional inputs."""
    return [
        linear("int4", "silu_glu", optional=("norm", "bias", "residual")),
        projections("int8-block", optional=("norm", "bias")),
        linear(PANELS, "silu_glu", optional=("norm", "bias", "residual")),
        projections(PANELS, optional=("norm", "bias")),
        routed_ffn(optional=("up_bias", "down_bias", "gate_bias", "residual")),
        float_routed_ffn(optional=("up_bias", "down_bias", "gate_bias")),
        head(candidates=5, optional=("norm", "bias")),
        float_head(candidates=5, biased=True),
        gather(),
        cached_attention(bias_rows=2),
        cross_attention(),
        encoder_attention(distances=5),
        expert_route(biased=True),
        rounded(cached_attention(bias_rows=2)),
        rounded(cross_attention()),
        quantized_states(),
    ]


def linears(form: str) -> Iterator[Node]:
    for activation in ("none", *GATED):
        yield linear(form, activation)
    for optional in (("norm",), ("bias",), ("residual",), ("norm", "bias", "residual")):
        yield linear(form, "gelu_glu", optional=optional)
        yield linear(form, "gelu", optional=optional)
    for shape in SHAPES:
        yield linear(form, "silu_glu", shape, optional=("norm", "bias", "residual"))
        for given in ((), ("norm",), ("bias",), ("norm", "bias")):
            yield projections(form, shape, given)


def all_nodes() -> Iterator[Node]:
    yield from linears(PANELS)
    for form in FORMATS:
        yield from linears(form)
        for given in ((), ("norm",), ("bias",), ("norm", "bias")):
            yield from (head(form, (2, 3), candidates, given) for candidates in (0, 1, 8, 101))
        yield from (head(form, shape, k, ("norm",)) for shape in SHAPES for k in (0, 4))
        for activation, gated in GATED.items():
            yield routed_ffn(form, activation)
            yield routed_ffn(form, activation, optional=biases_of(gated))
        yield from (routed_ffn(form, "silu_glu", shape, ("residual",)) for shape in SHAPES)
    for activation, gated in GATED.items():
        yield float_routed_ffn(activation)
        yield float_routed_ffn(activation, optional=biases_of(gated))
    for shape in SHAPES:
        yield float_routed_ffn(shape=shape)
        yield from (gather(shape, form) for form in ("int8", "int8-block"))
        yield from (float_head(shape, k, biased=k > 1) for k in (0, 1, 4))
        yield expert_route(shape)
        yield expert_route(shape, k=1, biased=True)
        yield quantized_states(shape)
    yield quantized_states((2, 70), heads=4, width=64)
    for shape in SHAPES:
        yield encoder_attention(shape)
        yield encoder_attention(shape, distances=33)
    yield encoder_attention((2, 70), distances=9, kv_heads=4)
    for node in attentions():
        yield node
        yield rounded(node)
    yield from (expert_route(k=k) for k in (0, 12))
    yield from (float_head((2, 3), k, biased) for k in (0, 101) for biased in (False, True))


def biases_of(gated: bool) -> tuple[str, ...]:
    return ("up_bias", "down_bias", "gate_bias") if gated else ("up_bias", "down_bias")


def attentions() -> Iterator[Node]:
    for shape in SHAPES:
        if shape[0]:
            yield cross_attention(shape, sources=1)
            yield cached_attention(shape)
            yield cached_attention(shape, bias_rows=1)
            yield replace(
                cached_attention(shape, bias_rows=shape[0], kv_heads=4), name=f"{shape}-own"
            )
    yield cross_attention((0, 2), sources=1)
    yield from (cross_attention((6, 1), sources) for sources in (2, 3, 6))
