import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from drl.export import ExportOptions, export, load_checkpoint
from examples.numbers import evaluate, measures
from examples.numbers.generators import BundleGenerator, CheckpointGenerator
from examples.numbers.measures import bars, measure
from examples.numbers.settings import model_config
from examples.numbers.tasks import TASKS, held_out_examples
from examples.numbers.tokens import load_tokenizer

FOLDER = Path(evaluate.__file__).parent


def test_its_files_are_small() -> None:
    files = [FOLDER / name for name in ("config.json", "model.safetensors", "tokenizer.json")]
    assert sum(file.stat().st_size for file in files) <= 12_000_000


def test_its_configuration_is_the_one_that_training_uses() -> None:
    tokenizer = load_tokenizer()
    assert load_checkpoint(FOLDER).config == model_config(tokenizer.get_vocab_size())


def test_the_samples_show_every_task_and_are_answered_rightly() -> None:
    prompts = (FOLDER / "samples.txt").read_text(encoding="utf-8").splitlines()
    answers = CheckpointGenerator(FOLDER).answer(prompts, "auto", 1.0)
    for start in ("translate", "翻译", "what is", "repeat"):
        assert sum(prompt.startswith(start) for prompt in prompts) >= 2
    assert [answer.text for answer in answers] == [
        "一百零五",
        "九千零八十万七千零六十",
        "one hundred and five",
        "thirty million three hundred and three thousand and thirty",
        "42",
        "1000",
        "-7",
        "42",
        "81",
        "ababab",
        "drl" * 6,
    ]


def test_the_prompts_of_its_card_have_the_answers_shown_there() -> None:
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*`) \| (`.*`) \|$", card, re.MULTILINE)
    expected = {p: a[1:-1] for prompts, a in rows for p in re.findall("`(.*?)`", prompts)}
    answers = CheckpointGenerator(FOLDER).answer(list(expected), "auto", 1.0)
    assert len(expected) >= 8
    assert [answer.text for answer in answers] == list(expected.values())


def test_a_bundle_of_it_answers_alike(tmp_path: Path) -> None:
    export(FOLDER, tmp_path / "bundle", ExportOptions(verify=False))
    prompts = [e.prompt for task in TASKS for e in held_out_examples(task, 10)]
    checkpoint, bundle = CheckpointGenerator(FOLDER), BundleGenerator(tmp_path / "bundle", 1)
    assert checkpoint.paths == bundle.paths
    for path in ("fast", "balanced", "full", "auto"):
        expected = checkpoint.answer(prompts, path, 1.0)
        found = bundle.answer(prompts, path, 1.0)
        for one, other in zip(expected, found, strict=True):
            assert (one.text, one.path, one.steps) == (other.text, other.path, other.steps)
            assert one.experts.keys() == other.experts.keys()


@pytest.mark.slow
def test_it_meets_its_bars() -> None:
    examples = [example for task in TASKS for example in held_out_examples(task, 400)]
    missed = [bar for bar in bars(measure(CheckpointGenerator(FOLDER), examples)) if not bar.met]
    assert not missed


def test_a_missed_bar_ends_with_status_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(measures.LEAST_ACCURACY, "repeat", 1.01)
    result = CliRunner().invoke(evaluate.main, ["--inputs", "3", "--show-wrong"])
    assert result.exit_code == 1
    assert "FAIL  full path, repeat" in result.output
    assert "pass  full path, english_to_chinese" in result.output
