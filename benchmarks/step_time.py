"""Decoder step time of every path of a bundle: `python -m drl.benchmarks.step_time BUNDLE`.

Paths take turns, one timed call each, so that a machine that slows down slows all of them. Tokens
are random, since constant ones would flatter a routed model: they would use the same experts again
and again. A decoder that ranks gives the likeliest token, as greedy decoding asks it to.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from drl.runtime.arrays import Array
from drl.runtime.backends import Backend, StepInputs, open_backend
from drl.runtime.bundle import Bundle
from drl.runtime.cache import KVCache
from drl.runtime.commands.common import clean_errors, table


@dataclass(frozen=True)
class StepTime:
    """Milliseconds of single-token decoder steps on one path.

    Attributes:
        path: The path's name.
        layers: Decoder layers it runs.
        median: Median of all timed steps.
        best: The fastest of them.
    """

    path: str
    layers: int
    median: float
    best: float


def measure(
    bundle: Bundle, backend: Backend, *, rows: int, source: int, filled: int, repeats: int
) -> list[StepTime]:
    """Time `repeats` interleaved steps per path.

    Args:
        bundle: What `backend` has loaded.
        backend: Runs the graphs.
        rows: Batch size.
        source: Source tokens of every row.
        filled: Positions in the cache before the timed step.
        repeats: Timed steps per path, after a tenth as many for warming up.
    """
    generator = np.random.default_rng(0)
    paths = bundle.manifest.paths
    inputs = [
        _step_inputs(bundle, backend, path, rows, source, filled, generator)
        for path in range(len(paths))
    ]
    times: list[list[float]] = [[] for _ in paths]
    for repeat in range(-max(1, repeats // 10), repeats):
        for path, step in enumerate(inputs):
            step.tokens[:] = generator.integers(0, bundle.manifest.limits.vocab_size, (rows, 1))
            started = time.perf_counter()
            backend.step(step)
            if repeat >= 0:
                times[path].append(1e3 * (time.perf_counter() - started))
    return [
        StepTime(path.name, len(path.layers), statistics.median(found), min(found))
        for path, found in zip(paths, times, strict=True)
    ]


def _step_inputs(
    bundle: Bundle,
    backend: Backend,
    path: int,
    rows: int,
    source: int,
    filled: int,
    generator: np.random.Generator,
) -> StepInputs:
    """Encode random sources and return the buffers of a step over a filled cache."""
    manifest = bundle.manifest
    tokens = generator.integers(0, manifest.limits.vocab_size, (rows, source), dtype=np.int64)
    lengths = np.full(rows, source, np.int32)
    encoding = backend.encode(tokens, lengths, np.ones(rows, np.float32))
    layers = manifest.paths[path].layers
    cache = KVCache(manifest.cache, layers, rows, filled + 1, rules=backend)
    cache.append(backend.bridge(encoding, path))
    cache.reserve(filled + 1)
    cache.lengths[:rows] = filled
    past_keys, past_values = cache.past()
    with backend.arrays.ordered():
        for layer in layers:
            for block in (past_keys[layer], past_values[layer]):
                values = _random(generator, block.shape, backend.cache_dtype)
                block[:] = backend.arrays.from_host(values, "random keys and values")
    bias, cross_keys, cross_values = cache.cross()
    return StepInputs(
        path=path,
        tokens=np.zeros((rows, 1), np.int64),
        lengths=cache.lengths[:rows],
        new_lengths=np.ones(rows, np.int32),
        cross_bias=bias,
        cross_keys=cross_keys,
        cross_values=cross_values,
        past_keys=past_keys,
        past_values=past_values,
        candidates=1 if backend.ranks else 0,
    )


def _random(
    generator: np.random.Generator, shape: tuple[int, ...], dtype: "np.dtype[Any]"
) -> Array:
    """Random values as a cache holds them."""
    if dtype == np.int8:
        # Here, since it takes `onnxscript`, which a machine that only runs bundles may lack.
        from drl.plugins.ops.state_rows import SCALE_BYTES, quantize_states

        return quantize_states(
            generator.standard_normal((*shape[:-1], shape[-1] - SCALE_BYTES), np.float32)
        )
    values = generator.standard_normal(shape, np.float32)
    if dtype == np.uint16:  # bfloat16: the upper half of a float32
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(dtype)


def describe(times: Sequence[StepTime]) -> str:
    """Return a table of the times, and their ratio to the path with the most layers."""
    full = times[-1]
    rows = [["path", "layers", "median ms", "best ms", f"of {full.path}"]]
    rows += [
        [
            each.path,
            str(each.layers),
            f"{each.median:.3f}",
            f"{each.best:.3f}",
            f"{each.median / full.median:.0%}",
        ]
        for each in times
    ]
    return table(rows, right=(1, 2, 3, 4))


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folder", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.option("--rows", type=click.IntRange(1), default=1, show_default=True, help="Batch size.")
@click.option("--source", type=click.IntRange(1), default=24, show_default=True, help="Tokens.")
@click.option("--filled", type=click.IntRange(0), default=16, show_default=True, help="In cache.")
@click.option("--repeats", type=click.IntRange(1), default=500, show_default=True)
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, tensorrt; cuda:1.")
@click.option("--threads", type=click.IntRange(1), default=None, help="Threads of the backend.")
@clean_errors
def main(
    folder: Path,
    rows: int,
    source: int,
    filled: int,
    repeats: int,
    device: str,
    threads: int | None,
) -> None:
    """Time single-token decoder steps of every path of BUNDLE, interleaved."""
    bundle = Bundle.load(folder)
    backend = open_backend(bundle, device, threads)
    click.echo(f"{backend.name}; {rows} rows, source {source}, cache {filled}")
    times = measure(bundle, backend, rows=rows, source=source, filled=filled, repeats=repeats)
    click.echo(describe(times))


if __name__ == "__main__":
    main()
