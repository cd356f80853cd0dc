"""How much of a GPU's memory bandwidth the experts' kernels reach in decoding steps.

Run `python -m drl.benchmarks.gpu.kernel_bandwidth`; README.md beside this file has the commands.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from drl.benchmarks.gpu.timing import median_seconds, memory_bandwidth
from drl.plugins.cuda.calls import Call, routed_ffn_combine_call, routed_ffn_inner_call
from drl.plugins.cuda.launch import Launcher, missing

EXPERTS = 8
WIDTHS = (512, 2048)
BATCHES = (1, 2, 4, 8, 16, 32, 64)
WEIGHTS = ("fp16", "bf16", "int8")
# Layers take turns, so that what one reads has left the second-level cache when its turn comes
# again: together they read more than any of these caches holds.
_AT_LEAST = 512 << 20


@dataclass(frozen=True)
class Layer:
    """One routed layer: width d, four times as wide inside, no gate.

    Attributes:
        width: d.
        weights: `fp16`, `bf16`, or `int8` with states in fp16.
        batch: Tokens of a step.
        k: Experts of a token.
    """

    width: int
    weights: str
    batch: int
    k: int

    def used_experts(self, ids: Any) -> int:
        """How many experts' weights a step reads."""
        return len(np.unique(ids))

    def bytes_touched(self, experts: int) -> int:
        """Of one kernel: the weights of these experts, each once, and the rows in and out."""
        inner = 4 * self.width
        weight = experts * self.width * inner * (1 if self.weights == "int8" else 2)
        scales = experts * inner * 4 if self.weights == "int8" else 0
        return weight + scales + 2 * self.batch * self.k * (self.width + inner)


@dataclass(frozen=True)
class Measured:
    """What was measured for one kernel of one layer."""

    kernel: str
    width: int
    weights: str
    batch: int
    k: int
    experts_used: int
    tiling: str
    microseconds: float
    bytes: int
    share: float


def layers(k: int) -> Iterator[Layer]:
    """All layers that are measured, for k experts a token."""
    for width in WIDTHS:
        for weights in WEIGHTS:
            for batch in BATCHES:
                yield Layer(width, weights, batch, k)


def measure(cupy: Any, launch: Launcher, layer: Layer, bandwidth: float) -> list[Measured]:
    """Time both kernels of a layer, over enough copies of its weights."""
    random = np.random.default_rng(0)
    order = np.argsort(random.random((layer.batch, EXPERTS)), axis=-1)[:, : layer.k]
    ids = order.astype(np.int32)[:, None]
    experts = layer.used_experts(ids)
    copies = -(-_AT_LEAST // layer.bytes_touched(experts))
    results = []
    makers: dict[str, Callable[..., Call]] = {"inner": _inner_call, "combine": _combine_call}
    for name, maker in makers.items():
        calls = [maker(cupy, layer, cupy.asarray(ids)) for _ in range(copies)]
        outputs = launch.outputs(calls[0])
        actions = [partial(launch.into, call, outputs) for call in calls]
        seconds = median_seconds(cupy, actions)
        touched = layer.bytes_touched(experts)
        share = touched / seconds / bandwidth
        tiling = getattr(calls[0].kernel, "tiling", None)
        shape = (layer.width, layer.weights, layer.batch, layer.k, experts)
        results.append(Measured(name, *shape, str(tiling), seconds * 1e6, touched, share))
        del calls, actions
        cupy.get_default_memory_pool().free_all_blocks()
    return results


def _array(cupy: Any, layer: Layer, *shape: int) -> Any:
    """States: ones, whose bits are those of bfloat16 where there is no such type."""
    if layer.weights == "bf16":
        return cupy.full(shape, 0x3F80, cupy.uint16)
    return cupy.ones(shape, cupy.float16)


def _weights(cupy: Any, layer: Layer, depth: int, columns: int) -> tuple[Any, Any]:
    if layer.weights == "int8":
        return (
            cupy.ones((EXPERTS, depth, columns), cupy.int8),
            cupy.full((EXPERTS, columns), 1 / depth, cupy.float32),
        )
    return _array(cupy, layer, EXPERTS, depth, columns), None


def _inner_call(cupy: Any, layer: Layer, ids: Any) -> Call:
    up, scale = _weights(cupy, layer, layer.width, 4 * layer.width)
    hidden = _array(cupy, layer, layer.batch, 1, layer.width)
    return routed_ffn_inner_call(hidden, ids, up, up_scale=scale, activation="relu")


def _combine_call(cupy: Any, layer: Layer, ids: Any) -> Call:
    down, scale = _weights(cupy, layer, 4 * layer.width, layer.width)
    inner = _array(cupy, layer, layer.batch, 1, layer.k, 4 * layer.width)
    gates = cupy.full(ids.shape, 0.5, cupy.float32)
    return routed_ffn_combine_call(inner, ids, gates, down, down_scale=scale)


def table(results: list[Measured], device: str, bandwidth: float) -> str:
    """The results in Markdown."""
    lines = [
        f"{device}; a copy within its memory moves {bandwidth / 1e9:.0f} GB/s. E = {EXPERTS}.",
        "",
        "| kernel | d | weights | k | batch | experts used | µs | GB/s | share of bandwidth |",
        "|---|--:|---|--:|--:|--:|--:|--:|--:|",
    ]
    for r in results:
        speed = r.bytes / r.microseconds / 1e3
        lines.append(
            f"| {r.kernel} | {r.width} | {r.weights} | {r.k} | {r.batch} | {r.experts_used} | "
            f"{r.microseconds:.1f} | {speed:.0f} | {100 * r.share:.0f} % |"
        )
    return "\n".join(lines) + "\n"


@click.command()
@click.option("--k", default="1,2", help="Experts of a token, separated by commas.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write results here.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Write the table here too.")
def main(k: str, json_path: Path | None, markdown: Path | None) -> None:
    """Time the experts' kernels on this machine's GPU."""
    if reason := missing():
        raise click.ClickException(f"nothing to measure on: {reason}")
    import cupy

    launch = Launcher()
    name = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode()
    bandwidth = memory_bandwidth(cupy)
    chosen = [layer for count in k.split(",") for layer in layers(int(count))]
    results = [r for layer in chosen for r in measure(cupy, launch, layer, bandwidth)]
    text = table(results, name, bandwidth)
    click.echo(text)
    if markdown is not None:
        markdown.write_text(text, encoding="utf-8")
    if json_path is not None:
        document = {
            "device": name,
            "bandwidth_bytes_per_second": bandwidth,
            "results": [asdict(result) for result in results],
        }
        json_path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
