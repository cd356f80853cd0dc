"""Replacement of invalid scores against transformers'."""

import numpy as np
import torch
from transformers import InfNanRemoveLogitsProcessor

from drl.runtime.processors.values import RemoveInvalidValues
from tests.runtime.processors.states import Row, make_state


def test_invalid_values_are_replaced_as_in_transformers() -> None:
    random = np.random.default_rng(0)
    scores = random.normal(size=(9, 40)).astype(np.float32)
    for row, value in ((0, np.nan), (1, np.inf), (2, -np.inf), (3, 3e38)):
        scores[row, ::3] = value
    scores[4, :3] = np.nan, np.inf, -np.inf
    expected = InfNanRemoveLogitsProcessor()(torch.zeros(9, 1), torch.from_numpy(scores)).numpy()
    found = RemoveInvalidValues()(make_state([Row([0])] * 9), scores.copy())
    np.testing.assert_array_equal(found, expected)
    assert np.isfinite(found).all()
