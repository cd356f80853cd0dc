"""Train the model: stage 1 the whole network on every path, stage 2 the choice of the path.

    python -m examples.numbers.train --output build/numbers-model

Ctrl-C saves and stops; the same command goes on where it stopped.
"""

import math
import os
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import torch
from drl.export.checkpoint import save_checkpoint
from drl.export.model import DualRouterModel
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from examples.numbers.batches import IGNORED, Batch, training_batches
from examples.numbers.dense_experts import use_dense_experts
from examples.numbers.losses import balance_loss, right_tokens, token_loss
from examples.numbers.settings import TrainingSettings, model_config
from examples.numbers.tasks import TASKS
from examples.numbers.tokens import TOKENIZER_FILE, load_tokenizer

LOG_EVERY = 20
SAVE_EVERY = 200


@dataclass
class Running:
    """Figures since the last line of progress: sums over tokens and sequences of the full path."""

    loss: float = 0.0
    tokens: int = 0
    balance: float = 0.0
    chunks: int = 0
    right: Tensor = field(default_factory=lambda: torch.zeros(len(TASKS)))
    seen: Tensor = field(default_factory=lambda: torch.zeros(len(TASKS)))
    cheap_right: float = 0.0

    def add(self, batch: Batch, logits: Tensor, cheap: Tensor, loss: Tensor) -> None:
        """Count one batch: `logits` of the full path, `cheap` of the cheaper one."""
        right = right_tokens(logits, batch.labels).all(dim=1).float()
        self.right += torch.bincount(batch.tasks, right, minlength=len(TASKS))
        self.seen += torch.bincount(batch.tasks, minlength=len(TASKS))
        self.cheap_right += right_tokens(cheap, batch.labels).all(dim=1).float().sum().item()
        self.loss += loss.item()
        self.tokens += int((batch.labels != IGNORED).sum())

    def line(self) -> str:
        """Loss per token and the share of wholly right answers (teacher-forced) per task."""
        shares = (self.right / self.seen.clamp(min=1)).tolist()
        tasks = " ".join(f"{name[:7]} {share:5.1%}" for name, share in zip(TASKS, shares))
        return (
            f"loss {self.loss / max(self.tokens, 1):.4f} | {tasks} | "
            f"cheap {self.cheap_right / max(self.seen.sum().item(), 1):5.1%} | "
            f"balance {self.balance / max(self.chunks, 1):.3f}"
        )


class Trainer:
    """Stage 1. Its state after a step follows from the settings and the number of the step."""

    def __init__(self, settings: TrainingSettings, tokenizer: Tokenizer, bf16: bool) -> None:
        self.settings, self.tokenizer, self.bf16 = settings, tokenizer, bf16
        torch.manual_seed(settings.seed)
        self.model = DualRouterModel(model_config(tokenizer.get_vocab_size()))
        use_dense_experts(self.model)
        matrices = [p for p in self.model.parameters() if p.ndim >= 2]
        others = [p for p in self.model.parameters() if p.ndim < 2]
        self.optimiser = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": settings.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=settings.peak_rate,
            betas=(0.9, 0.98),
            fused=True,
        )
        self.step = 0
        self.running = Running()

    def rate(self) -> float:
        """Learning rate of the current step: linear warm-up, then a cosine down to 0."""
        settings = self.settings
        warm = min(1.0, (self.step + 1) / settings.warmup_steps)
        done = max(0.0, self.step - settings.warmup_steps)
        share = done / max(1, settings.steps - settings.warmup_steps)
        return settings.peak_rate * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))

    def train_step(self) -> None:
        """Draw this step's examples, run two paths on them and update the weights."""
        settings = self.settings
        batches = training_batches(
            self.tokenizer,
            settings.task_weights,
            seed=settings.seed,
            step=self.step,
            size=settings.batch_size,
            chunks=settings.chunks,
        )
        tokens = sum(int(batch.target_lengths.sum()) for batch in batches)
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate()
        for part, batch in enumerate(batches):
            self._backward(batch, tokens, cheap_path=self._cheap_path(part))
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1

    def _cheap_path(self, part: int) -> int:
        """The path to train beside the full one: every cheaper path in turn."""
        return (self.step + part) % (len(self.model.config.paths) - 1)

    def _backward(self, batch: Batch, tokens: int, cheap_path: int) -> None:
        model, settings = self.model, self.settings
        full = len(model.config.paths) - 1
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=self.bf16),
            sdpa_kernel(SDPBackend.MATH),
        ):
            encoded = model.encode(batch.source, batch.source_lengths)
            logits, routes = [], list(encoded.routes)
            for path in (full, cheap_path):
                memory = model.bridge(encoded, path)
                made, taken = model.decode(batch.target_in, batch.target_lengths, memory)
                logits.append(made)
                routes += taken
        loss = token_loss(logits[0], batch.labels)
        cheap_loss = token_loss(logits[1], batch.labels)
        balance = balance_loss(routes)
        share = int(batch.target_lengths.sum()) / tokens
        total = (loss + settings.cheap_weight * cheap_loss) / tokens
        total = total + settings.balance_weight * share * balance
        total.backward()
        self.running.add(batch, logits[0].detach(), logits[1].detach(), loss.detach())
        self.running.balance += balance.item()
        self.running.chunks += 1

    def state(self) -> dict[str, Any]:
        """Everything needed to go on later."""
        return {
            "settings": vars(self.settings),
            "step": self.step,
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state()`; raises ValueError if it belongs to other settings."""
        if state["settings"] != vars(self.settings):
            raise ValueError("the saved training used other settings")
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])


def save_atomically(state: dict[str, Any], path: Path) -> None:
    """Write `state` so that `path` always holds a whole file."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def run(trainer: Trainer, state_file: Path) -> None:
    """Train to the last step, showing progress and saving now and then."""
    begun, first = time.monotonic(), trainer.step
    steps = trainer.settings.steps
    try:
        while trainer.step < steps:
            trainer.train_step()
            if trainer.step % LOG_EVERY == 0 or trainer.step == steps:
                pace = (time.monotonic() - begun) / (trainer.step - first)
                left = (steps - trainer.step) * pace / 60
                print(
                    f"step {trainer.step:5d}/{steps} | {trainer.running.line()} | "
                    f"{pace:.2f} s/step, {left:.0f} min left",
                    flush=True,
                )
                trainer.running = Running()
            if trainer.step % SAVE_EVERY == 0 or trainer.step == steps:
                save_atomically(trainer.state(), state_file)
    except KeyboardInterrupt:
        save_atomically(trainer.state(), state_file)
        print(f"interrupted at step {trainer.step}; the same command goes on from here")
        sys.exit(130)


@click.command()
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Checkpoint folder.")
@click.option("--steps", type=click.IntRange(1), help="Optimiser steps of stage 1.")
@click.option("--seed", type=int, help="Seed of weights and data.")
@click.option("--rate", type=float, help="Peak learning rate.")
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--bf16/--fp32", default=True, show_default=True, help="Arithmetic of the products.")
def main(
    output: Path, steps: int | None, seed: int | None, rate: float | None, threads: int, bf16: bool
) -> None:
    """Train the numbers model and write it to OUTPUT."""
    torch.set_num_threads(threads)
    chosen = {"steps": steps, "seed": seed, "peak_rate": rate}
    settings = replace(TrainingSettings(), **{k: v for k, v in chosen.items() if v is not None})
    trainer = Trainer(settings, load_tokenizer(), bf16)
    output.mkdir(parents=True, exist_ok=True)
    state_file = output / "training-state.pt"
    if state_file.exists():
        trainer.restore(torch.load(state_file, weights_only=True))
        print(f"going on from step {trainer.step}")
    count = sum(p.numel() for p in trainer.model.parameters())
    print(f"{count / 1e6:.2f} M parameters, {count * 4 / 1e6:.1f} MB")
    run(trainer, state_file)
    save_checkpoint(output, trainer.model, TOKENIZER_FILE)


if __name__ == "__main__":
    main()
