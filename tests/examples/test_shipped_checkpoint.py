from pathlib import Path

import pytest

from examples.numbers import evaluate
from examples.numbers.generators import CheckpointGenerator
from examples.numbers.measures import bars, measure
from examples.numbers.tasks import TASKS, held_out_examples

FOLDER = Path(evaluate.__file__).parent


def test_its_files_are_small() -> None:
    files = [FOLDER / name for name in ("config.json", "model.safetensors", "tokenizer.json")]
    assert sum(file.stat().st_size for file in files) <= 12_000_000


def test_it_answers_the_documented_prompts() -> None:
    generator = CheckpointGenerator(FOLDER)
    expected = {
        "translate to Chinese: one hundred and five": "一百零五",
        "翻译成英文：一百零五": "one hundred and five",
        "what is 12 plus 30?": "42",
        "12加30等于多少？": "42",
        "repeat ab three times": "ababab",
    }
    answers = generator.answer(list(expected), "auto", 1.0)
    assert [answer.text for answer in answers] == list(expected.values())


@pytest.mark.slow
def test_it_meets_its_bars() -> None:
    examples = [example for task in TASKS for example in held_out_examples(task, 400)]
    missed = [bar for bar in bars(measure(CheckpointGenerator(FOLDER), examples)) if not bar.met]
    assert not missed
