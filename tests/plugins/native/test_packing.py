"""Packed weights as the library sees them: their sizes, their rows, and what it refuses."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drl.plugins.native import Kernels, NativeLibraryError
from drl.plugins.native.abi import function
from drl.plugins.native.kernels import FORMATS as VALUES_OF_FORMATS
from drl.plugins.native.library import load
from drl.plugins.ops.packing import Format, packed_shapes, unpack
from tests.plugins.native.arithmetic import same_bits
from tests.plugins.native.sets import backwards, needs_library, on_threads
from tests.plugins.native.weights import FORMATS, draw, filled

pytestmark = needs_library


def sizes(format: int, *shape: int) -> list[int]:
    """Bytes of values, multipliers and scales, as the library has them."""
    names = [f"drl_{part}_bytes" for part in ("values", "multipliers", "scales")]
    return [function(load(), name)(format, *shape) for name in names]


@settings(max_examples=100, deadline=None)
@given(
    format=st.sampled_from(FORMATS),
    matrices=st.integers(1, 5),
    columns=st.integers(1, 200),
    depth=st.integers(1, 200),
)
def test_the_library_and_python_agree_on_sizes(
    format: Format, matrices: int, columns: int, depth: int
) -> None:
    shapes = packed_shapes(format, matrices, columns, depth)
    multipliers = 0 if shapes.multipliers is None else np.prod(shapes.multipliers)
    expected = [np.prod(shapes.values), multipliers, 4 * np.prod(shapes.scales)]
    assert sizes(VALUES_OF_FORMATS[format], matrices, columns, depth) == expected


@pytest.mark.parametrize("shape", [(0, 1, 1), (1, 0, 1), (1, 1, 0), (1, 1, 131073), (1, 2**63, 1)])
@pytest.mark.parametrize("format", [0, 1, 2])
def test_impossible_shapes_have_no_size(format: int, shape: tuple[int, ...]) -> None:
    assert sizes(format, *shape) == [0, 0, 0]


def test_an_unknown_format_has_no_size() -> None:
    assert sizes(3, 1, 1, 1) == [0, 0, 0]
    assert sizes(-1, 1, 1, 1) == [0, 0, 0]


@pytest.mark.parametrize("format", ["int8", "int8-block"])
@pytest.mark.parametrize(("columns", "depth"), [(1, 1), (31, 5), (70, 64), (100, 130)])
def test_gathered_rows_are_those_of_the_unpacked_weights(
    format: Format, columns: int, depth: int
) -> None:
    weights = filled(format, 1, columns, depth)
    ids = np.random.default_rng(0).integers(0, columns, (3, 40))
    for run in (None, backwards, on_threads):
        found = Kernels(parallel_for=run).gather_rows(ids, weights)
        assert same_bits(found, unpack(weights)[0][ids])
    assert Kernels().gather_rows(ids[:0], weights).shape == (0, 40, depth)


@pytest.mark.parametrize("token", [-1, 40, 63, 2**62, -(2**63)])
def test_a_row_that_does_not_exist_is_refused(token: int) -> None:
    with pytest.raises(NativeLibraryError, match=r"row's id is outside of"):
        Kernels().gather_rows(np.array([3, token]), filled("int8", 1, 40, 9))


def test_rows_of_int4_or_of_several_matrices_are_refused() -> None:
    for weights in (filled("int4", 1, 40, 9), filled("int8", 2, 40, 9)):
        with pytest.raises(NativeLibraryError, match="shapes or formats of the packed"):
            Kernels().gather_rows(np.array([3]), weights)


def test_scales_at_an_odd_address_are_refused() -> None:
    weights = filled("int8", 1, 40, 9)
    memory = np.zeros(weights.scales.nbytes + 1, np.uint8)[1:].view(np.float32)
    odd = dataclasses.replace(weights, scales=memory.reshape(weights.scales.shape))
    with pytest.raises(NativeLibraryError, match="not aligned"):
        Kernels().linear(draw(2, 9), odd)


def test_a_depth_that_sums_could_overflow_is_refused() -> None:
    weights = dataclasses.replace(filled("int8", 1, 1, 4), depth=131073)
    with pytest.raises(NativeLibraryError, match="a size is not possible"):
        Kernels().linear(draw(1, 131073), weights)
