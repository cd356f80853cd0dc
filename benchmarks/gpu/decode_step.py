"""Milliseconds of a decoding step: DRL's backends beside Transformers, eager and compiled.

Run `python -m drl.benchmarks.gpu.decode_step BUNDLE --checkpoint FOLDER`; README.md beside this
file has the commands. What does not work on this machine is told and left out.
"""

import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click

from drl.benchmarks.cells import Cell, random_sources
from drl.runtime import Bundle, Engine, GenerationConfig
from drl.runtime.errors import DrlError

DEVICES = ("cpu", "cuda", "tensorrt", "tensorrt-rtx")
PEERS = ("eager", "compiled")
_NEW = 64

Generate = Callable[[list[list[int]], int], Any]
"""Generates exactly so many tokens for each source, and waits until they are there."""


@dataclass(frozen=True)
class Timed:
    """One engine at one batch size."""

    engine: str
    batch: int
    milliseconds: float


def step_milliseconds(generate: Generate, sources: list[list[int]], repeats: int) -> float:
    """Median time of a step: 64 tokens less one token, so that encoding and prefill cancel."""

    def seconds(new: int) -> float:
        began = time.perf_counter()
        generate(sources, new)
        return time.perf_counter() - began

    for new in (1, _NEW):
        seconds(new)  # compiles, captures and allocates
    differences = [seconds(_NEW) - seconds(1) for _ in range(repeats)]
    return 1e3 * statistics.median(differences) / (_NEW - 1)


@contextmanager
def drl_engine(bundle: Path, device: str, path: str, largest: int) -> Iterator[Generate]:
    """An engine of this project, closed at the end.

    Raises:
        DrlError: The device, its library or the bundle's engines for it are missing.
    """

    def generate(sources: list[list[int]], new: int) -> Any:
        config = GenerationConfig(max_new_tokens=new, min_new_tokens=new, logprobs=False)
        return engine.generate(sources, config, path=path)

    with Engine.from_bundle(bundle, device=device, max_batch_size=largest) as engine:
        yield generate


@contextmanager
def transformers_engine(checkpoint: Path, mode: str, dtype: str) -> Iterator[Generate]:
    """Transformers on the GPU, whose memory is given back at the end.

    Raises:
        ImportError: PyTorch or Transformers is missing.
        RuntimeError: PyTorch sees no GPU.
    """
    import torch
    import transformers

    if not torch.cuda.is_available():
        raise RuntimeError(f"PyTorch {torch.__version__} sees no NVIDIA GPU")
    made = transformers.AutoModelForSeq2SeqLM.from_pretrained(checkpoint)
    model: Any = made.to(getattr(torch, dtype)).eval().to("cuda")
    if mode == "compiled":
        model.forward = torch.compile(model.forward, dynamic=True)

    def generate(sources: list[list[int]], new: int) -> Any:
        tokens = torch.tensor(sources, device="cuda")
        with torch.inference_mode():
            rows = model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=False,
                num_beams=1,
            )
        return rows.cpu()

    yield generate
    model.to("cpu")
    torch.cuda.empty_cache()


def table(results: list[Timed]) -> str:
    """Engines by batch sizes, in Markdown."""
    batches = sorted({result.batch for result in results})
    lines = ["| ms per step | " + " | ".join(f"batch {b}" for b in batches) + " |"]
    lines.append("|---|" + "--:|" * len(batches))
    for engine in dict.fromkeys(result.engine for result in results):
        times = {r.batch: f"{r.milliseconds:.2f}" for r in results if r.engine == engine}
        lines.append(f"| {engine} | " + " | ".join(times.get(b, "–") for b in batches) + " |")
    return "\n".join(lines) + "\n"


@click.command()
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--checkpoint", type=click.Path(exists=True, path_type=Path), help="For Transformers."
)
@click.option("--batch", default="1,8,32", help="Batch sizes, separated by commas.")
@click.option("--source", default=64, help="Tokens of every source.")
@click.option("--devices", default=",".join(DEVICES), help="Backends to time.")
@click.option("--path", default="auto", help="Decoding path; auto: what the router chooses.")
@click.option("--dtype", default="float16", help="Of Transformers' model: float16 or bfloat16.")
@click.option("--repeats", default=5)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write results here.")
def main(
    bundle: Path,
    checkpoint: Path | None,
    batch: str,
    source: int,
    devices: str,
    path: str,
    dtype: str,
    repeats: int,
    json_path: Path | None,
) -> None:
    """Time greedy decoding steps of a bundle on every backend that works here."""
    batches = [int(size) for size in batch.split(",")]
    engines: list[tuple[str, Callable[[], AbstractContextManager[Generate]]]] = [
        (f"drl {device}", partial(drl_engine, bundle, device, path, max(batches)))
        for device in devices.split(",")
    ]
    if checkpoint is not None:
        engines += [
            (f"transformers {mode}", partial(transformers_engine, checkpoint, mode, dtype))
            for mode in PEERS
        ]
    words = Bundle.load(bundle).manifest.limits.vocab_size
    results: list[Timed] = []
    skipped: dict[str, str] = {}
    for name, load in engines:
        try:
            with load() as generate:
                for size in batches:
                    sources = random_sources(Cell(size, source, _NEW, path), words, seed=0)
                    taken = step_milliseconds(generate, sources, repeats)
                    results.append(Timed(name, size, taken))
        except (DrlError, ImportError, RuntimeError) as error:
            skipped[name] = " ".join(str(error).split())
            click.echo(f"SKIPPED {name}: {skipped[name]}", err=True)
    if not results:
        raise click.ClickException("none of the engines works here; see above")
    click.echo(table(results))
    if json_path is not None:
        document = {"results": [asdict(r) for r in results], "skipped": skipped}
        json_path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
