"""What choosing tokens costs beside the decoder: `python -m drl.benchmarks.host_share BUNDLE`.

Generates in several ways, which take turns, and splits the time of a step into the decoder's graph
and everything else, which is the host's share: processors, choice of tokens, moving of beams,
scheduling, results.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from drl.benchmarks.clocked_backend import ClockedBackend
from drl.runtime import Engine, GenerationConfig
from drl.runtime.backends import Backend, open_backend
from drl.runtime.bundle import Bundle
from drl.runtime.commands.common import clean_errors, table


@dataclass(frozen=True)
class Way:
    """A way to generate: how many sources at a time, and options of `GenerationConfig`."""

    name: str
    sources: int
    options: Mapping[str, Any]


WAYS = (
    Way("greedy, batch 1", 1, {}),
    Way("greedy, batch 1, log-probabilities", 1, {"logprobs": True}),
    Way("greedy, batch 4", 4, {}),
    Way("beam 4, batch 1", 1, {"num_beams": 4}),
    Way("greedy, batch 32", 32, {}),
    Way("beam 4, batch 8", 8, {"num_beams": 4}),
    Way("top-k 50, batch 4", 4, {"do_sample": True, "top_k": 50, "seed": 0}),
    Way("top-p 0.9, batch 4", 4, {"do_sample": True, "top_p": 0.9, "seed": 0}),
    Way(
        "beam 4, batch 1, penalties",
        1,
        {"num_beams": 4, "no_repeat_ngram_size": 3, "repetition_penalty": 1.2},
    ),
)


@dataclass(frozen=True)
class Cost:
    """Medians over the repeats, in milliseconds per decoder step.

    Attributes:
        way: How it was generated.
        step: The whole step.
        host: What of it was spent outside the graph.
    """

    way: Way
    step: float
    host: float


def measure(bundle: Bundle, backend: Backend, *, source: int, new: int, repeats: int) -> list[Cost]:
    """Time every way `repeats` times, taking turns, after one round to warm up.

    Args:
        bundle: What `backend` has loaded.
        backend: Runs the graphs.
        source: Source tokens, random.
        new: Tokens to generate per sequence; the end token is barred.
        repeats: Timed rounds.
    """
    clock = ClockedBackend(backend)
    engine = Engine(bundle, clock)
    generator = np.random.default_rng(0)
    shape = max(way.sources for way in WAYS), source
    prompts = generator.integers(0, bundle.manifest.limits.vocab_size, shape).tolist()
    path = bundle.manifest.paths[-1].name
    times: list[list[tuple[float, float]]] = [[] for _ in WAYS]
    for repeat in range(-1, repeats):
        for way, found in zip(WAYS, times, strict=True):
            options = {"logprobs": False, **way.options}
            config = GenerationConfig(max_new_tokens=new, min_new_tokens=new, **options)
            clock.clear()
            results = engine.generate(prompts[: way.sources], config, path=path)
            total = max(result.timings.decode for result in results)
            if repeat >= 0:
                steps = len(clock.steps)
                found.append((total / steps, (total - clock.step_seconds) / steps))
    return [
        Cost(way, *(1e3 * statistics.median(column) for column in zip(*found, strict=True)))
        for way, found in zip(WAYS, times, strict=True)
    ]


def describe(costs: Sequence[Cost]) -> str:
    """Return a table of the costs."""
    rows = [["", "step ms", "of it host ms", "share"]]
    rows += [
        [cost.way.name, f"{cost.step:.3f}", f"{cost.host:.3f}", f"{cost.host / cost.step:.1%}"]
        for cost in costs
    ]
    return table(rows, right=(1, 2, 3))


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folder", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.option("--source", type=click.IntRange(1), default=64, show_default=True, help="Tokens.")
@click.option("--new", type=click.IntRange(1), default=64, show_default=True, help="Tokens.")
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True)
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, tensorrt; cuda:1.")
@click.option("--threads", type=click.IntRange(1), default=None, help="Threads of the backend.")
@clean_errors
def main(
    folder: Path, source: int, new: int, repeats: int, device: str, threads: int | None
) -> None:
    """Time steps of greedy, sampled and beam decoding of BUNDLE, and the host's share of them."""
    bundle = Bundle.load(folder)
    limits = bundle.manifest.limits
    source, new = min(source, limits.max_source_length), min(new, limits.max_target_length)
    backend = open_backend(bundle, device, threads)
    click.echo(f"{backend.name}; source {source}, {new} new tokens")
    click.echo(describe(measure(bundle, backend, source=source, new=new, repeats=repeats)))


if __name__ == "__main__":
    main()
