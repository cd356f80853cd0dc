"""Every option by itself does what it does in transformers, greedily and with beams."""

import pytest

from tests.generation.comparison import Tally, run
from tests.generation.families import FAMILIES
from tests.generation.habits import Habits, habits
from tests.generation.options import (
    BEAMS,
    NEUTRAL,
    Options,
    alone,
    case,
    of_beams,
    of_greedy_search,
)
from tests.generation.subjects import Subject, Subjects

SEARCHES = pytest.mark.parametrize("search", [{}, BEAMS], ids=["greedy", "beams"])


def every(subject: Subject, usual: Habits, search: Options) -> list[Options]:
    """Every option that the search knows, at its values."""
    own = of_beams() if search else of_greedy_search(subject, usual)
    return [*alone(subject, usual), *own]


@pytest.mark.slow
@SEARCHES
def test_each_option(subject: Subject, search: Options) -> None:
    tally = Tally()
    for number, options in enumerate(every(subject, habits(subject), search)):
        tally.compare(subject, case(subject, number, search | options))
    tally.check()


@SEARCHES
def test_each_option_changes_something(subjects: Subjects, search: Options) -> None:
    made = [subjects[name] for name in FAMILIES]
    given = [every(subject, habits(subject), search) for subject in made]

    def tokens(subject: Subject, number: int, options: Options) -> list[list[int]]:
        return [each.tokens for each in run(subject, case(subject, number, search | options))]

    for number, options in enumerate(zip(*given, strict=True)):
        changed = any(
            tokens(subject, source, one) != tokens(subject, source, {})
            for subject, one in zip(made, options, strict=True)
            for source in range(len(subject.sources))
        )
        assert changed != (options[0] in NEUTRAL), (number, options[0])
