"""Attention in fp32: it is the operators, and gives the same bits wherever and however it runs."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drl.plugins.native import Kernels, NativeLibraryError
from drl.plugins.native.kernels import ParallelFor
from tests.plugins.native.arithmetic import Float32, same_bits
from tests.plugins.native.attention_calls import Cached, Cross, draw
from tests.plugins.native.sets import (
    INSTRUCTION_SETS,
    all_kernels,
    backwards,
    kernels,
    needs_library,
    on_threads,
)
from tests.plugins.ops.case import Case
from tests.plugins.ops.cases import cached_attention_cases, cross_attention_cases

pytestmark = needs_library

CACHED_CASES = [case for case in cached_attention_cases() if case.precision == "fp32"]
CROSS_CASES = list(cross_attention_cases())
# Around the lanes of a vector and the columns that are mixed together.
WIDTHS = (1, 7, 8, 15, 16, 17, 31, 32, 40, 63, 64, 65, 72, 100, 128, 130)
NEAR = {"rtol": 1e-4, "atol": 1e-5}


def all_the_same(results: Iterator[Float32]) -> Float32:
    first = next(results)
    for other in results:
        assert same_bits(first, other)
    return first


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("case", CACHED_CASES, ids=str)
def test_the_operators_cases_of_cached_attention(isa: str, case: Case) -> None:
    inputs: dict[str, Any] = dict(case.inputs)
    cache = {new: inputs.pop(old).copy() for new, old in (("keys", "past_k"), ("values", "past_v"))}
    y = kernels(isa).cached_attention(**inputs, **cache, **case.attributes)
    actual = {"output": y, "present_k": cache["keys"], "present_v": cache["values"]}
    for name, array in case.expected().items():
        np.testing.assert_allclose(actual[name], array, rtol=case.tolerance, atol=case.tolerance)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("case", CROSS_CASES, ids=str)
def test_the_operators_cases_of_cross_attention(isa: str, case: Case) -> None:
    inputs = case.inputs
    y = kernels(isa).cross_attention(
        inputs["q"], inputs["k"], inputs["v"], inputs["bias"], **case.attributes
    )
    (expected,) = case.expected().values()
    np.testing.assert_allclose(y, expected, rtol=case.tolerance, atol=case.tolerance)


@given(
    past=st.lists(st.integers(0, 90), min_size=1, max_size=4).map(tuple),
    tokens=st.integers(1, 9),
    kv_heads=st.integers(1, 3),
    shared=st.integers(1, 5),
    width=st.sampled_from(WIDTHS),
    spare=st.integers(0, 5),
    bias=st.sampled_from(["none", "shared", "own"]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=80, deadline=None)
def test_cached_attention_is_the_operator_on_every_instruction_set(
    past: tuple[int, ...], bias: str, **shape: int
) -> None:
    bias_rows = {"none": 0, "shared": 1, "own": len(past)}[bias]
    call = Cached.random(past, bias_rows=bias_rows, **shape)
    y, keys, values = call.expected()
    for isa, native in all_kernels().items():
        actual, *cache = call.run(native)
        np.testing.assert_allclose(actual, y, err_msg=isa, **NEAR)
        np.testing.assert_array_equal(cache, [keys, values])
    all_the_same(call.run(native)[0] for native in all_kernels().values())


@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=4).map(tuple),
    beams=st.integers(1, 5),
    tokens=st.integers(1, 5),
    kv_heads=st.integers(1, 3),
    shared=st.integers(1, 5),
    width=st.sampled_from(WIDTHS),
    padding=st.integers(0, 20),
    seed=st.integers(0, 1000),
)
@settings(max_examples=80, deadline=None)
def test_cross_attention_is_the_operator_on_every_instruction_set(
    lengths: tuple[int, ...], **shape: int
) -> None:
    call = Cross.random(lengths, **shape)
    expected = call.expected()
    for isa, native in all_kernels().items():
        np.testing.assert_allclose(call.run(native), expected, err_msg=isa, **NEAR)
    all_the_same(call.run(native) for native in all_kernels().values())


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("bias_rows", [0, 1, 3])
def test_a_cached_row_alone_gives_the_same_bits(isa: str, tokens: int, bias_rows: int) -> None:
    native = kernels(isa)
    call = Cached.random((5, 70, 0), tokens=tokens, shared=3, width=72, bias_rows=bias_rows)
    together, _, _ = call.run(native)
    for row in range(3):
        alone, _, _ = call.row(row).run(native)
        assert same_bits(together[row : row + 1], alone)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("bias_rows", [0, 2])
def test_tokens_one_by_one_give_the_bits_of_a_prefill(isa: str, bias_rows: int) -> None:
    native = kernels(isa)
    # So many that the queries of a head take several passes.
    call = Cached.random((4, 60), tokens=45, shared=2, width=24, bias_rows=bias_rows)
    whole, final_keys, final_values = call.run(native)
    keys, values = call.keys, call.values
    for token in range(45):
        y, keys, values = call.token(token, keys, values).run(native)
        assert same_bits(whole[:, token : token + 1], y)
    assert same_bits(keys, final_keys)
    assert same_bits(values, final_values)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_a_row_of_cross_attention_alone_and_without_padding_gives_the_same_bits(isa: str) -> None:
    native = kernels(isa)
    lengths = (70, 5, 33)
    call = Cross.random(lengths, beams=3, tokens=2, shared=2, width=40, padding=9)
    together = call.run(native)
    for row in range(9):
        alone = call.row(row, lengths[row // 3]).run(native)
        assert same_bits(together[row : row + 1], alone)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("run", [backwards, on_threads])
@pytest.mark.parametrize("tokens", [1, 70])
def test_threads_and_their_order_change_nothing(isa: str, run: ParallelFor, tokens: int) -> None:
    # Large enough that the work is shared out.
    cached = Cached.random((200, 7, 150, 90), tokens=tokens, kv_heads=4, shared=2, width=64)
    cross = Cross.random((200, 7, 150), beams=2, tokens=tokens, kv_heads=4, width=64, padding=60)
    for one, other in zip(cached.run(kernels(isa)), cached.run(kernels(isa, run)), strict=True):
        assert same_bits(one, other)
    assert same_bits(cross.run(kernels(isa)), cross.run(kernels(isa, run)))


def test_large_calls_are_shared_out_and_small_ones_are_not() -> None:
    counts: list[int] = []

    def counting(count: int, task: Any) -> None:
        counts.append(count)
        backwards(count, task)

    native = Kernels(parallel_for=counting)
    Cached.random((20,), width=64).run(native)
    Cross.random((20,), width=64).run(native)
    assert counts == []
    Cached.random((500,) * 4, kv_heads=8, width=64).run(native)
    Cross.random((500,) * 4, kv_heads=8, width=64).run(native)
    assert len(counts) == 2
    assert min(counts) >= 8


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_query_that_is_not_finite_stays_in_its_row(isa: str, value: float) -> None:
    native = kernels(isa)
    cached = Cached.random((5, 70, 3), shared=2, width=24)
    clean, _, _ = cached.run(native)
    # Of the first head; its products with keys of either sign are infinities of either sign.
    cached.q[1, 0, 0] = value
    y, _, _ = cached.run(native)
    assert np.isnan(y[1, 0, :24]).all()
    assert same_bits(y[1, :, 24:], clean[1, :, 24:])
    assert same_bits(y[[0, 2]], clean[[0, 2]])

    cross = Cross.random((70, 30), beams=2, shared=2, width=24)
    clean = cross.run(native)
    cross.q[1, 0, 0] = value
    y = cross.run(native)
    assert np.isnan(y[1, 0, :24]).all()
    assert same_bits(y[[0, 2, 3]], clean[[0, 2, 3]])


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("width", [24, 64])
def test_keys_and_values_that_are_not_finite_are_those_of_ieee(
    isa: str, value: float, width: int
) -> None:
    native = kernels(isa)
    call = Cross.random((70, 30), beams=2, shared=2, width=width)
    call.values[0, 0, 3, 5] = value
    call.keys[1, 1, 4, 2] = value
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(call.run(native), call.expected(), **NEAR)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_a_later_token_that_is_not_finite_leaves_the_earlier_ones_alone(isa: str) -> None:
    native = kernels(isa)
    call = Cached.random((4, 60), tokens=5, width=24)
    clean, _, _ = call.run(native)
    call.v[0, 3, 1] = np.nan
    call.k[1, 2, 1] = np.nan
    y, _, _ = call.run(native)
    assert same_bits(y[0, :3], clean[0, :3])
    assert same_bits(y[1, :2], clean[1, :2])
    assert np.isnan(y[0, 3:, 1]).all()
    assert np.isnan(y[1, 2:, :24]).all()


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_masked_states_weigh_exactly_nothing(isa: str) -> None:
    native = kernels(isa)
    call = Cross.random((40, 40), beams=2, width=24)
    call.bias[:, 10:20] = -1e4
    call.bias[:, 30:] = -1e4
    clean = call.run(native)
    call.keys[:, :, 10:20] = 50
    call.values[:, :, 10:20] = 1e38  # so that the least weight would show
    for part in (call.keys, call.values):
        part[:, :, 30:] = np.nan  # padding, which is not even read
    assert same_bits(call.run(native), clean)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_states_at_the_end_with_a_bias_of_minus_10000_count_as_absent(isa: str) -> None:
    call = replace(Cross.random((3,), width=24), bias=np.array([[-1e4, -9999, -1e4]], np.float32))
    np.testing.assert_allclose(call.run(kernels(isa)), call.expected(), **NEAR)
    assert same_bits(call.run(kernels(isa)), call.row(0, 2).run(kernels(isa)))

    q, keys = np.full((1, 1, 4), 60, np.float32), np.zeros((1, 1, 2, 4), np.float32)
    keys[..., 1, :] = 60  # a score of 14400
    values = np.arange(8, dtype=np.float32).reshape(keys.shape)
    call = Cross(q, keys, values, np.array([[0, -1e4]], np.float32), heads=1, scale=1.0)
    for value in (5, np.nan):
        values[0, 0, 1, 0] = value
        assert same_bits(call.run(kernels(isa)), values[:, :, 0])
        assert same_bits(call.expected(), values[:, :, 0])


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_a_source_that_is_masked_throughout_gives_the_mean_of_like_states(isa: str) -> None:
    call = Cross.random((40, 3), width=24)
    call.bias[0] = -1e4
    call.keys[0] = call.keys[0, :, :1]
    np.testing.assert_allclose(call.run(kernels(isa)), call.expected(), **NEAR)
    mean = call.values[0].mean(axis=1).reshape(1, -1)
    np.testing.assert_allclose(call.run(kernels(isa))[0], mean, **NEAR)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("scale", [1e3, 1e18])
def test_huge_scores_choose_one_slot(isa: str, scale: float) -> None:
    native = kernels(isa)
    call = Cached.random((30, 50), shared=2, width=24)
    call = replace(call, q=call.q * np.float32(scale), k=call.k * np.float32(scale))
    np.testing.assert_allclose(call.run(native)[0], call.expected()[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_an_empty_batch_and_no_tokens_give_nothing(isa: str) -> None:
    native = kernels(isa)
    cached = Cached.random((5, 2))
    no_rows = (part[:0] for part in (cached.q, cached.k, cached.v, cached.keys, cached.values))
    y = native.cached_attention(*no_rows, cached.lengths[:0], num_heads=2, scale=1.0)
    assert y.shape == (0, 1, 32)
    no_tokens = (part[:, :0] for part in (cached.q, cached.k, cached.v))
    rest = cached.keys, cached.values, cached.lengths
    assert native.cached_attention(*no_tokens, *rest, num_heads=2, scale=1.0).shape == (2, 0, 32)
    cross = Cross.random((5, 2))
    nothing = (part[:0] for part in (cross.q, cross.keys, cross.values, cross.bias))
    assert native.cross_attention(*nothing, num_heads=2, scale=1.0).shape == (0, 1, 32)


def test_a_cache_without_room_is_refused_and_left_as_it_was() -> None:
    call = Cached.random((3, 5), tokens=2, spare=0)
    full = replace(call, lengths=np.array([3, 6], np.int32))
    keys, values = full.keys.copy(), full.values.copy()
    with pytest.raises(NativeLibraryError, match="more tokens than its cache has slots"):
        Kernels().cached_attention(
            *(full.q, full.k, full.v, keys, values, full.lengths), num_heads=2, scale=1.0
        )
    assert same_bits(keys, full.keys)
    assert same_bits(values, full.values)


@pytest.mark.parametrize(
    "change",
    [{"lengths": np.array([3, -1], np.int32)}, {"heads": 3, "q": draw(2, 1, 48)}],
    ids=["a_negative_length", "heads_that_do_not_share_evenly"],
)
def test_a_cached_call_that_is_not_possible_is_refused(change: dict[str, Any]) -> None:
    call = replace(Cached.random((3, 5)), **change)
    with pytest.raises(NativeLibraryError, match="a size is not possible"):
        call.run(Kernels())


def test_rows_that_do_not_share_sources_evenly_are_refused() -> None:
    call = Cross.random((3, 5, 4))
    with pytest.raises(NativeLibraryError, match="a size is not possible"):
        replace(call, q=call.q[:2]).run(Kernels())
