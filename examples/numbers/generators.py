"""What evaluation measures: a checkpoint in eager PyTorch, or a bundle in the runtime."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from tokenizers import Tokenizer
from torch import Tensor

from drl.export.checkpoint import load_checkpoint
from drl.export.model import DualRouterModel, Generated, generate
from drl.export.model.generate import pad
from drl.runtime import Engine, GenerationConfig

AUTO = "auto"
MAX_NEW_TOKENS = 32
EAGER_BATCH = 256


@dataclass(frozen=True)
class PathInfo:
    """A path's name, its number of decoder layers and its cost relative to the longest path."""

    name: str
    layers: int
    cost: float


@dataclass(frozen=True)
class Answer:
    """What was generated for one prompt.

    Attributes:
        text: The answer.
        path: Name of the path taken.
        steps: Decoder steps, the one that ended the answer included.
        experts: Uses of each expert `[E]`, per sparse layer that ran.
    """

    text: str
    path: str
    steps: int
    experts: dict[str, Tensor]


class Generator(Protocol):
    """Something that answers prompts greedily."""

    @property
    def paths(self) -> list[PathInfo]:
        """The decoding paths, cheapest first."""

    def answer(self, prompts: Sequence[str], path: str, budget: float) -> list[Answer]:
        """Answer prompts on a path, or on the paths that the model chooses within a budget."""


class CheckpointGenerator:
    """A checkpoint in eager PyTorch."""

    def __init__(self, folder: Path) -> None:
        self.model: DualRouterModel = load_checkpoint(folder).model()
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    @property
    def paths(self) -> list[PathInfo]:
        """The decoding paths, cheapest first."""
        config = self.model.config
        return [
            PathInfo(path.name, len(path.layers), cost)
            for path, cost in zip(config.paths, config.path_costs, strict=True)
        ]

    def answer(self, prompts: Sequence[str], path: str, budget: float) -> list[Answer]:
        """Answer prompts on a path, or on the paths that the model chooses within a budget."""
        names = [each.name for each in self.paths]
        forced = None if path == AUTO else names.index(path)
        sources = [encoding.ids for encoding in self.tokenizer.encode_batch(list(prompts))]
        order = sorted(range(len(sources)), key=lambda i: len(sources[i]))
        answers: dict[int, Answer] = {}
        for start in range(0, len(order), EAGER_BATCH):
            rows = order[start : start + EAGER_BATCH]
            part = [sources[row] for row in rows]
            made = generate(
                self.model, part, path=forced, budget=budget, max_new_tokens=MAX_NEW_TOKENS
            )
            experts = self._experts(part, made)
            for row, result, used in zip(rows, made, experts, strict=True):
                steps = min(len(result.tokens) + 1, MAX_NEW_TOKENS)
                text = self.tokenizer.decode(result.tokens)
                answers[row] = Answer(text, names[result.path], steps, used)
        return [answers[row] for row in range(len(prompts))]

    @torch.inference_mode()
    def _experts(
        self, sources: Sequence[list[int]], made: Sequence[Generated]
    ) -> list[dict[str, Tensor]]:
        """Run the generated tokens once more, to see the experts they use."""
        config = self.model.config
        used: list[dict[str, Tensor]] = [{} for _ in made]
        for path in {result.path for result in made}:
            rows = [row for row, result in enumerate(made) if result.path == path]
            source, lengths = pad([sources[row] for row in rows], config.pad_token_id)
            start = config.decoder_start_token_id
            target, target_lengths = pad(
                [[start, *made[row].tokens] for row in rows], config.pad_token_id
            )
            output = self.model(source, lengths, target, target_lengths, path)
            for route in (*output.encoded.routes, *output.routes):
                for row, ids in zip(rows, route.expert_ids, strict=True):
                    used[row][route.layer] = _count(ids, config.num_experts)
        return used


class BundleGenerator:
    """A bundle in the runtime."""

    def __init__(self, folder: Path, threads: int) -> None:
        self.engine = Engine.from_bundle(folder, threads=threads)
        model = self.engine.bundle.manifest.model
        self.num_experts = int(model["groups"]) * int(model["experts_per_group"])

    @property
    def paths(self) -> list[PathInfo]:
        """The decoding paths, cheapest first."""
        paths = self.engine.bundle.manifest.paths
        return [PathInfo(path.name, len(path.layers), path.cost) for path in paths]

    def answer(self, prompts: Sequence[str], path: str, budget: float) -> list[Answer]:
        """Answer prompts on a path, or on the paths that the model chooses within a budget."""
        results = self.engine.generate(
            list(prompts),
            GenerationConfig(max_new_tokens=MAX_NEW_TOKENS, logprobs=False),
            path=path,
            budget=budget,
            return_experts=True,
        )
        answers = []
        for result in results:
            used = {}
            if result.experts is not None:
                sides = {"encoder": result.experts.encoder, "decoder": result.experts.decoder}
                for side, layers in sides.items():
                    for layer, ids in layers.items():
                        counts = _count(torch.from_numpy(ids), self.num_experts)
                        used[f"{side}.layers.{layer}"] = counts
            answers.append(Answer(result.text, result.path, result.timings.steps, used))
        return answers


def open_generator(folder: Path, threads: int) -> Generator:
    """A generator for a bundle's or a checkpoint's folder."""
    if (folder / "bundle.json").exists():
        return BundleGenerator(folder, threads)
    return CheckpointGenerator(folder)


def total_experts(answers: Iterable[Answer]) -> dict[str, Tensor]:
    """Uses of each expert over all answers, per sparse layer."""
    total: dict[str, Tensor] = {}
    for answer in answers:
        for layer, counts in answer.experts.items():
            total[layer] = total.get(layer, torch.zeros_like(counts)) + counts
    return dict(sorted(total.items()))


def _count(expert_ids: Tensor, experts: int) -> Tensor:
    used = expert_ids.flatten().long()
    return torch.bincount(used[used >= 0], minlength=experts)
