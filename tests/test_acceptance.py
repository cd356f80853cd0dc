"""The shipped model end to end: the runtime generates what eager PyTorch generates."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from drl.export import Checkpoint, ExportOptions, export, load_checkpoint
from drl.export.model import DualRouterModel, Generated, generate
from drl.export.options import Target
from drl.runtime import Engine, GenerationConfig
from examples.numbers.tasks import TASKS, held_out_examples

CHECKPOINT = Path(__file__).parent.parent / "examples" / "numbers"
PROMPTS = 520
LIMIT = 48
PATHS: list[str | None] = ["fast", "balanced", "full", None]


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return load_checkpoint(CHECKPOINT)


@pytest.fixture(scope="module")
def model(checkpoint: Checkpoint) -> DualRouterModel:
    return checkpoint.model()


@pytest.fixture(scope="module", params=["ort-cpu", "portable"])
def engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    target: Target = request.param
    bundle = tmp_path_factory.mktemp("numbers") / target
    report = export(CHECKPOINT, bundle, ExportOptions(target=target)).parity
    assert report is not None
    assert report.passed
    with Engine.from_bundle(bundle, threads=min(2, os.cpu_count() or 1)) as engine:
        yield engine


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    """Held-out prompts of every task, tasks taking turns so that batches are ragged."""
    per_task = [held_out_examples(task, PROMPTS // len(TASKS)) for task in TASKS]
    return [example.prompt for row in zip(*per_task, strict=True) for example in row]


@pytest.fixture(scope="module")
def eager(model: DualRouterModel, prompts: list[str]) -> dict[str | None, list[Generated]]:
    """What PyTorch generates, per path."""
    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    sources = [tokenizer.encode(prompt).ids for prompt in prompts]
    names = [path.name for path in model.config.paths]
    return {
        path: [
            made
            for start in range(0, len(sources), 65)
            for made in generate(
                model,
                sources[start : start + 65],
                path=None if path is None else names.index(path),
                max_new_tokens=LIMIT,
            )
        ]
        for path in PATHS
    }


def _generate(
    engine: Engine, prompts: list[str], path: str | None, batch: int
) -> list[tuple[list[int], str]]:
    config = GenerationConfig(max_new_tokens=LIMIT)
    return [
        (result.tokens, result.path)
        for start in range(0, len(prompts), batch)
        for result in engine.generate(prompts[start : start + batch], config, path=path or "auto")
    ]


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 16], ids=["alone", "batches of 16"])
@pytest.mark.parametrize("path", PATHS, ids=str)
def test_greedy_tokens_are_those_of_pytorch(
    engine: Engine,
    model: DualRouterModel,
    prompts: list[str],
    eager: dict[str | None, list[Generated]],
    path: str | None,
    batch: int,
) -> None:
    names = [each.name for each in model.config.paths]
    expected = [(made.tokens, names[made.path]) for made in eager[path]]
    assert len(expected) >= 500
    assert _generate(engine, prompts, path, batch) == expected


def test_the_comparison_covers_different_texts_lengths_and_paths(
    eager: dict[str | None, list[Generated]],
) -> None:
    made = eager[None]
    assert len({tuple(each.tokens) for each in made}) > 400
    assert len({len(each.tokens) for each in made}) > 15
    assert {each.path for each in made} == {0, 1, 2}


@pytest.mark.slow
def test_what_is_streamed_is_what_is_generated(engine: Engine, prompts: list[str]) -> None:
    for prompt in prompts[:40]:
        (whole,) = engine.generate([prompt])
        assert "".join(piece.text for piece in engine.stream(prompt)) == whole.text
