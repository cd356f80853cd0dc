"""Measure a checkpoint or a bundle on held-out inputs; exit status 1 if it misses a bar.

python -m examples.numbers.evaluate                    the shipped checkpoint, in PyTorch
python -m examples.numbers.evaluate build/numbers      a bundle, in the runtime
"""

import sys
from pathlib import Path

import click
import torch

from examples.numbers.generators import AUTO, open_generator
from examples.numbers.measures import Report, bars, load_table, measure, wrong_answers
from examples.numbers.tasks import TASKS, held_out_examples


@click.command()
@click.argument(
    "folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path(__file__).parent,
)
@click.option("--inputs", type=click.IntRange(1), default=1000, show_default=True, help="Per task.")
@click.option("--seed", type=int, default=2024, show_default=True, help="Which held-out inputs.")
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--show-wrong", is_flag=True, help="List what the dearest path gets wrong.")
def main(folder: Path, inputs: int, seed: int, threads: int, show_wrong: bool) -> None:
    """Measure the checkpoint or the bundle in FOLDER."""
    torch.set_num_threads(threads)
    generator = open_generator(folder, threads)
    examples = [e for task in TASKS for e in held_out_examples(task, inputs, seed)]
    report = measure(generator, examples)
    print_report(report)
    if show_wrong:
        prompts = [example.prompt for example in examples]
        answers = generator.answer(prompts, generator.paths[-1].name, 1.0)
        for example, answer in wrong_answers(answers, examples):
            print(f"{example.prompt}  ->  {answer.text}, not {example.answer}")
    if not print_bars(report):
        sys.exit(1)


def print_report(report: Report) -> None:
    """Print accuracy, layer-steps and path shares of every pass, and the load of the experts."""
    print("Exact match on held-out inputs, in percent; layer-steps against the dearest path.\n")
    full = list(report.forced.values())[-1]
    print(f"{'path':20}" + "".join(f"{task:>20}" for task in report.inputs), end="")
    print(f"{'all':>8}{'layer-steps':>13}  share of each path")
    runs = report.forced | {f"{AUTO}, budget {b:.2f}": run for b, run in report.auto.items()}
    for name, run in runs.items():
        cells = "".join(f"{100 * run.accuracy[task]:20.1f}" for task in report.inputs)
        shares = " / ".join(f"{100 * share:.1f}" for share in run.path_shares.values())
        ratio = 100 * run.layer_steps / full.layer_steps
        print(f"{name:20}{cells}{100 * run.overall:8.1f}{ratio:13.1f}  {shares}")
    print(f"{'inputs':20}" + "".join(f"{count:20d}" for count in report.inputs.values()))
    print("\nLoad of the experts of each sparse layer, in percent of its tokens' choices.\n")
    for name, layer, shares_of in load_table(report):
        print(f"{name:10}{layer:20}" + "".join(f"{share:6.1f}" for share in shares_of))


def print_bars(report: Report) -> bool:
    """Print each bar with its figure; returns whether all are met."""
    found = bars(report)
    print()
    for bar in found:
        print(f"{'pass' if bar.met else 'FAIL'}  {bar.name}: {bar.figure}")
    return all(bar.met for bar in found)


if __name__ == "__main__":
    main()
