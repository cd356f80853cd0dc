"""Whole numbers from 0 to 99,999,999 in English and Chinese words, and back."""

LARGEST = 99_999_999

_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
ENGLISH_SMALL = _SMALL.split()
ENGLISH_TENS = _TENS.split()
ENGLISH_SCALES = {"thousand": 1_000, "million": 1_000_000}
CHINESE_DIGITS = "零一二三四五六七八九"
CHINESE_UNITS = {"千": 1000, "百": 100, "十": 10}

_ENGLISH_VALUES = {word: value for value, word in enumerate(ENGLISH_SMALL)} | {
    word: 20 + 10 * index for index, word in enumerate(ENGLISH_TENS)
}


def to_english(number: int) -> str:
    """The British English words of a number: 105 -> "one hundred and five".

    Raises ValueError outside 0 … 99,999,999.
    """
    _check(number)
    if number == 0:
        return "zero"
    parts = []
    rest = number
    for scale, size in (("million", 1_000_000), ("thousand", 1_000)):
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{_english_below_thousand(count)} {scale}")
    if rest:
        # British usage joins a last part without hundreds by "and": "one thousand and five".
        joint = "and " if parts and rest < 100 else ""
        parts.append(joint + _english_below_thousand(rest))
    return " ".join(parts)


def to_chinese(number: int) -> str:
    """The Chinese words of a number: 100015 -> "十万零一十五".

    A run of zeros inside the number is read as one 零, zeros that end a group of four digits are
    not read, and only a leading 一十 is shortened to 十. Raises ValueError outside the range.
    """
    _check(number)
    if number == 0:
        return "零"
    high, low = divmod(number, 10_000)
    text = ""
    if high:
        text = _chinese_below_ten_thousand(high) + "万"
        if 0 < low < 1000:
            text += "零"
    if low:
        text += _chinese_below_ten_thousand(low)
    return text[1:] if text.startswith("一十") else text


def from_english(text: str) -> int:
    """The number that `to_english` writes as `text`; raises ValueError for anything else."""
    total = group = 0
    for word in text.replace("-", " ").split():
        if word in _ENGLISH_VALUES:
            group += _ENGLISH_VALUES[word]
        elif word == "hundred":
            group *= 100
        elif word in ENGLISH_SCALES:
            total += group * ENGLISH_SCALES[word]
            group = 0
        elif word != "and":
            raise ValueError(f"{word!r} in {text!r} is not a number word")
    number = total + group
    if number > LARGEST or to_english(number) != text:
        raise ValueError(f"{text!r} is not how a number is written")
    return number


def from_chinese(text: str) -> int:
    """The number that `to_chinese` writes as `text`; raises ValueError for anything else."""
    total = group = digit = 0
    for character in text:
        if character in CHINESE_DIGITS:
            digit = CHINESE_DIGITS.index(character)
        elif character in CHINESE_UNITS:
            group += (digit or 1) * CHINESE_UNITS[character]
            digit = 0
        elif character == "万":
            total = (group + digit) * 10_000
            group = digit = 0
        else:
            raise ValueError(f"{character!r} in {text!r} is not a number word")
    number = total + group + digit
    if number > LARGEST or to_chinese(number) != text:
        raise ValueError(f"{text!r} is not how a number is written")
    return number


def _check(number: int) -> None:
    if not 0 <= number <= LARGEST:
        raise ValueError(f"{number} is outside 0 … {LARGEST}")


def _english_below_hundred(number: int) -> str:
    if number < 20:
        return ENGLISH_SMALL[number]
    tens, ones = divmod(number, 10)
    return ENGLISH_TENS[tens - 2] + (f"-{ENGLISH_SMALL[ones]}" if ones else "")


def _english_below_thousand(number: int) -> str:
    hundreds, rest = divmod(number, 100)
    if not hundreds:
        return _english_below_hundred(rest)
    text = f"{ENGLISH_SMALL[hundreds]} hundred"
    return f"{text} and {_english_below_hundred(rest)}" if rest else text


def _chinese_below_ten_thousand(number: int) -> str:
    text = ""
    zero_pending = False
    for unit, size in (*CHINESE_UNITS.items(), ("", 1)):
        digit = number // size % 10
        if digit:
            text += ("零" if zero_pending else "") + CHINESE_DIGITS[digit] + unit
            zero_pending = False
        elif text:
            zero_pending = True
    return text
