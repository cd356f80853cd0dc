"""The tasks of the model: prompts with their answers, and which prompts are held out of training.

`sample` draws one random example of a task. Magnitudes are drawn first and digits afterwards, so
that short numbers, round numbers and every pattern of zeros are common.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b

from examples.numbers.language import to_chinese, to_english

HELD_OUT_PERCENT = 10
REPEAT_WORDS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
LONGEST_PATTERN = 4
LARGEST_OPERAND = 999
LARGEST_FACTOR = 12

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_OPERATIONS: dict[str, tuple[str, str, Callable[[int, int], int]]] = {
    "+": ("plus", "加", lambda a, b: a + b),
    "-": ("minus", "减", lambda a, b: a - b),
    "*": ("times", "乘", lambda a, b: a * b),
}


@dataclass(frozen=True)
class Example:
    """One prompt, the one right answer and the name of its task."""

    task: str
    prompt: str
    answer: str


def is_held_out(prompt: str) -> bool:
    """Whether a prompt belongs to the tenth that training never sees (a hash of its text)."""
    digest = blake2b(prompt.encode(), digest_size=8).digest()
    return int.from_bytes(digest) % 100 < HELD_OUT_PERCENT


def english_to_chinese(number: int) -> Example:
    """`translate to Chinese: one hundred and five` -> `一百零五`."""
    prompt = f"translate to Chinese: {to_english(number)}"
    return Example("english_to_chinese", prompt, to_chinese(number))


def chinese_to_english(number: int) -> Example:
    """`翻译成英文：一百零五` -> `one hundred and five`."""
    return Example("chinese_to_english", f"翻译成英文：{to_chinese(number)}", to_english(number))


def arithmetic(left: int, operation: str, right: int, chinese: bool) -> Example:
    """`what is 12 plus 30?` or `12加30等于多少？` -> `42`; `operation` is one of `+ - *`."""
    english_word, chinese_word, apply = _OPERATIONS[operation]
    if chinese:
        prompt = f"{left}{chinese_word}{right}等于多少？"
    else:
        prompt = f"what is {left} {english_word} {right}?"
    return Example("arithmetic", prompt, str(apply(left, right)))


def repeat(pattern: str, count_word: str) -> Example:
    """`repeat ab three times` -> `ababab`."""
    answer = pattern * REPEAT_WORDS[count_word]
    return Example("repeat", f"repeat {pattern} {count_word} times", answer)


def sample_number(rng: random.Random) -> int:
    """A number to translate: length first, then digits, a third of them zero."""
    length = rng.choices(range(1, 9), (4, 8, 11, 13, 15, 16, 16, 17))[0]
    zero_share = rng.choice((0.0, 0.1, 0.3, 0.5, 0.7))
    number = rng.randrange(0 if length == 1 else 1, 10)
    for _ in range(length - 1):
        number = number * 10 + (0 if rng.random() < zero_share else rng.randrange(10))
    return number


def _sample_operand(rng: random.Random) -> int:
    length = rng.choices((1, 2, 3), (1, 3, 6))[0]
    return rng.randrange(10**length)


def sample_translation_to_chinese(rng: random.Random) -> Example:
    """A random `english_to_chinese`."""
    return english_to_chinese(sample_number(rng))


def sample_translation_to_english(rng: random.Random) -> Example:
    """A random `chinese_to_english`."""
    return chinese_to_english(sample_number(rng))


def sample_arithmetic(rng: random.Random) -> Example:
    """A random `arithmetic`: sums and differences of up to three digits, products to 12 x 12."""
    operation = rng.choices("+-*", (44, 44, 12))[0]
    chinese = rng.random() < 0.5
    if operation == "*":
        left, right = rng.randint(0, LARGEST_FACTOR), rng.randint(0, LARGEST_FACTOR)
    else:
        left, right = _sample_operand(rng), _sample_operand(rng)
    return arithmetic(left, operation, right, chinese)


def sample_repeat(rng: random.Random) -> Example:
    """A random `repeat` of one to four letters."""
    length = rng.choices(range(1, LONGEST_PATTERN + 1), (2, 4, 5, 5))[0]
    pattern = "".join(rng.choices(_LETTERS, k=length))
    return repeat(pattern, rng.choice(list(REPEAT_WORDS)))


TASKS: dict[str, Callable[[random.Random], Example]] = {
    "english_to_chinese": sample_translation_to_chinese,
    "chinese_to_english": sample_translation_to_english,
    "arithmetic": sample_arithmetic,
    "repeat": sample_repeat,
}


def training_examples(rng: random.Random, weights: dict[str, float]) -> Iterator[Example]:
    """Endless random examples, tasks drawn by `weights`, without the held-out prompts."""
    names, shares = list(weights), list(weights.values())
    while True:
        example = TASKS[rng.choices(names, shares)[0]](rng)
        if not is_held_out(example.prompt):
            yield example


def held_out_examples(task: str, count: int, seed: int = 2024) -> list[Example]:
    """`count` different held-out examples of a task, always the same ones for a seed."""
    rng = random.Random(f"{seed} {task}")
    found: dict[str, Example] = {}
    while len(found) < count:
        example = TASKS[task](rng)
        if is_held_out(example.prompt):
            found.setdefault(example.prompt, example)
    return list(found.values())
