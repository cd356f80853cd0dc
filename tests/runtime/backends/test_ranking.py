"""Ranking where the logits are: an exact order, of functions that NumPy and CuPy both have."""

from typing import Any

import numpy as np
import pytest

from drl.runtime.backends import ranking
from drl.runtime.backends.cuda import CudaDevice
from drl.runtime.backends.ranking import rank_on
from tests.runtime.backends.fake_cupy import FakeCupy

SIZES = [(1, 1), (7, 1), (7, 7), (500, 1), (500, 3), (500, 500), (5000, 2), (5000, 38), (5000, 40)]


def hard_logits(vocab_size: int) -> np.ndarray:
    """`[4, 2, V]` with many ties, infinities, both zeros and NaN."""
    random = np.random.default_rng(vocab_size)
    logits = np.round(random.normal(size=(4, 2, vocab_size)), 1).astype(np.float32)
    logits[0, 0, : vocab_size // 2] = np.nan
    logits[0, 1] = np.nan
    logits[1, 0, ::2] = -np.inf
    logits[1, 1] = -np.inf
    logits[1, 1, :3] = np.nan
    logits[2, 0, ::3] = np.where(np.arange(len(logits[2, 0, ::3])) % 2, -0.0, 0.0)
    logits[2, 1] = -0.0
    logits[3, 0, vocab_size // 2] = np.inf
    logits[3, 1] = -logits[3, 0]
    return logits


def in_order(logits: np.ndarray, count: int) -> np.ndarray:
    """The largest first, equal ones by token id, NaN last."""
    missing = np.isnan(logits)
    return np.lexsort((np.where(missing, 0, -logits), missing), axis=-1)[..., :count]


@pytest.mark.parametrize(("vocab_size", "count"), SIZES)
def test_the_order_is_exact(vocab_size: int, count: int) -> None:
    logits = hard_logits(vocab_size)
    values, ids = rank_on(np, logits, count)
    expected = in_order(logits, count)
    assert (values.dtype, ids.dtype) == (np.float32, np.int32)
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_array_equal(values, np.take_along_axis(logits, expected, -1))


@pytest.mark.parametrize(("vocab_size", "count"), SIZES)
def test_a_device_gives_the_same(vocab_size: int, count: int) -> None:
    logits = hard_logits(vocab_size)
    device = CudaDevice(FakeCupy(), 0)
    with device.arrays.ordered():
        found = device.rank(device.arrays.from_host(logits, "logits"), count)
        values, ids = (device.arrays.to_host(each) for each in found)
    expected = in_order(logits, count)
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_array_equal(values, np.take_along_axis(logits, expected, -1))


def test_many_rows_are_ranked_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = hard_logits(500)
    monkeypatch.setattr(ranking, "_MOST_KEYS", 1200)
    _, ids = rank_on(np, logits, 9)
    np.testing.assert_array_equal(ids, in_order(logits, 9))


@pytest.mark.parametrize("count", [1, 2, 400])
def test_cupy_has_every_function_that_is_called(count: int) -> None:
    cupy = pytest.importorskip("cupy")
    called = set()

    class Recording:
        def __getattr__(self, name: str) -> Any:
            called.add(name)
            return getattr(np, name)

    rank_on(Recording(), hard_logits(5000), count)
    assert called
    assert [name for name in called if not hasattr(cupy, name)] == []
