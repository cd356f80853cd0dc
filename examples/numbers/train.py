"""Train the model: stage 1 the whole network on every path, stage 2 the choice of the path.

    python -m examples.numbers.train build/numbers-model

Ctrl-C saves and stops; the same command goes on where it stopped.
"""

import os
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import torch

from drl.export.checkpoint import save_checkpoint
from examples.numbers.dense_experts import use_dense_experts
from examples.numbers.path_choice import PathChoiceSettings, gather, judge, train_path_router
from examples.numbers.settings import TrainingSettings
from examples.numbers.stage_one import StageOne
from examples.numbers.team import Team, run_team
from examples.numbers.tokens import TOKENIZER_FILE, load_tokenizer

LOG_EVERY = 20
SAVE_EVERY = 200
STATE_FILE = "training-state.pt"


def save_state(state: dict[str, Any], path: Path) -> None:
    """Write `state` so that `path` always holds a whole file."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def run_stage_one(team: Team, settings: TrainingSettings, bf16: bool, state_file: Path) -> None:
    """Train to the last step or until asked to stop, showing progress and saving now and then."""
    stage = StageOne(settings, load_tokenizer(), team, bf16)
    if state_file.exists():
        stage.restore(torch.load(state_file, weights_only=True))
    begun, first, speaks = time.monotonic(), stage.step, team.rank == 0
    while stage.step < settings.steps and not team.stopping():
        stage.train_step()
        if speaks and (stage.step % LOG_EVERY == 0 or stage.step == settings.steps):
            pace = (time.monotonic() - begun) / (stage.step - first)
            left = (settings.steps - stage.step) * pace / 60
            figures = stage.progress.line()
            print(
                f"step {stage.step:5d}/{settings.steps} | {figures} | "
                f"{pace:.2f} s/step, {left:.0f} min left",
                flush=True,
            )
            stage.progress.reset()
        if speaks and (stage.step % SAVE_EVERY == 0 or stage.step == settings.steps):
            save_state(stage.state(), state_file)
    if speaks:
        save_state(stage.state(), state_file)


def run_stage_two(stage: StageOne, settings: PathChoiceSettings) -> None:
    """Teach the path router of a trained model, and print what it would do."""
    model = stage.model.eval()
    use_dense_experts(model, enabled=False)
    print("stage 2: running every path on fresh examples", flush=True)
    evidence = gather(model, stage.tokenizer, settings)
    count = len(evidence.right)
    kept = torch.arange(count - count // 10, count)
    train_path_router(model, evidence.select(torch.arange(count - count // 10)), settings)
    for budget in sorted({*model.config.path_costs, 1.0}):
        print(f"  {judge(model, evidence.select(kept), budget)}")


@click.command()
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--steps", type=click.IntRange(1), help="Optimiser steps of stage 1.")
@click.option("--seed", type=int, help="Seed of weights and data.")
@click.option("--rate", type=float, help="Peak learning rate.")
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Processes.")
@click.option("--bf16/--fp32", default=True, show_default=True, help="Arithmetic of stage 1.")
def main(
    output: Path, steps: int | None, seed: int | None, rate: float | None, workers: int, bf16: bool
) -> None:
    """Train the numbers model and write it to the folder OUTPUT."""
    usual = TrainingSettings()
    settings = replace(
        usual,
        steps=usual.steps if steps is None else steps,
        seed=usual.seed if seed is None else seed,
        peak_rate=usual.peak_rate if rate is None else rate,
    )
    output.mkdir(parents=True, exist_ok=True)
    state_file = output / STATE_FILE
    stage = StageOne(settings, load_tokenizer())
    if state_file.exists():
        try:
            stage.restore(torch.load(state_file, weights_only=True))
        except ValueError as mistake:
            raise click.ClickException(f"{state_file}: {mistake}") from None
        print(f"going on from step {stage.step}")
    count = sum(p.numel() for p in stage.model.parameters())
    print(f"{count / 1e6:.2f} M parameters, {count * 4 / 1e6:.1f} MB; {asdict(settings)}")
    if stage.step < settings.steps:
        team = Team(workers, stage.shared_width)
        run_team(team, run_stage_one, settings, bf16, state_file)
        stage.restore(torch.load(state_file, weights_only=True))
    if stage.step < settings.steps:
        print(f"interrupted at step {stage.step}; the same command goes on from here")
        sys.exit(130)
    torch.set_num_threads(workers)
    run_stage_two(stage, PathChoiceSettings())
    save_checkpoint(output, stage.model, TOKENIZER_FILE)
    print(f"written to {output}")


if __name__ == "__main__":
    main()
