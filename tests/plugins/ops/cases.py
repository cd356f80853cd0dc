"""Inputs that every implementation of a `drl` operator must get right.

A case holds the inputs and attributes of one call; the operator's NumPy reference says what
must come out. Implementations in any framework are tested over these same cases.
"""

from collections.abc import Callable, Iterator

import numpy as np

from drl.plugins.ops import (
    CACHED_ATTENTION,
    CROSS_ATTENTION,
    ENCODER_ATTENTION,
    EXPERT_CAPACITY,
    EXPERT_ROUTE,
    GROUP_ROUTE,
    PATH_SCORE,
    ROUTED_FFN,
    ROUTED_FFN_COMBINE,
    ROUTED_FFN_INNER,
    SELECT_STATES,
    Operator,
)
from drl.plugins.ops.activations import GATED
from tests.plugins.ops.case import FLOAT_TYPES, ROUTING_TOLERANCE, TOLERANCES, Array, Case, Maker
from tests.plugins.ops.head_cases import head_cases
from tests.plugins.ops.linear_cases import linear_cases, projections_cases
from tests.plugins.ops.quantized_cases import quantized_cases
from tests.plugins.ops.state_cases import quantize_states_cases, quantized_attention_cases


def _log_softmax(x: Array) -> Array:
    result = x - np.log(np.exp(x).sum(axis=-1, keepdims=True))
    return np.asarray(result, np.float32)


def group_route_cases() -> Iterator[Case]:
    for name, (batch, steps, vocabulary, groups) in {
        "several": (3, 5, 11, 4),
        "one_token": (1, 1, 11, 4),
        "one_group": (2, 3, 7, 1),
        "one_word": (2, 3, 1, 3),
    }.items():
        make = Maker(name, "fp32")
        table = _log_softmax(make.f32(vocabulary, groups))
        inputs = {
            "token_ids": make.random.integers(0, vocabulary, (batch, steps)),
            "log_prob_table": table,
            "allowed_table": make.top_groups(table, max(1, groups // 2)),
        }
        yield Case(GROUP_ROUTE, name, inputs, {}, "fp32", 0.0)


def _expert_route(
    name: str,
    precision: str = "fp32",
    *,
    k: int = 2,
    groups: int = 4,
    experts: int = 8,
    top_groups: int = 2,
    lengths: tuple[int, ...] = (5, 3, 1),
    steps: int = 5,
    scale: float = 1.0,
    biased: bool = False,
) -> Case:
    make, width = Maker(name, precision), 16
    log_probs = _log_softmax(make.f32(len(lengths), steps, groups))
    inputs = {
        "hidden": make.ft(len(lengths), steps, width, scale=scale),
        "weight": make.ft(width, experts),
        "prior_scale": np.array(1.5, np.float32),
        "group_log_probs": log_probs,
        "allowed": make.top_groups(log_probs, top_groups),
        "token_mask": make.mask(list(lengths), steps),
        "k": np.array([k]),
    }
    if biased:
        inputs["bias"] = make.ft(experts, scale=3.0)
    return Case(EXPERT_ROUTE, name, inputs, {}, precision, ROUTING_TOLERANCE)


def _expert_route_ties() -> Case:
    """Small whole numbers, so that sums are exact and equal columns tie to the last bit."""
    case = _expert_route("ties", k=4, groups=2, top_groups=1)
    inputs = dict(case.inputs)
    inputs["hidden"] = np.round(inputs["hidden"])
    columns = np.round(inputs["weight"][:, :1])
    inputs["weight"] = np.concatenate([columns * step for step in (1, 2, 1, 2, 1, 1, 2, 1)], 1)
    inputs["prior_scale"] = np.array(0, np.float32)
    return Case(EXPERT_ROUTE, "ties", inputs, {}, "fp32", ROUTING_TOLERANCE)


def expert_route_cases() -> Iterator[Case]:
    for precision in FLOAT_TYPES:
        for k in (1, 2, 4):
            yield _expert_route(f"k{k}", precision, k=k)
    yield _expert_route("one_group", groups=1, top_groups=1)
    yield _expert_route("all_groups", top_groups=4)
    yield _expert_route("group_of_one_expert", groups=8, top_groups=3)
    yield _expert_route("fewer_allowed_than_k", k=4, top_groups=1)
    yield _expert_route("every_expert", k=8, top_groups=4)
    yield _expert_route("one_expert", k=1, groups=1, experts=1, top_groups=1)
    yield _expert_route("one_token", lengths=(1,), steps=1)
    yield _expert_route("row_of_padding", lengths=(5, 0))
    yield _expert_route("all_scores_equal", k=4, top_groups=4, scale=0.0, groups=1)
    yield _expert_route("sharp", scale=40.0)
    yield _expert_route("bias", biased=True)
    yield _expert_route("bias_fp16", "fp16", biased=True)
    yield _expert_route_ties()


def expert_capacity_cases() -> Iterator[Case]:
    for capacity, k in ((1, 1), (2, 1), (2, 2), (3, 4), (99, 2)):
        make = Maker(f"capacity{capacity}_k{k}", "fp32")
        ids = np.argsort(make.random.random((3, 9, 4)), axis=-1)[..., :k].astype(np.int32)
        ids[0, -3:] = -1  # padding
        inputs = {"expert_ids": ids, "gates": make.random.random(ids.shape).astype(np.float32)}
        name, attributes = f"capacity{capacity}_k{k}", {"capacity": capacity}
        yield Case(EXPERT_CAPACITY, name, inputs, attributes, "fp32", 0.0)
    inputs = {"expert_ids": np.full((1, 2, 1), -1, np.int32), "gates": np.zeros((1, 2, 1), "f4")}
    yield Case(EXPERT_CAPACITY, "nothing_but_padding", inputs, {"capacity": 1}, "fp32", 0.0)


def _routed_ffn(
    name: str,
    precision: str = "fp32",
    *,
    activation: str = "silu_glu",
    k: int = 2,
    experts: int = 4,
    shape: tuple[int, int] = (2, 5),
    choose: Callable[[Array], Array] = lambda ids: ids,
    biased: bool = False,
) -> Case:
    """`choose` alters expert ids `[B, T, k]` that are drawn without repetition per token."""
    make, width, inner = Maker(name, precision), 16, 24
    order = np.argsort(make.random.random((*shape, experts)), axis=-1)
    inputs = {
        "hidden": make.ft(*shape, width),
        "expert_ids": choose(order[..., :k].astype(np.int32)),
        "gates": make.random.random((*shape, k)).astype(np.float32),
        "up": make.ft(experts, width, inner, scale=width**-0.5),
        "down": make.ft(experts, inner, width, scale=inner**-0.5),
    }
    if GATED[activation]:
        inputs["gate"] = make.ft(experts, width, inner, scale=width**-0.5)
    if biased:
        inputs["up_bias"], inputs["down_bias"] = make.ft(experts, inner), make.ft(experts, width)
        if GATED[activation]:
            inputs["gate_bias"] = make.ft(experts, inner)
    attributes = {"activation": activation}
    return Case(ROUTED_FFN, name, inputs, attributes, precision, TOLERANCES[precision])


def _pad(ids: Array) -> Array:
    """Make the last two tokens of the first row padding."""
    ids = ids.copy()
    ids[0, -2:] = -1
    return ids


def _pad_some_slots(ids: Array) -> Array:
    ids = ids.copy()
    ids[:, ::2, -1] = -1
    return ids


def routed_ffn_cases() -> Iterator[Case]:
    for activation in GATED:
        yield _routed_ffn(activation, activation=activation, choose=_pad)
    for precision in ("fp16", "bf16"):
        yield _routed_ffn("gated", precision, activation="silu_glu", choose=_pad)
        yield _routed_ffn("ungated", precision, activation="gelu", choose=_pad)
    for k in (1, 2, 4):
        yield _routed_ffn(f"k{k}", k=k)
        yield _routed_ffn(f"one_token_k{k}", k=k, shape=(1, 1))
    yield _routed_ffn("biased", biased=True, choose=_pad)
    yield _routed_ffn("biased_ungated", activation="relu", biased=True, choose=_pad)
    yield _routed_ffn("biased_fp16", "fp16", activation="gelu", biased=True)
    yield _routed_ffn("empty_experts", experts=8, choose=lambda ids: ids % 2 * 5)
    yield _routed_ffn("same_expert_for_all", k=1, choose=lambda ids: np.full_like(ids, 2))
    yield _routed_ffn("nothing_but_padding", choose=lambda ids: np.full_like(ids, -1))
    yield _routed_ffn("some_slots_unused", activation="relu", choose=_pad_some_slots)
    yield _routed_ffn("one_expert", k=1, experts=1)


def half_of(case: Case, operator: Operator) -> Case:
    """The part of a `RoutedFFN` case that one of its halves computes."""
    names = {argument.name for argument in operator.inputs}
    inputs = {name: array for name, array in case.inputs.items() if name in names}
    attributes = case.attributes if operator.attributes else {}
    if operator is ROUTED_FFN_COMBINE:
        make = Maker(f"inner_{case.name}", case.precision)
        rows = make.ft(*case.inputs["expert_ids"].shape, case.inputs["down"].shape[1])
        # Nothing may be read where there is no expert.
        rows[case.inputs["expert_ids"] < 0] = np.nan
        inputs = {"inner": rows, **inputs}
    return Case(operator, case.name, inputs, attributes, case.precision, case.tolerance)


def routed_ffn_inner_cases() -> Iterator[Case]:
    return (half_of(case, ROUTED_FFN_INNER) for case in routed_ffn_cases())


def routed_ffn_combine_cases() -> Iterator[Case]:
    skipped = set(GATED) - {"relu", "silu_glu"}  # this half does not depend on the activation
    cases = (case for case in routed_ffn_cases() if case.name not in skipped)
    return (half_of(case, ROUTED_FFN_COMBINE) for case in cases)


def _path_score(
    name: str,
    precision: str = "fp32",
    *,
    pooling: str = "saliency",
    lengths: tuple[int, ...] = (7, 4, 1),
    groups: int = 4,
    paths: int = 3,
    scale: float = 1.0,
) -> Case:
    make, width, rank, longest = Maker(name, precision), 16, 8, max(lengths)
    batch, features = len(lengths), width + 2 + groups
    inputs = {
        "encoder_states": make.ft(batch, longest, width, scale=scale),
        "source_mask": make.mask(list(lengths), longest),
        "group_log_probs": _log_softmax(make.f32(batch, longest, groups)),
        "budget": make.random.random(batch).astype(np.float32),
        "saliency_weight": make.f32(width),
        "saliency_bias": np.array(0.3, np.float32),
        "hidden_weight": make.f32(features, rank, scale=features**-0.5),
        "hidden_bias": make.f32(rank),
        "output_weight": make.f32(rank, paths, scale=rank**-0.5),
        "output_bias": make.f32(paths),
    }
    if pooling == "attention":
        inputs["query"] = make.f32(width)
    attributes = {"pooling": pooling, "max_source_length": 7}
    return Case(PATH_SCORE, name, inputs, attributes, precision, ROUTING_TOLERANCE)


def path_score_cases() -> Iterator[Case]:
    for pooling in ("saliency", "attention"):
        for precision in FLOAT_TYPES:
            yield _path_score(pooling, precision, pooling=pooling)
        yield _path_score(f"{pooling}_one_token", pooling=pooling, lengths=(1,))
        yield _path_score(f"{pooling}_sharp", pooling=pooling, scale=20.0)
    yield _path_score("one_group_one_path", groups=1, paths=1)


def _select_states(
    name: str,
    precision: str = "fp32",
    *,
    lengths: tuple[int, ...] = (7, 4, 1),
    keep: tuple[int, ...] = (3, 4, 1),
    alter: Callable[[Array], Array] = lambda saliency: saliency,
) -> Case:
    make, width, longest = Maker(name, precision), 8, max(lengths)
    saliency = alter(make.f32(len(lengths), longest))
    inputs = {
        "encoder_states": make.ft(len(lengths), longest, width),
        # Higher at padding than anywhere else: padding must not be kept all the same.
        "saliency": np.where(make.mask(list(lengths), longest), saliency, np.float32(1e3)),
        "source_lengths": np.array(lengths, np.int32),
        "keep_counts": np.array(keep, np.int32),
    }
    return Case(SELECT_STATES, name, inputs, {}, precision, ROUTING_TOLERANCE)


def select_states_cases() -> Iterator[Case]:
    for precision in FLOAT_TYPES:
        yield _select_states("ragged", precision)
    yield _select_states("keep_one", keep=(1, 1, 1))
    yield _select_states("keep_all", keep=(7, 4, 1))
    yield _select_states("all_equal", alter=lambda s: np.zeros_like(s))
    yield _select_states("ties", lengths=(40, 33), keep=(17, 20), alter=np.round)
    yield _select_states("extreme", alter=lambda s: np.asarray(s * 200, np.float32))
    yield _select_states("single_token", lengths=(1,), keep=(1,))


def _cached_attention(
    name: str,
    precision: str = "fp32",
    *,
    past: tuple[int, ...] = (0, 5, 3),
    steps: int = 1,
    heads: int = 4,
    kv_heads: int = 2,
    capacity: int = 12,
    bias_rows: int = 0,
    scale: float = 0.35,
) -> Case:
    make, head, batch = Maker(name, precision), 8, len(past)
    used = max(past) + steps
    cache = {}
    for part in ("past_k", "past_v"):
        # Slots past a row's length hold what an earlier sequence left; slots past all rows
        # must not even be read.
        cache[part] = make.ft(batch, kv_heads, capacity, head)
        cache[part][:, :, used:] = np.nan
    inputs = {
        "q": make.ft(batch, steps, heads * head),
        "k": make.ft(batch, steps, kv_heads * head),
        "v": make.ft(batch, steps, kv_heads * head),
        **cache,
        "lengths": np.array(past, np.int32),
    }
    if bias_rows:
        inputs["bias"] = make.ft(bias_rows, heads, steps, used)
    attributes = {"num_heads": heads, "scale": scale}
    return Case(CACHED_ATTENTION, name, inputs, attributes, precision, TOLERANCES[precision])


def cached_attention_cases() -> Iterator[Case]:
    for precision in FLOAT_TYPES:
        for steps in (1, 4):
            yield _cached_attention(f"ragged_t{steps}", precision, steps=steps)
            yield _cached_attention(f"bias_t{steps}", precision, steps=steps, bias_rows=1)
    for steps in (1, 4):
        yield _cached_attention(f"empty_past_t{steps}", past=(0, 0), steps=steps)
        yield _cached_attention(f"bias_per_row_t{steps}", steps=steps, bias_rows=3)
        yield _cached_attention(f"full_cache_t{steps}", past=(12 - steps, 2), steps=steps)
        yield _cached_attention(f"one_row_t{steps}", past=(6,), steps=steps)
        yield _cached_attention(f"one_row_bias_t{steps}", past=(6,), steps=steps, bias_rows=1)
    yield _cached_attention("heads_not_shared", heads=4, kv_heads=4, steps=3)
    yield _cached_attention("one_kv_head", heads=4, kv_heads=1, steps=3)
    yield _cached_attention("one_head", heads=1, kv_heads=1, steps=2)
    yield _cached_attention("unscaled", scale=1.0, steps=2)


def _cross_attention(
    name: str,
    *,
    sources: int = 2,
    width: int = 3,
    steps: int = 1,
    states: int = 5,
    heads: int = 4,
    kv_heads: int = 2,
    scale: float = 0.35,
) -> Case:
    make, head = Maker(name, "fp32"), 8
    inputs = {
        "q": make.f32(sources * width, steps, heads * head),
        "k": make.f32(sources, kv_heads, states, head),
        "v": make.f32(sources, kv_heads, states, head),
        "bias": make.f32(sources, states),
    }
    inputs["bias"][0, states // 2 + 1 :] = -1e4  # padding
    attributes = {"num_heads": heads, "scale": scale}
    return Case(CROSS_ATTENTION, name, inputs, attributes, "fp32", TOLERANCES["fp32"])


def cross_attention_cases() -> Iterator[Case]:
    for steps in (1, 4):
        yield _cross_attention(f"rows_share_sources_t{steps}", steps=steps)
        yield _cross_attention(f"a_row_per_source_t{steps}", width=1, steps=steps)
        yield _cross_attention(f"one_source_t{steps}", sources=1, steps=steps)
    yield _cross_attention("heads_not_shared", kv_heads=4, steps=3)
    yield _cross_attention("one_kv_head", kv_heads=1, steps=3)
    yield _cross_attention("one_head", heads=1, kv_heads=1)
    yield _cross_attention("one_state", states=1, steps=2)
    yield _cross_attention("many_states", states=300)
    yield _cross_attention("unscaled", scale=1.0)


def _encoder_attention(
    name: str,
    *,
    lengths: tuple[int, ...] = (5, 3),
    padding: int = 0,
    heads: int = 4,
    kv_heads: int = 2,
    distances: int = 0,
    scale: float = 0.35,
) -> Case:
    make, head = Maker(name, "fp32"), 8
    shape = (len(lengths), max(lengths) + padding)
    inputs = {
        "q": make.f32(*shape, heads * head),
        "k": make.f32(*shape, kv_heads * head),
        "v": make.f32(*shape, kv_heads * head),
        "lengths": np.array(lengths, np.int32),
    }
    if distances:
        inputs["bias"] = make.f32(distances, heads)
    attributes = {"num_heads": heads, "scale": scale}
    return Case(ENCODER_ATTENTION, name, inputs, attributes, "fp32", TOLERANCES["fp32"])


def encoder_attention_cases() -> Iterator[Case]:
    for name, distances in (("", 0), ("_bias", 5)):
        yield _encoder_attention(f"ragged{name}", distances=distances)
        yield _encoder_attention(f"one_row{name}", lengths=(6,), distances=distances)
        yield _encoder_attention(f"one_token{name}", lengths=(1,), distances=distances)
        yield _encoder_attention(f"all_padded{name}", padding=4, distances=distances)
        yield _encoder_attention(f"empty_source{name}", lengths=(3, 0), distances=distances)
    yield _encoder_attention("farther_than_the_bias", lengths=(40,), distances=7)
    yield _encoder_attention("not_as_far_as_the_bias", lengths=(3,), distances=41)
    yield _encoder_attention("one_distance", distances=1)
    yield _encoder_attention("heads_not_shared", kv_heads=4)
    yield _encoder_attention("one_kv_head", kv_heads=1)
    yield _encoder_attention("one_head", heads=1, kv_heads=1)
    yield _encoder_attention("many_tokens", lengths=(150, 64, 65), distances=33)
    yield _encoder_attention("unscaled", scale=1.0)


def all_cases() -> list[Case]:
    """Every case of every operator."""
    makers = (
        group_route_cases,
        expert_route_cases,
        expert_capacity_cases,
        routed_ffn_cases,
        routed_ffn_inner_cases,
        routed_ffn_combine_cases,
        path_score_cases,
        select_states_cases,
        cached_attention_cases,
        cross_attention_cases,
        encoder_attention_cases,
        head_cases,
        linear_cases,
        projections_cases,
    )
    cases = [*(case for maker in makers for case in maker()), *quantized_cases()]
    return [*cases, *quantized_attention_cases(cases), *quantize_states_cases()]
