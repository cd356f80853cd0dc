"""Which choices of experts are clear, and what differs."""

import numpy as np
import pytest
import torch

from drl.export.model import Route
from drl.export.parity import RouteParity
from drl.export.routes import LayerRoutes, RouteTally, lead_over


def route(layer: str, chosen: list[list[int]], leads: list[list[float]]) -> Route:
    """Routes `[B, T]` of one expert each, of four; `leads` over the next best."""
    ids = torch.tensor(chosen, dtype=torch.int32)[..., None]
    probabilities = torch.full((*ids.shape[:2], 4), 0.1)
    lead = torch.tensor(leads)[..., None]
    probabilities.scatter_(-1, ids.clamp(min=0).long(), 0.1 + lead)
    return Route(layer, ids, torch.ones(ids.shape), probabilities, ids[..., 0] >= 0)


def experts(chosen: list[list[int]]) -> np.ndarray:
    return np.array(chosen, np.int32)[..., None]


def test_clear_choices_are_told_from_near_ties_and_rows_that_differ_leave() -> None:
    rows = np.ones(3, bool)
    tally = RouteTally()
    one = route("decoder.layers.1", [[0, 1], [2, 3], [1, -1]], [[0.5, 0.5], [5e-4, 0.5], [0.2, 0]])
    tally.add([one], {1: experts([[0, 1], [3, 3], [1, 0]])}, rows)
    assert rows.tolist() == [True, False, True]
    (found,) = tally.layers()
    assert found == LayerRoutes("decoder.layers.1", 4, 0, 1, 1, pytest.approx(5e-4, abs=1e-6))
    two = route("decoder.layers.3", [[0, 1], [2, 3], [1, -1]], [[0.5, 0.3], [0.5, 0.5], [0.2, 0]])
    tally.add([two], {3: experts([[0, 2], [0, 0], [1, -1]])}, rows)
    assert tally.layers()[1] == LayerRoutes("decoder.layers.3", 3, 1, 0, 0, pytest.approx(0.3))
    assert rows.tolist() == [False, False, True]


def test_counts_of_layers_add_up() -> None:
    tally = RouteTally()
    for layer, lead, actual in ((1, 0.5, 0), (3, 0.5, 1), (5, 5e-4, 1), (7, 5e-4, 0)):
        chosen = route(f"decoder.layers.{layer}", [[0]], [[lead]])
        tally.add([chosen], {layer: experts([[actual]])})
    assert RouteParity.of(tally.layers()) == RouteParity(compared=2, wrong=1, near_ties=2, flips=1)
    assert RouteParity.of(()) == RouteParity()


def test_without_rows_every_layer_counts_for_itself() -> None:
    tally = RouteTally()
    wrong = {1: experts([[1]]), 3: experts([[1]])}
    for layer in (1, 3):
        tally.add([route(f"decoder.layers.{layer}", [[0]], [[0.5]])], wrong)
    assert [found.wrong for found in tally.layers()] == [1, 1]


def test_after_a_difference_a_full_expert_says_nothing_of_the_rest_of_a_row() -> None:
    """An expert that is full for a later token may be so because of the one that flipped."""
    chosen = route("encoder.layers.1", [[0, 0, 0, 1]], [[5e-4, 0.5, 0.5, 0.5]])
    actual = {1: experts([[1, 0, -1, 2]])}
    tally = RouteTally(capacity=2)
    tally.add([chosen], actual)
    assert tally.layers()[0].flips == 1
    assert tally.layers()[0].wrong == 0
    without = RouteTally()
    without.add([chosen], actual)
    assert without.layers()[0].wrong == 2


def test_another_expert_than_the_next_best_is_no_near_tie() -> None:
    probabilities = torch.tensor([[[0.4, 0.3, 0.2995, 0.0005]] * 4])
    ids = torch.tensor([[[0, 1]] * 4], dtype=torch.int32)
    gates, mask = torch.ones(ids.shape), torch.ones(ids.shape[:2], dtype=torch.bool)
    chosen = Route("decoder.layers.1", ids, gates, probabilities, mask)
    actual = np.array([[[2, 0], [0, 3], [0, -1], [1, 0]]], np.int32)
    tally = RouteTally()
    tally.add([chosen], {1: actual})
    (found,) = tally.layers()
    assert (found.clear, found.wrong, found.near_ties, found.flips) == (1, 1, 3, 2)
    assert found.widest == pytest.approx(0.2995)
    impossible = np.array([[[0, 0], [0, 4], [2, 0], [0, 2]]], np.int32)
    lead = lead_over(chosen, impossible)
    assert np.isinf(lead).tolist() == [[True, True, False, False]]
