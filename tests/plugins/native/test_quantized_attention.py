"""Attention over keys and values of int8: the operators, with the same bits however it runs."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drl.plugins.native import Kernels, NativeLibraryError
from drl.plugins.native.abi import SCALE_BYTES
from drl.plugins.native.kernels import ParallelFor
from drl.plugins.ops import state_rows
from drl.plugins.ops.state_rows import dequantize_states, quantize_states
from tests.plugins.native.arithmetic import same_bits
from tests.plugins.native.attention_calls import Cached, Cross, draw
from tests.plugins.native.sets import (
    INSTRUCTION_SETS,
    all_kernels,
    backwards,
    kernels,
    needs_library,
    on_threads,
)
from tests.plugins.native.test_attention import NEAR, WIDTHS
from tests.plugins.native.test_library import HEADER
from tests.plugins.ops.case import Case
from tests.plugins.ops.cases import cached_attention_cases, cross_attention_cases
from tests.plugins.ops.state_cases import quantize_states_cases, quantized_attention_cases

pytestmark = needs_library

CACHED_CASES = list(quantized_attention_cases(list(cached_attention_cases())))
CROSS_CASES = list(quantized_attention_cases(list(cross_attention_cases())))


def test_all_say_the_same_of_where_a_scale_lies() -> None:
    assert SCALE_BYTES == state_rows.SCALE_BYTES
    assert f"#define DRL_SCALE_BYTES {SCALE_BYTES}\n" in HEADER.read_text()


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("case", list(quantize_states_cases()), ids=str)
def test_states_are_rounded_as_the_operator_says(isa: str, case: Case) -> None:
    rows = kernels(isa).quantize_states(case.inputs["x"], case.attributes["kv_heads"])
    np.testing.assert_array_equal(rows, case.expected()["rows"])


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 4),
    states=st.integers(0, 40),
    heads=st.integers(1, 4),
    width=st.sampled_from(WIDTHS),
    exponent=st.integers(-38, 38),
)
def test_every_instruction_set_rounds_alike(
    rows: int, states: int, heads: int, width: int, exponent: int
) -> None:
    x = draw(rows, states, heads * width) * np.float32(10.0**exponent)
    with np.errstate(all="ignore"):
        split = x.reshape(rows, states, heads, width).swapaxes(1, 2)
        expected = quantize_states(split)
    for isa, native in all_kernels().items():
        np.testing.assert_array_equal(native.quantize_states(x, heads), expected, err_msg=isa)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("case", CACHED_CASES, ids=str)
def test_the_operators_cases_of_cached_attention(isa: str, case: Case) -> None:
    inputs: dict[str, Any] = dict(case.inputs)
    cache = {new: inputs.pop(old).copy() for new, old in (("keys", "past_k"), ("values", "past_v"))}
    y = kernels(isa).cached_attention(**inputs, **cache, **case.attributes)
    expected = case.expected()
    np.testing.assert_allclose(y, expected["output"], rtol=case.tolerance, atol=case.tolerance)
    np.testing.assert_array_equal(cache["keys"], expected["present_k"])
    np.testing.assert_array_equal(cache["values"], expected["present_v"])


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
    call = Cached.random(past, bias_rows=bias_rows, **shape).rounded()
    y, keys, values = call.expected()
    first = None
    for isa, native in all_kernels().items():
        actual, *cache = call.run(native)
        np.testing.assert_allclose(actual, y, err_msg=isa, **NEAR)
        np.testing.assert_array_equal(cache, [keys, values])
        assert first is None or same_bits(actual, first)
        first = actual


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
    call = Cross.random(lengths, **shape).rounded()
    expected, first = call.expected(), None
    for isa, native in all_kernels().items():
        actual = call.run(native)
        np.testing.assert_allclose(actual, expected, err_msg=isa, **NEAR)
        assert first is None or same_bits(actual, first)
        first = actual


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("width", [1, 64])
def test_more_slots_than_are_taken_together(isa: str, width: int) -> None:
    call = Cached.random((3000, 2, 1500), shared=2, width=width).rounded()
    y, keys, values = call.expected()
    actual, *cache = call.run(kernels(isa))
    np.testing.assert_allclose(actual, y, **NEAR)
    np.testing.assert_array_equal(cache, [keys, values])


def test_it_is_near_attention_over_floats() -> None:
    cached = Cached.random((70, 5, 200), tokens=3, shared=2, width=64)
    exact, rounded = cached.run(Kernels())[0], cached.rounded().run(Kernels())[0]
    assert np.abs(exact - rounded).max() < 0.02 * np.abs(exact).max()
    assert not same_bits(exact, rounded)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("bias_rows", [0, 1, 3])
def test_a_cached_row_alone_gives_the_same_bits(isa: str, tokens: int, bias_rows: int) -> None:
    native = kernels(isa)
    call = Cached.random((5, 70, 0), tokens=tokens, shared=3, width=72, bias_rows=bias_rows)
    call = call.rounded()
    together, keys, values = call.run(native)
    for row in range(3):
        alone, *cache = call.row(row).run(native)
        assert same_bits(together[row : row + 1], alone)
        used = slice(cache[0].shape[2])
        for side, own in zip((keys, values), cache, strict=True):
            np.testing.assert_array_equal(side[row : row + 1, :, used], own)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("bias_rows", [0, 2])
def test_tokens_one_by_one_give_the_bits_of_a_prefill(isa: str, bias_rows: int) -> None:
    native = kernels(isa)
    # So many that the queries of a head take several passes.
    call = Cached.random((4, 60), tokens=45, shared=2, width=24, bias_rows=bias_rows).rounded()
    whole, final_keys, final_values = call.run(native)
    keys, values = call.keys, call.values
    for token in range(45):
        y, keys, values = call.token(token, keys, values).run(native)
        assert same_bits(whole[:, token : token + 1], y)
    np.testing.assert_array_equal(keys, final_keys)
    np.testing.assert_array_equal(values, final_values)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_a_row_of_cross_attention_alone_and_without_padding_gives_the_same_bits(isa: str) -> None:
    native, lengths = kernels(isa), (70, 5, 33)
    call = Cross.random(lengths, beams=3, tokens=2, shared=2, width=40, padding=9).rounded()
    together = call.run(native)
    for row in range(9):
        alone = call.row(row, lengths[row // 3]).run(native)
        assert same_bits(together[row : row + 1], alone)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("run", [backwards, on_threads])
@pytest.mark.parametrize("tokens", [1, 70])
def test_threads_and_their_order_change_nothing(isa: str, run: ParallelFor, tokens: int) -> None:
    # Large enough that the work is shared out.
    shape = {"tokens": tokens, "kv_heads": 4, "width": 64}
    cached = Cached.random((800, 7, 150, 90), shared=2, **shape).rounded()
    cross = Cross.random((800, 7, 150), beams=2, padding=60, **shape).rounded()
    alone, threaded = cached.run(kernels(isa)), cached.run(kernels(isa, run))
    assert same_bits(alone[0], threaded[0])
    np.testing.assert_array_equal(alone[1:], threaded[1:])
    assert same_bits(cross.run(kernels(isa)), cross.run(kernels(isa, run)))
    x = draw(3, 300, 4 * 64)
    rows = kernels(isa).quantize_states(x, 4)
    np.testing.assert_array_equal(kernels(isa, run).quantize_states(x, 4), rows)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_spoils_the_tokens_that_read_it_and_no_others(
    isa: str, value: float
) -> None:
    native = kernels(isa)
    call = Cached.random((4, 60), tokens=5, width=24).rounded()
    clean, _, _ = call.run(native)
    call.v[0, 3, 1] = value
    call.k[1, 2, 1] = value
    y, keys, values = call.run(native)
    assert same_bits(y[0, :3], clean[0, :3])
    assert same_bits(y[1, :2], clean[1, :2])
    # A head shares one scale, so all of it is lost, and the other head is not.
    assert np.isnan(y[0, 3:, :24]).all()
    assert np.isnan(y[1, 2:, :24]).all()
    assert same_bits(y[..., 24:], clean[..., 24:])
    assert np.isnan(dequantize_states(values)[0, 0, 7]).all()
    assert np.isnan(dequantize_states(keys)[1, 0, 62]).all()

    call = Cached.random((5, 70, 3), shared=2, width=24).rounded()
    clean, _, _ = call.run(native)
    call.q[1, 0, 0] = value
    y, _, _ = call.run(native)
    assert np.isnan(y[1, 0, :24]).all()
    assert same_bits(y[1, :, 24:], clean[1, :, 24:])
    assert same_bits(y[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_rows_of_zeros_and_of_huge_and_tiny_numbers(isa: str) -> None:
    x = draw(1, 5, 8) * np.array([0, 1e-37, 1e-33, 1e-3, 1e30], np.float32)[:, None]
    call = Cross.random((5,), kv_heads=1, width=8)
    call = replace(call, q=call.q * np.float32(1e-30), keys=x[:, None], values=x[:, None]).rounded()
    np.testing.assert_allclose(call.run(kernels(isa)), call.expected(), rtol=1e-4)
    zeros = replace(call, keys=np.zeros_like(call.keys), values=np.zeros_like(call.values))
    assert not zeros.run(kernels(isa)).any()


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_masked_states_weigh_exactly_nothing(isa: str) -> None:
    native = kernels(isa)
    call = Cross.random((40, 40), beams=2, width=24).rounded()
    call.bias[:, 30:] = -1e4
    clean = call.run(native)
    for part in (call.keys, call.values):
        part[:, :, 30:] = -1  # a scale that is not a number, in padding, which is not read
    assert np.isnan(dequantize_states(call.keys)[:, :, 30:]).all()
    assert same_bits(call.run(native), clean)


def test_a_cache_without_room_is_refused_and_left_as_it_was() -> None:
    call = Cached.random((3, 5), tokens=2, spare=0).rounded()
    full = replace(call, lengths=np.array([3, 6], np.int32))
    keys, values = full.keys.copy(), full.values.copy()
    with pytest.raises(NativeLibraryError, match="more tokens than its cache has slots"):
        Kernels().cached_attention(
            *(full.q, full.k, full.v, keys, values, full.lengths), num_heads=2, scale=1.0
        )
    np.testing.assert_array_equal(keys, full.keys)
    np.testing.assert_array_equal(values, full.values)


@pytest.mark.parametrize("kind", [Cached, Cross])
def test_keys_and_values_of_two_types_are_refused(kind: type[Cached] | type[Cross]) -> None:
    call = kind.random((3, 5))
    rounded = call.rounded()
    for keys, values in ((call.keys, rounded.values), (rounded.keys, call.values)):
        with pytest.raises(NativeLibraryError, match="must be float32 or int8, both, got"):
            replace(call, keys=keys, values=values).run(Kernels())
