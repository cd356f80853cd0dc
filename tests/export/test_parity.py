import pytest
import torch

from drl.export.parity import absolute_difference, relative_difference


def test_differences_beyond_a_magnitude_of_one_are_relative_and_the_absolute_is_kept() -> None:
    expected, actual = torch.tensor([100.0, 0.5]), torch.tensor([101.0, 0.5])
    assert relative_difference(expected, actual) == pytest.approx(0.01)
    assert absolute_difference(expected, actual) == pytest.approx(1.0)
    assert relative_difference(expected / 200, actual / 200) == pytest.approx(0.005)


def test_nan_is_infinitely_far() -> None:
    for difference in (absolute_difference, relative_difference):
        one, two = torch.ones(2), torch.tensor([1.0, float("nan")])
        for pair in ((one, two), (two, one), (two, two)):
            assert difference(*pair) == float("inf")
