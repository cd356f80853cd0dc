import random
import re
from itertools import islice

import pytest

from examples.numbers import tasks
from examples.numbers.language import from_chinese, from_english
from examples.numbers.tasks import (
    HELD_OUT_PERCENT,
    TASKS,
    Example,
    held_out_examples,
    is_held_out,
    training_examples,
)

EVENLY = dict.fromkeys(TASKS, 1.0)


def test_examples_read_as_documented() -> None:
    made = [
        tasks.english_to_chinese(105),
        tasks.chinese_to_english(105),
        tasks.arithmetic(12, "+", 30, chinese=False),
        tasks.arithmetic(12, "+", 30, chinese=True),
        tasks.arithmetic(5, "-", 12, chinese=False),
        tasks.arithmetic(12, "*", 12, chinese=True),
        tasks.repeat("ab", "three"),
    ]
    assert [(example.prompt, example.answer) for example in made] == [
        ("translate to Chinese: one hundred and five", "一百零五"),
        ("翻译成英文：一百零五", "one hundred and five"),
        ("what is 12 plus 30?", "42"),
        ("12加30等于多少？", "42"),
        ("what is 5 minus 12?", "-7"),
        ("12乘12等于多少？", "144"),
        ("repeat ab three times", "ababab"),
    ]


def _is_right(example: Example) -> bool:
    """Whether the answer is right, worked out from the prompt alone."""
    prompt, answer = example.prompt, example.answer
    if example.task == "english_to_chinese":
        return from_chinese(answer) == from_english(prompt.split(": ")[1])
    if example.task == "chinese_to_english":
        return from_english(answer) == from_chinese(prompt.split("：")[1])
    if example.task == "repeat":
        _, pattern, count, _ = prompt.split()
        return answer == pattern * from_english(count)
    left, right = map(int, re.findall(r"\d+", prompt))
    expected = left + right
    if "minus" in prompt or "减" in prompt:
        expected = left - right
    elif "times" in prompt or "乘" in prompt:
        expected = left * right
    return int(answer) == expected


def test_every_sampled_answer_is_right() -> None:
    for example in islice(training_examples(random.Random(0), EVENLY), 4000):
        assert _is_right(example), example


def test_training_never_sees_a_held_out_prompt() -> None:
    drawn = {e.prompt for e in islice(training_examples(random.Random(3), EVENLY), 20_000)}
    held_out = {e.prompt for task in TASKS for e in held_out_examples(task, 500)}
    assert not drawn & held_out
    assert not any(is_held_out(prompt) for prompt in drawn)


def test_the_split_takes_the_promised_share_and_does_not_move() -> None:
    prompts = [tasks.english_to_chinese(number).prompt for number in range(20_000)]
    share = 100 * sum(map(is_held_out, prompts)) / len(prompts)
    assert share == pytest.approx(HELD_OUT_PERCENT, abs=1)
    assert [n for n in range(60) if is_held_out(f"repeat ab two times{n}")] == [2, 27, 33, 37]


def test_held_out_examples_are_distinct_and_always_the_same() -> None:
    for task in TASKS:
        examples = held_out_examples(task, 300)
        assert len({example.prompt for example in examples}) == 300
        assert examples == held_out_examples(task, 300)
        assert all(is_held_out(example.prompt) for example in examples)


def test_samples_cover_every_length_and_operation() -> None:
    rng = random.Random(5)
    numbers = [tasks.sample_number(rng) for _ in range(3000)]
    assert {len(str(number)) for number in numbers} == set(range(1, 9))
    prompts = " ".join(tasks.sample_arithmetic(rng).prompt for _ in range(500))
    assert all(word in prompts for word in ("plus", "minus", "times", "加", "减", "乘"))
