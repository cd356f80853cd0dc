"""Array libraries: NumPy's and CuPy's do the same."""

import numpy as np
import pytest

from drl.runtime.backends import ArrayLibrary, CrossAttention, Encoding
from drl.runtime.backends.cuda import CudaDevice
from drl.runtime.backends.memory import HOST
from tests.runtime.backends.fake_cupy import FakeArray, FakeCupy


@pytest.fixture(params=["numpy", "cupy"])
def arrays(request: pytest.FixtureRequest) -> ArrayLibrary:
    return HOST if request.param == "numpy" else CudaDevice(FakeCupy(), 0).arrays


def test_new_arrays(arrays: ArrayLibrary) -> None:
    with arrays.ordered():
        zeros = arrays.zeros((2, 3), np.float16, "a test")
        full = arrays.full((2,), -1e4, np.float32, "a test")
    assert (zeros.shape, zeros.dtype, zeros.nbytes) == ((2, 3), np.float16, 12)
    assert arrays.to_host(zeros).tolist() == [[0, 0, 0]] * 2
    assert arrays.to_host(full).tolist() == [-1e4] * 2


@pytest.mark.parametrize("rows", [[2, 0], [1], [0, 0, 2, 2]])
def test_gathering_copies_entries_in_order(arrays: ArrayLibrary, rows: list[int]) -> None:
    values = np.arange(24, dtype=np.float32).reshape(3, 4, 2)
    with arrays.ordered():
        array = arrays.from_host(values.copy(), "a test")
        gathered = arrays.gather(array[:, :3], rows)
        array[:] = 0.0
    assert gathered.flags.c_contiguous  # type: ignore[attr-defined]
    np.testing.assert_array_equal(arrays.to_host(gathered), values[rows, :3])


def test_nothing_can_be_gathered(arrays: ArrayLibrary) -> None:
    with arrays.ordered():
        empty = arrays.zeros((3, 2, 0, 4), np.float32, "a test")
        assert arrays.gather(empty, [2, 1]).shape == (2, 2, 0, 4)


def test_some_rows_of_an_encoding_lose_the_padding_of_the_others(arrays: ArrayLibrary) -> None:
    states = np.random.default_rng(0).normal(size=(3, 5, 2)).astype(np.float32)
    lengths = np.array([5, 3, 2], np.int32)
    with arrays.ordered():
        encoding = Encoding(
            arrays.from_host(states, "a test"),
            lengths,
            arrays.from_host(states[..., 0].copy(), "a test"),
            np.arange(6, dtype=np.float32).reshape(3, 2),
            {1: np.zeros((3, 5, 2), np.int32)},
            arrays,
        )
    assert encoding.take([0, 1, 2]) is encoding
    taken = encoding.take([2, 1])
    assert taken.arrays is arrays
    assert taken.lengths.tolist() == [2, 3]
    np.testing.assert_array_equal(arrays.to_host(taken.states), states[[2, 1], :3])
    assert taken.saliency is not None
    np.testing.assert_array_equal(arrays.to_host(taken.saliency), states[[2, 1], :3, 0])
    assert taken.path_logits is not None
    assert taken.path_logits.tolist() == [[4, 5], [2, 3]]
    assert taken.experts[1].shape == (2, 3, 2)


def test_sources_are_taken_several_times(arrays: ArrayLibrary) -> None:
    values = np.random.default_rng(0).normal(size=(2, 1, 3, 4)).astype(np.float32)
    with arrays.ordered():
        block = arrays.from_host(values, "a test")
        nothing = arrays.zeros((2, 1, 0, 4), np.float32, "a test")
        bias = arrays.from_host(values[:, 0, :, 0].copy(), "a test")
    cross = CrossAttention(bias, np.array([3, 2], np.int32), (block, nothing), (block,), arrays)
    taken = cross.take([1, 0, 1])
    assert taken.lengths.tolist() == [2, 3, 2]
    np.testing.assert_array_equal(arrays.to_host(taken.keys[0]), values[[1, 0, 1]])
    np.testing.assert_array_equal(arrays.to_host(taken.bias), values[[1, 0, 1], 0, :, 0])
    assert taken.keys[1].shape == (3, 1, 0, 4)


def test_the_fake_of_a_device_notices_what_cupy_would_refuse() -> None:
    cupy = FakeCupy()
    arrays = CudaDevice(cupy, 0).arrays
    array = arrays.zeros((3,), np.float32, "a test")
    assert isinstance(array, FakeArray)
    with arrays.ordered():
        for attempt in (
            lambda: np.asarray(array),
            lambda: float(array[0]),
            lambda: bool(array[0] >= 0.0),
            lambda: array[[0, 1]],
            lambda: array[np.array([0])],
            lambda: array.__setitem__(0, np.zeros(1)),
            lambda: array + np.zeros(3),
            lambda: np.zeros(3) + array,
            lambda: list(array),
        ):
            with pytest.raises(TypeError):
                attempt()
