"""What is searched: a model that transformers' `generate` runs, and an engine with its bundle."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from drl.export import ExportOptions, export, load_checkpoint, save_checkpoint
from drl.export.model import DualRouterModel
from drl.runtime import Engine
from tests.export.importers.oracle import random_sources
from tests.generation.eager_model import EagerSearch
from tests.generation.families import FAMILIES, build
from tests.generation.transformers_search import search
from tests.models import TINY, random_model, random_prompts

NUMBERS = Path(__file__).parents[2] / "examples" / "numbers"
PATHS = ("fast", "balanced", "full")
NAMES = (
    *FAMILIES,
    *(f"tiny-{path}" for path in PATHS),
    *(f"numbers-{path}" for path in PATHS),
)
"""Every subject: transformers' families, a random and the shipped model on each of their paths."""

_LENGTHS = (1, 7, 19, 4, 33, 12, 2, 25)
# Ids above are special tokens of some families.
_ORDINARY = 75


@dataclass(frozen=True)
class Subject:
    """A model to search, twice.

    Attributes:
        name: One of `NAMES`.
        model: For `transformers_search.search`.
        engine: Runs the same model's bundle.
        path: The engine's path that is the model.
        sources: Token ids of sources.
        checkpoint: The model's folder.
        tokenizer: The bundle's as transformers', if it has one.
    """

    name: str
    model: Any
    engine: Engine
    path: str
    sources: list[list[int]]
    checkpoint: Path
    tokenizer: PreTrainedTokenizerFast | None = None

    @property
    def end(self) -> int:
        """The end token."""
        return int(self.model.generation_config.eos_token_id)

    @property
    def vocab_size(self) -> int:
        """Tokens of the model."""
        return self.engine.bundle.manifest.limits.vocab_size


class Subjects(contextlib.ExitStack):
    """Makes subjects when they are asked for, each once, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self._made: dict[str, Subject] = {}

    def __getitem__(self, name: str) -> Subject:
        if name not in self._made:
            made = self._family(name) if name in FAMILIES else self._dual_router(name)
            self._made |= {each.name: each for each in made}
        return self._made[name]

    def _family(self, name: str) -> list[Subject]:
        sources = random_sources(_LENGTHS, _ORDINARY)
        model: Any = build(FAMILIES[name], sources)
        checkpoint = self._folder / name / "checkpoint"
        model.save_pretrained(checkpoint)
        engine = self._open(name, checkpoint)
        (path,) = engine.bundle.manifest.paths
        sources.append(_sayings(model, sources))
        return [Subject(name, model, engine, path.name, sources, checkpoint)]

    def _dual_router(self, name: str) -> list[Subject]:
        kind, _ = name.split("-")
        if kind == "tiny":
            model, checkpoint = _tiny_model(), self._folder / kind / "checkpoint"
            save_checkpoint(checkpoint, model)
            return self._paths(kind, model, checkpoint, random_prompts(len(_LENGTHS), seed=1), None)
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(NUMBERS / "tokenizer.json"))
        prompts = (NUMBERS / "samples.txt").read_text(encoding="utf-8").splitlines()
        sources = [tokenizer(prompt)["input_ids"] for prompt in prompts]
        return self._paths(kind, load_checkpoint(NUMBERS).model(), NUMBERS, sources, tokenizer)

    def _paths(
        self,
        kind: str,
        model: DualRouterModel,
        checkpoint: Path,
        sources: Sequence[list[int]],
        tokenizer: PreTrainedTokenizerFast | None,
    ) -> list[Subject]:
        engine = self._open(kind, checkpoint)
        return [
            Subject(
                f"{kind}-{path.name}",
                EagerSearch(model, index),
                engine,
                path.name,
                list(sources),
                checkpoint,
                tokenizer,
            )
            for index, path in enumerate(model.config.paths)
        ]

    def _open(self, name: str, checkpoint: Path) -> Engine:
        bundle = self._folder / name / "bundle"
        export(checkpoint, bundle, ExportOptions(verify=False))
        return self.enter_context(Engine.from_bundle(bundle, threads=1))


def _sayings(model: Any, sources: Sequence[list[int]]) -> list[int]:
    """A source of what a model says, so that it may be kept from saying what its source says."""
    said = [token for source in sources for token in search(model, source, {})[0].tokens]
    return said[:40]


def _tiny_model() -> DualRouterModel:
    """A random model with every feature, which ends sooner than others, on every path."""
    model = random_model(seed=8)
    with torch.no_grad():
        model.embedding.weight[TINY.eos_token_id] *= 2.0
    return model
