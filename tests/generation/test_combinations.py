"""Options drawn at random do together what they do in transformers."""

import pytest

from tests.generation.comparison import Tally
from tests.generation.habits import habits
from tests.generation.options import case, combination
from tests.generation.subjects import Subject

COMBINATIONS = 12


@pytest.mark.slow
def test_random_combinations(subject: Subject) -> None:
    tally = Tally()
    usual = habits(subject)
    for seed in range(COMBINATIONS):
        tally.compare(subject, case(subject, seed // 2, combination(subject, usual, seed)))
    tally.check()
