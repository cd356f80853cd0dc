"""Engines of other models than the smallest: the shipped one, and families of transformers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drl.export import export
from drl.runtime import Engine
from examples.numbers.tasks import TASKS, held_out_examples
from tests.runtime.backends.tensorrt.agreement import LEAST_SAME, assert_greedy_agrees, share_alike
from tests.runtime.backends.tensorrt.fake_engines import Opened, build_fake, open_fake

NUMBERS = Path(__file__).parents[4] / "examples" / "numbers"


@pytest.fixture(scope="module", params=["fp16", "bf16"])
def precision(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture(scope="module")
def numbers(
    tmp_path_factory: pytest.TempPathFactory, precision: str
) -> Iterator[tuple[Engine, Opened]]:
    folder = tmp_path_factory.mktemp("numbers")
    export(NUMBERS, folder / "exact")
    build_fake(folder / "exact", folder / "engines", precision=precision)
    with Engine.from_bundle(folder / "exact", threads=1) as exact:
        yield exact, open_fake(folder / "engines")


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    per_task = [held_out_examples(task, 5) for task in TASKS]
    return [example.prompt for row in zip(*per_task, strict=True) for example in row]


@pytest.mark.parametrize("path", ["fast", "balanced", "full", "auto"])
@pytest.mark.parametrize("batch", [1, 16])
def test_the_shipped_model_says_the_same(
    numbers: tuple[Engine, Opened], precision: str, prompts: list[str], path: str, batch: int
) -> None:
    exact, opened = numbers
    asked = prompts[:6] if batch == 1 else prompts
    given: dict[str, Any] = {"path": path, "max_new_tokens": 40}
    found = assert_greedy_agrees(exact, opened.engine(batch), asked, precision=precision, **given)
    assert len({result.text for result in found}) > len(found) // 2


def test_the_shipped_model_searches_samples_and_streams_the_same(
    numbers: tuple[Engine, Opened], prompts: list[str]
) -> None:
    exact, opened = numbers
    engine, asked = opened.engine(16), prompts[:8]
    for options in (
        {"num_beams": 4, "num_return_sequences": 2},
        {"temperature": 0.8, "top_k": 20, "seed": 3},
        {"temperature": 0.8, "top_p": 0.9, "seed": 3},
        {"prefixes": ["a"] * len(asked)},
    ):
        given = {"max_new_tokens": 24, **options}
        assert share_alike(engine.generate(asked, **given), exact.generate(asked, **given)) > 0.7
    for prompt in asked[:2]:
        text = "".join(piece.text for piece in engine.stream(prompt, max_new_tokens=24))
        assert text == engine.generate([prompt], max_new_tokens=24)[0].text


@pytest.mark.parametrize("family", ["t5", "t5-v1.1", "switch"])
def test_models_of_transformers_say_the_same(family: str, precision: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from tests.export.importers.oracle import random_sources
    from tests.generation.families import FAMILIES, build

    sources = random_sources((1, 7, 19, 4, 33, 12, 2, 25), 75)
    build(FAMILIES[family], sources).save_pretrained(tmp_path / "checkpoint")  # type: ignore[operator]
    export(tmp_path / "checkpoint", tmp_path / "exact")
    folder = tmp_path / "engines"
    build_fake(tmp_path / "exact", folder, precision=precision, candidates=16)
    opened = open_fake(folder)
    with Engine.from_bundle(tmp_path / "exact", threads=1) as exact:
        engine = opened.engine(5)
        found = assert_greedy_agrees(exact, engine, sources, precision=precision, max_new_tokens=16)
        assert len({tuple(result.tokens) for result in found}) > 3
        beams = {"num_beams": 3, "max_new_tokens": 12}
        alike = share_alike(engine.generate(sources, **beams), exact.generate(sources, **beams))
        assert alike >= LEAST_SAME[precision]
