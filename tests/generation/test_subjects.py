"""What is searched here is worth searching: texts differ, and end where they like."""

from tests.generation.comparison import Case, run
from tests.generation.options import BEAMS
from tests.generation.subjects import Subject


def test_searches_vary_and_end_at_different_steps(subject: Subject) -> None:
    beams = [made for source in subject.sources for made in run(subject, Case(source, BEAMS))]
    greedy = [made for source in subject.sources for made in run(subject, Case(source, {}))]
    assert len({tuple(made.tokens) for made in beams}) > len(beams) / 2
    assert len({len(made.tokens) for made in beams}) >= 5
    assert len({len(made.tokens) for made in greedy}) >= 3
    assert len({token for made in beams for token in made.tokens}) >= 12
    assert {made.finish_reason for made in beams} == {"eos", "length"}


def test_the_best_beam_is_often_none_that_greedy_search_finds(subject: Subject) -> None:
    found = [
        run(subject, Case(source, options))[0].tokens
        for options in ({}, BEAMS)
        for source in subject.sources
    ]
    count = len(subject.sources)
    differ = sum(one != other for one, other in zip(found[:count], found[count:], strict=True))
    assert differ >= 2 or subject.name.startswith("numbers")
