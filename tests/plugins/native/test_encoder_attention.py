"""Attention of a source's tokens to each other: it is the operator, to the same bits everywhere."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drl.plugins.native import Kernels, NativeLibraryError
from drl.plugins.native.kernels import ParallelFor
from tests.plugins.native.arithmetic import same_bits
from tests.plugins.native.attention_calls import Encoder, draw
from tests.plugins.native.sets import (
    INSTRUCTION_SETS,
    all_kernels,
    backwards,
    kernels,
    needs_library,
    on_threads,
)
from tests.plugins.ops.case import Case
from tests.plugins.ops.cases import encoder_attention_cases

pytestmark = needs_library

CASES = list(encoder_attention_cases())
# Around the lanes of a vector and the columns of a panel.
WIDTHS = (1, 7, 15, 16, 17, 32, 63, 64, 65, 130)
# Around panels of 64 keys, and the 96 queries that pass together.
LENGTHS = (1, 3, 4, 5, 15, 17, 63, 64, 65, 95, 96, 97, 128, 200)
NEAR = {"rtol": 1e-4, "atol": 1e-5}


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_operators_cases(isa: str, case: Case) -> None:
    inputs: dict[str, Any] = dict(case.inputs)
    y = kernels(isa).encoder_attention(**inputs, **case.attributes)
    (expected,) = case.expected().values()
    np.testing.assert_allclose(y, expected, rtol=case.tolerance, atol=case.tolerance)


@given(
    lengths=st.lists(st.sampled_from((0, *LENGTHS)), min_size=1, max_size=3).map(tuple),
    kv_heads=st.integers(1, 3),
    shared=st.integers(1, 3),
    width=st.sampled_from(WIDTHS),
    padding=st.integers(0, 9),
    farthest=st.sampled_from([None, 0, 1, 40, 300]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_it_is_the_operator_on_every_instruction_set(
    lengths: tuple[int, ...], farthest: int | None, **shape: int
) -> None:
    call = Encoder.random(lengths, farthest=farthest, **shape)
    expected = call.expected()
    results = {isa: call.run(native) for isa, native in all_kernels().items()}
    first = next(iter(results.values()))
    for isa, y in results.items():
        np.testing.assert_allclose(y, expected, err_msg=isa, **NEAR)
        assert same_bits(y, first)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("farthest", [None, 20])
def test_a_row_alone_and_without_padding_gives_the_same_bits(
    isa: str, farthest: int | None
) -> None:
    native, lengths = kernels(isa), (130, 5, 64, 97)
    call = Encoder.random(lengths, shared=2, width=40, padding=70, farthest=farthest)
    together = call.run(native)
    for row, length in enumerate(lengths):
        assert same_bits(together[row : row + 1, :length], call.row(row).run(native))
        assert not together[row, length:].any()


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_sources_with_room_for_the_scores_of_few_queries(isa: str) -> None:
    native, lengths = kernels(isa), (1500, 650, 3)
    call = Encoder.random(lengths, kv_heads=1, width=8, farthest=100)
    together = call.run(native)
    np.testing.assert_allclose(together, call.expected(), **NEAR)
    for row, length in enumerate(lengths):
        assert same_bits(together[row : row + 1, :length], call.row(row).run(native))


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("run", [backwards, on_threads])
def test_threads_and_their_order_change_nothing(isa: str, run: ParallelFor) -> None:
    call = Encoder.random((300, 7, 0, 90), kv_heads=4, shared=2, width=64, farthest=30)
    assert same_bits(call.run(kernels(isa)), call.run(kernels(isa, run)))


def test_large_calls_are_shared_out_and_small_ones_are_not() -> None:
    counts: list[int] = []

    def counting(count: int, task: Any) -> None:
        counts.append(count)
        backwards(count, task)

    native = Kernels(parallel_for=counting)
    Encoder.random((9,)).run(native)
    assert counts == []
    Encoder.random((500,), kv_heads=8, width=64).run(native)
    assert len(counts) == 2
    assert min(counts) >= 8


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_query_that_is_not_finite_stays_in_its_token(isa: str, value: float) -> None:
    call = Encoder.random((5, 70), shared=2, width=24, farthest=3)
    clean = call.run(kernels(isa))
    call.q[1, 40, 0] = value  # of the first head
    y = call.run(kernels(isa))
    assert np.isnan(y[1, 40, :24]).all()
    y[1, 40, :24] = clean[1, 40, :24]
    assert same_bits(y, clean)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_keys_and_values_that_are_not_finite_stay_in_their_head(isa: str) -> None:
    call = Encoder.random((20, 70), width=24)
    clean = call.run(kernels(isa))
    call.k[0, 3, 2] = np.nan  # of the first head
    call.v[1, 3, 30] = np.nan  # of the second
    y = call.run(kernels(isa))
    assert np.isnan(y[0, :20, :24]).all()
    assert np.isnan(y[1, :70, 30]).all()
    assert same_bits(y[0, :, 24:], clean[0, :, 24:])
    others = np.delete(np.arange(48), 30)
    assert same_bits(y[1][:, others], clean[1][:, others])


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("scale", [1e3, 1e18])
def test_huge_scores_choose_one_key(isa: str, scale: float) -> None:
    call = Encoder.random((30, 100), shared=2, width=24)
    call = replace(call, q=call.q * np.float32(scale), k=call.k * np.float32(scale))
    np.testing.assert_allclose(call.run(kernels(isa)), call.expected(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_a_key_that_the_bias_hides_weighs_exactly_nothing(isa: str) -> None:
    call = Encoder.random((70,), width=24, farthest=70)
    assert call.bias is not None
    call.bias[:70] = -1e4  # nobody looks back
    clean = call.run(kernels(isa))
    call.v[0, 0, 0] = 1e38  # so that the least weight would show
    y = call.run(kernels(isa))
    assert same_bits(y[:, 1:], clean[:, 1:])


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_no_rows_and_no_tokens_give_nothing(isa: str) -> None:
    native, call = kernels(isa), Encoder.random((5, 2), farthest=1)
    for cut in (slice(0), (slice(None), slice(0))):
        q, k, v = (side[cut] for side in (call.q, call.k, call.v))
        lengths = np.zeros(len(q), np.int32)
        y = native.encoder_attention(q, k, v, lengths, call.bias, num_heads=2, scale=1.0)
        assert y.shape == q.shape


@pytest.mark.parametrize(
    "change",
    [
        {"lengths": np.array([3, -1], np.int32)},
        {"lengths": np.array([6, 3], np.int32)},
        {"heads": 3, "q": draw(2, 5, 48)},
        {"bias": draw(4, 2)},
        {"bias": draw(0, 2)},
    ],
    ids=["a_negative_length", "too_long", "heads", "even_distances", "no_distances"],
)
def test_a_call_that_is_not_possible_is_refused(change: dict[str, Any]) -> None:
    call = replace(Encoder.random((3, 5)), **change)
    with pytest.raises(NativeLibraryError, match="a size is not possible"):
        call.run(Kernels())


def test_arrays_that_do_not_fit_are_refused() -> None:
    call = Encoder.random((3, 5), farthest=2)
    for change, message in (
        ({"k": draw(2, 4, 32)}, r"k must be \(2, 5, 32\), got \(2, 4, 32\)"),
        ({"v": draw(2, 5, 16)}, r"v must be \(2, 5, 32\), got \(2, 5, 16\)"),
        ({"lengths": np.array([3], np.int32)}, r"lengths must be \(2,\), got \(1,\)"),
        ({"bias": draw(5, 3)}, r"bias must be \(5, 2\), got \(5, 3\)"),
        ({"heads": 5}, r"q must be \(2, 5, 30\), got \(2, 5, 32\)"),
    ):
        changes: dict[str, Any] = change
        with pytest.raises(NativeLibraryError, match=message):
            replace(call, **changes).run(Kernels())
