"""Every option by itself does what it does in transformers, greedily and with beams."""

from collections.abc import Sequence

import pytest

from tests.generation.comparison import Case, Tally, run
from tests.generation.habits import habits
from tests.generation.options import BEAMS, Options, alone, case, of_beams, of_greedy_search
from tests.generation.subjects import Subject


@pytest.mark.slow
def test_each_option_of_greedy_search(subject: Subject) -> None:
    usual = habits(subject)
    _compare(subject, [*alone(subject, usual), *of_greedy_search(subject, usual)], {})


@pytest.mark.slow
def test_each_option_with_beams(subject: Subject) -> None:
    _compare(subject, [*alone(subject, habits(subject)), *of_beams()], BEAMS)


def _compare(subject: Subject, every: Sequence[Options], search: Options) -> None:
    tally = Tally()
    changed = 0
    for number, options in enumerate(every):
        one = case(subject, number, search | options)
        made = tally.compare(subject, one)
        plain = run(subject, Case(one.source, search))
        changed += [each.tokens for each in made] != [each.tokens for each in plain]
    tally.check()
    # an option that changes nothing tells nothing: most must be felt
    assert changed > len(every) / 2, f"{changed} of {len(every)} options change anything"
