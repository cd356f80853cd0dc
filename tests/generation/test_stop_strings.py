"""Stop strings end texts where they end them in transformers."""

import pytest

from tests.generation.comparison import Case, Tally
from tests.generation.options import BEAMS, Options
from tests.generation.subjects import PATHS, Subjects

STOPS = [
    [" and"],
    [" th"],  # the beginning of a token
    ["ve"],  # in the middle of some
    ["0", "十"],
    ["百零"],  # of two tokens
    ["红", "never said"],
    ["abab", "rl", "eight hun"],
]


@pytest.mark.parametrize("search", [{}, BEAMS], ids=["greedy", "beams"])
@pytest.mark.parametrize("path", PATHS)
def test_stop_strings(subjects: Subjects, path: str, search: Options) -> None:
    subject = subjects[f"numbers-{path}"]
    tally = Tally()
    stopped = 0
    for number, stops in enumerate(STOPS):
        for source in subject.sources[number % 2 :: 2]:
            made = tally.compare(subject, Case(source, search | {"stop_strings": stops}))
            stopped += sum(each.finish_reason == "stop" for each in made)
            assert not any(stop in each.text for stop in stops for each in made)
    tally.check()
    assert stopped >= 5


@pytest.mark.parametrize("search", [{}, BEAMS], ids=["greedy", "beams"])
def test_stop_strings_behind_and_across_a_prefix(subjects: Subjects, search: Options) -> None:
    subject = subjects["numbers-full"]
    tally = Tally()
    for prompt, prefix in (
        ("translate to Chinese: one hundred and five", "一百"),
        ("repeat ab three times", "aba"),
        ("翻译成英文：一百零五", "one hundred"),
    ):
        source = subject.tokenizer(prompt)["input_ids"]
        given = subject.tokenizer(prefix, add_special_tokens=False)["input_ids"]
        for stops in (["百"], ["百零", "bab"], ["零", " hundred and"], ["hundred"], ["ab", "and"]):
            tally.compare(subject, Case(source, search | {"stop_strings": stops}, given))
    tally.check()
