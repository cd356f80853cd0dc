import random

import pytest

from examples.numbers.language import (
    LARGEST,
    from_chinese,
    from_english,
    to_chinese,
    to_english,
)

WRITTEN_BY_HAND = [
    (0, "zero", "零"),
    (7, "seven", "七"),
    (10, "ten", "十"),
    (15, "fifteen", "十五"),
    (20, "twenty", "二十"),
    (21, "twenty-one", "二十一"),
    (100, "one hundred", "一百"),
    (105, "one hundred and five", "一百零五"),
    (110, "one hundred and ten", "一百一十"),
    (115, "one hundred and fifteen", "一百一十五"),
    (999, "nine hundred and ninety-nine", "九百九十九"),
    (1000, "one thousand", "一千"),
    (1005, "one thousand and five", "一千零五"),
    (1010, "one thousand and ten", "一千零一十"),
    (1100, "one thousand one hundred", "一千一百"),
    (1205, "one thousand two hundred and five", "一千二百零五"),
    (10_000, "ten thousand", "一万"),
    (10_005, "ten thousand and five", "一万零五"),
    (10_015, "ten thousand and fifteen", "一万零一十五"),
    (10_500, "ten thousand five hundred", "一万零五百"),
    (15_000, "fifteen thousand", "一万五千"),
    (100_000, "one hundred thousand", "十万"),
    (100_015, "one hundred thousand and fifteen", "十万零一十五"),
    (105_000, "one hundred and five thousand", "十万五千"),
    (150_000, "one hundred and fifty thousand", "十五万"),
    (200_205, "two hundred thousand two hundred and five", "二十万零二百零五"),
    (1_000_000, "one million", "一百万"),
    (1_000_005, "one million and five", "一百万零五"),
    (1_100_000, "one million one hundred thousand", "一百一十万"),
    (1_150_000, "one million one hundred and fifty thousand", "一百一十五万"),
    (10_000_000, "ten million", "一千万"),
    (10_100_100, "ten million one hundred thousand one hundred", "一千零一十万零一百"),
    (20_030_004, "twenty million thirty thousand and four", "二千零三万零四"),
    (
        99_999_999,
        "ninety-nine million nine hundred and ninety-nine thousand nine hundred and ninety-nine",
        "九千九百九十九万九千九百九十九",
    ),
]


@pytest.mark.parametrize(("number", "english", "chinese"), WRITTEN_BY_HAND)
def test_numbers_written_by_hand(number: int, english: str, chinese: str) -> None:
    assert to_english(number) == english
    assert to_chinese(number) == chinese
    assert from_english(english) == number
    assert from_chinese(chinese) == number


def test_every_small_number_comes_back() -> None:
    for number in range(20_000):
        assert from_english(to_english(number)) == number
        assert from_chinese(to_chinese(number)) == number


def test_numbers_of_every_length_and_zero_pattern_come_back() -> None:
    rng = random.Random(1)
    for _ in range(20_000):
        digits = rng.choices("0123456789", (5, *[1] * 9), k=rng.randint(1, 8))
        number = int("".join(digits))
        assert from_english(to_english(number)) == number
        assert from_chinese(to_chinese(number)) == number


def test_different_numbers_have_different_words() -> None:
    numbers = [*range(12_000), *range(99_990_000, LARGEST + 1), *range(0, LARGEST, 9_973)]
    distinct = len(set(numbers))
    assert len({to_english(number) for number in numbers}) == distinct
    assert len({to_chinese(number) for number in numbers}) == distinct


@pytest.mark.parametrize("number", [-1, LARGEST + 1])
def test_numbers_outside_the_range_are_refused(number: int) -> None:
    with pytest.raises(ValueError, match="outside"):
        to_english(number)
    with pytest.raises(ValueError, match="outside"):
        to_chinese(number)


@pytest.mark.parametrize("text", ["", "one hundred five", "five and", "ten million million", "x"])
def test_what_is_not_english_for_a_number_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="number"):
        from_english(text)


@pytest.mark.parametrize("text", ["", "一百五", "一十五", "十万零五千", "五万万", "x"])
def test_what_is_not_chinese_for_a_number_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="number"):
        from_chinese(text)
