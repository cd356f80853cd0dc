"""Panels: where every weight lies, and that matrices come out of them as they went in."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drl.plugins.ops.panels import PANEL, pack_panels, panel_shape, unpack_panels
from tests.plugins.ops.case import Maker

SIZES = [(1, 1, 1), (2, 63, 5), (1, 64, 3), (3, 65, 7), (2, 130, 2)]  # M, N, K

sizes = pytest.mark.parametrize("size", SIZES, ids=str)


@sizes
def test_every_weight_lies_where_the_layout_says(size: tuple[int, int, int]) -> None:
    weights = Maker(str(size), "fp32").f32(*size)
    panels = pack_panels(weights)
    for matrix, column, k in np.ndindex(size):
        assert panels[matrix, column // 64, k, column % 64] == weights[matrix, column, k]


@sizes
def test_what_is_beyond_the_last_column_is_zero(size: tuple[int, int, int]) -> None:
    panels = pack_panels(np.ones(size, np.float32))
    assert panels.sum() == np.prod(size)
    assert (panels[:, -1, :, : (size[1] - 1) % PANEL + 1] == 1).all()


@sizes
def test_the_shape_is_known_without_weights(size: tuple[int, int, int]) -> None:
    panels = pack_panels(np.ones(size, np.float32))
    assert panels.shape == panel_shape(*size)
    assert panels.dtype == np.float32
    assert panels.flags.c_contiguous


def test_the_shape_counts_whole_panels() -> None:
    assert panel_shape(1, 64, 3) == (1, 1, 3, 64)
    assert panel_shape(2, 65, 5) == (2, 2, 5, 64)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 3), st.integers(1, 200), st.integers(1, 20))
def test_matrices_come_out_as_they_went_in(matrices: int, columns: int, depth: int) -> None:
    weights = Maker("round_trip", "fp32").f32(matrices, columns, depth)
    np.testing.assert_array_equal(unpack_panels(pack_panels(weights), columns), weights)


def test_matrices_may_be_views() -> None:
    weights = Maker("view", "fp32").f32(2, 5, 70)
    np.testing.assert_array_equal(
        pack_panels(weights.swapaxes(1, 2)), pack_panels(weights.swapaxes(1, 2).copy())
    )
