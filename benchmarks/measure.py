"""Times the cells of a sweep on one engine, taking turns."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from drl.benchmarks.cells import Cell, random_sources
from drl.benchmarks.clocked_backend import ClockedBackend
from drl.benchmarks.findings import CellResult, Spread
from drl.runtime import Engine, GenerationConfig
from drl.runtime.backends import Backend
from drl.runtime.bundle import Bundle


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        repeats: Timed rounds over all cells.
        warm_up: Rounds before that.
        varied: See `ClockedBackend`.
        seed: Of sources and tokens.
    """

    repeats: int = 5
    warm_up: int = 1
    varied: bool = True
    seed: int = 0


@dataclass
class _Times:
    """What the repeats of a cell took, in seconds."""

    first: list[float] = field(default_factory=list)
    encode: list[float] = field(default_factory=list)
    bridge: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    host: list[float] = field(default_factory=list)
    forcing: list[float] = field(default_factory=list)
    total: list[float] = field(default_factory=list)


def measure(
    bundle: Bundle,
    backend: Backend,
    cells: Sequence[Cell],
    settings: Settings,
    progress: Callable[[str], None] = lambda _: None,
) -> list[tuple[CellResult, float | None]]:
    """Time every cell `settings.repeats` times, in an order that changes from round to round.

    A machine that slows down thus slows all cells alike, and no cell always follows the same one.

    Args:
        bundle: What `backend` has loaded.
        backend: Runs the graphs.
        cells: What to measure.
        settings: How.
        progress: Told of every round.

    Returns:
        Per cell the times, and how many different experts a sparse layer used in a step (None
        where there are none), which an untimed generation counts.
    """
    vocab_size = bundle.manifest.limits.vocab_size
    clock = ClockedBackend(backend, vocab_size, settings.varied, settings.seed)
    rows = max(cell.rows for cell in cells)
    times = [_Times() for _ in cells]
    order = np.random.default_rng(settings.seed)
    engine = Engine(bundle, clock, max_batch_size=rows)
    progress("counting experts in use")
    experts = [_experts_in_use(engine, clock, cell, settings.seed) for cell in cells]
    for number in range(-settings.warm_up, settings.repeats):
        progress("warming up" if number < 0 else f"round {number + 1} of {settings.repeats}")
        for index in order.permutation(len(cells)):
            found = _Times() if number < 0 else times[index]
            _run(engine, clock, cells[index], settings.seed, found)
    return [
        (_summarise(cell, found), count)
        for cell, found, count in zip(cells, times, experts, strict=True)
    ]


def config_of(cell: Cell) -> GenerationConfig:
    """Options that generate exactly as many tokens as the cell says."""
    new = cell.new
    return GenerationConfig(
        max_new_tokens=new, min_new_tokens=new, num_beams=cell.beams, logprobs=False
    )


def _run(engine: Engine, clock: ClockedBackend, cell: Cell, seed: int, times: _Times) -> None:
    sources = random_sources(cell, engine.bundle.manifest.limits.vocab_size, seed)
    config = config_of(cell)
    clock.clear()
    began = time.perf_counter()
    engine.generate(sources, config, path=cell.path)
    times.total.append(time.perf_counter() - began)
    ends = [end for _, end in clock.steps]
    times.first.append(ends[0] - began)
    times.encode.append(sum(clock.encodes))
    times.bridge.append(sum(clock.bridges))
    steps = np.diff(ends).tolist()
    times.steps += steps
    if steps:
        graph = clock.step_seconds - (clock.steps[0][1] - clock.steps[0][0])
        times.host.append((sum(steps) - graph) / len(steps))
    times.forcing.append(clock.forcing / len(clock.steps))


def _experts_in_use(engine: Engine, clock: ClockedBackend, cell: Cell, seed: int) -> float | None:
    sources = random_sources(cell, engine.bundle.manifest.limits.vocab_size, seed)
    clock.clear()
    engine.generate(sources, config_of(cell), path=cell.path, return_experts=True)
    counts = [count for step in clock.experts_in_use for count in step.values()]
    return float(np.mean(counts)) if counts else None


def _summarise(cell: Cell, times: _Times) -> CellResult:
    # A single new token has no step after the first.
    steps = times.steps or times.first
    p50, p90, p99 = (1e3 * float(value) for value in np.percentile(steps, (50, 90, 99)))
    total = float(np.median(times.total))
    return CellResult(
        cell=cell,
        first_token_ms=_milliseconds(times.first),
        encoder_ms=_milliseconds(times.encode),
        bridge_ms=_milliseconds(times.bridge),
        step_ms=Spread(p50, p90, p99),
        host_ms=_milliseconds(times.host),
        forcing_ms=_milliseconds(times.forcing),
        total_ms=1e3 * total,
        tokens_per_second=cell.batch * cell.new / total,
    )


def _milliseconds(seconds: Sequence[float]) -> float:
    return 1e3 * float(np.median(seconds)) if seconds else 0.0
