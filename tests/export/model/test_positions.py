import math

import pytest
import torch

from drl.export.model.positions import (
    RelativePositionBias,
    relative_bucket,
    rotary_angles,
    rotate,
)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_buckets_hold_one_distance_each_and_then_grow(bidirectional: bool) -> None:
    exact = 8 if bidirectional else 16
    relative = -torch.arange(200)
    bucket = relative_bucket(
        relative, bidirectional=bidirectional, buckets=32, max_distance=128
    ).tolist()
    assert bucket[:exact] == list(range(exact))
    assert bucket == sorted(bucket)
    assert set(bucket[128:]) == {exact * 2 - 1}


def test_keys_after_the_query_have_buckets_of_their_own_only_if_bidirectional() -> None:
    ahead = torch.arange(1, 200)
    both = relative_bucket(ahead, bidirectional=True, buckets=32, max_distance=128)
    assert both.min() == 17
    assert both.max() == 31
    causal = relative_bucket(ahead, bidirectional=False, buckets=32, max_distance=128)
    assert (causal == 0).all()


@pytest.mark.parametrize("bidirectional", [True, False])
def test_the_bias_by_distance_equals_the_bias_by_bucket(bidirectional: bool) -> None:
    bias = RelativePositionBias(3, buckets=8, max_distance=20, bidirectional=bidirectional)
    torch.nn.init.normal_(bias.weight)
    positions = torch.tensor([[0, 1, 30], [50, 51, 52]])
    actual = bias(positions, 60)
    relative = torch.arange(60) - positions[..., None]
    bucket = relative_bucket(relative, bidirectional=bidirectional, buckets=8, max_distance=20)
    torch.testing.assert_close(actual, bias.weight[bucket].permute(0, 3, 1, 2))


def test_rotary_scores_depend_on_relative_positions_only() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)

    def score(q: int, k: int) -> float:
        a = rotate(query, *rotary_angles(torch.tensor([[q]]), 16, 10_000.0))
        b = rotate(key, *rotary_angles(torch.tensor([[k]]), 16, 10_000.0))
        return float((a * b).sum())

    assert math.isclose(score(7, 3), score(1007, 1003), rel_tol=1e-4)
    assert not math.isclose(score(7, 3), score(7, 30), rel_tol=1e-2)
