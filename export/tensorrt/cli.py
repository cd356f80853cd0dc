"""`drl-build`: a bundle's graphs to TensorRT engines, which are stored in the bundle."""

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from drl.export.command_line import extra_needed
from drl.export.tensorrt.options import BuildOptions, Precision
from drl.export.tensorrt.progress import Lines
from drl.export.tensorrt.sizes import Range, Sizes
from drl.runtime.backends.tensorrt.library import SHORT_NAMES, default_flavour, flavour_of
from drl.runtime.backends.tensorrt.manifest import EngineOptions
from drl.runtime.bundle import Bundle
from drl.runtime.commands.common import clean_errors, file_size, table
from drl.runtime.errors import ExportError

if TYPE_CHECKING:
    from drl.export.tensorrt.report import BuildReport, FolderReport


def _read_range(ctx: click.Context, param: click.Parameter, value: str | None) -> Range | None:
    """Read `1,8,32`, or one number."""
    try:
        return None if value is None else Range.parse(value)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from None


def _read_capabilities(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> tuple[str, ...]:
    """Read `8.0,8.9`."""
    parts = [] if value is None else [part.strip() for part in value.split(",")]
    for part in parts:
        if not re.fullmatch(r"\d+\.\d", part):
            raise click.BadParameter(f"{part!r} is no compute capability, as 8.9 is", ctx, param)
    return tuple(dict.fromkeys(parts))


_RANGE: dict[str, Any] = {"metavar": "MIN,OPT,MAX", "callback": _read_range}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--flavour",
    type=click.Choice([*SHORT_NAMES.values(), "tensorrt-rtx"]),
    help="tensorrt: NVIDIA's TensorRT, on the GPU that the engines are for. rtx: TensorRT for RTX, "
    "which builds without a GPU. [the one that is installed]",
)
@click.option(
    "--compute-capability",
    metavar="X.Y,…",
    callback=_read_capabilities,
    help="GPUs to build for, with rtx: 8.0,8.9,12.0. Each gets a folder. Without: this machine's.",
)
@click.option(
    "--precision",
    type=click.Choice(get_args(Precision)),
    default="fp16",
    show_default=True,
    help="Of weights and activations; norms and routers are fp32. bf16 has the range of "
    "fp32, which T5 needs. fp8: products in 8 bits, from compute capability 8.9 on.",
)
@click.option("--batch", **_RANGE, help="Rows of the decoder: sources times beams. [1,8,32]")
@click.option("--source", **_RANGE, help="Tokens of a source. [1 to what the model takes]")
@click.option(
    "--new-tokens", **_RANGE, help="Tokens of the decoder's first call, prefix included. [≤ 64]"
)
@click.option("--cache", type=int, help="Positions of the KV cache. [what the model takes]")
@click.option("--beams", **_RANGE, help="Rows that share a source. [1 to all]")
@click.option("--sources", **_RANGE, help="Sources of a batch, in the place of --beams.")
@click.option("--candidates", type=int, help="How many of the likeliest tokens a step ranks. [64]")
@click.option(
    "--plugins/--no-plugins",
    default=None,
    help="Run routed layers in DRL's own CUDA kernels. [with tensorrt]",
)
@click.option(
    "--hardware-compatible", is_flag=True, help="Engines for every GPU from Ampere on, and slower."
)
@click.option(
    "--version-compatible", is_flag=True, help="Engines that later minor versions run, too."
)
@click.option(
    "--weight-streaming", is_flag=True, help="Let weights stay in host memory if the GPU is small."
)
@click.option("--path", "paths", multiple=True, metavar="NAME", help="Only this path; repeatable.")
@click.option("--force", is_flag=True, help="Build what is up to date, too.")
@click.option("--no-gate", is_flag=True, help="Do not run the graphs to see that fp16 holds them.")
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Engines to build at a time; with tensorrt it is one.",
)
@click.option(
    "--time-limit", type=click.FloatRange(min=0, min_open=True), help="Seconds an engine."
)
@click.option(
    "--timing-cache",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Where timings of kernels are kept between builds. [in the user's cache folder]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as a JSON object.")
@clean_errors
def main(bundle: Path, as_json: bool, **chosen: Any) -> None:
    """Build the TensorRT engines of BUNDLE, those that are missing or stale.

    They are stored in BUNDLE/engines, a folder for each flavour, version and GPU. A failed or
    interrupted build changes nothing there.
    """
    options = _options(chosen)
    opened = Bundle.load(bundle)
    with extra_needed():
        from drl.export.tensorrt.builder import build_engines
    lines = Lines(moving=sys.stderr.isatty())
    try:
        report = build_engines(opened, options, lines)
    except BaseException:
        lines.finish(failed=True)
        raise
    lines.finish()
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(report), indent=2, ensure_ascii=False))
    else:
        click.echo(_describe(report))


def _options(chosen: dict[str, Any]) -> BuildOptions:
    """Gather the command's options."""
    names = ("batch", "source", "new_tokens", "beams", "sources")
    if chosen["beams"] is not None and chosen["sources"] is not None:
        raise ExportError("--beams and --sources say the same thing; give one of them")
    flags = {field.name: chosen[field.name] for field in dataclasses.fields(EngineOptions)}
    return BuildOptions(
        flavour=flavour_of(chosen["flavour"]) if chosen["flavour"] else default_flavour(),
        targets=chosen["compute_capability"],
        precision=chosen["precision"],
        sizes=Sizes(**{name: chosen[name] for name in names}, capacity=chosen["cache"]),
        candidates=chosen["candidates"],
        plugins=chosen["plugins"],
        engine=EngineOptions(**flags),
        paths=chosen["paths"],
        force=chosen["force"],
        gate=not chosen["no_gate"],
        jobs=chosen["jobs"],
        time_limit=chosen["time_limit"],
        timing_cache=chosen["timing_cache"],
    )


def _describe(report: "BuildReport") -> str:
    """The tables that end a build: every engine, its size, and why it was built."""
    parts = []
    for folder in report.folders:
        about = f"{report.precision}, cache {report.capacity}, {report.candidates} candidates"
        if report.plugins:
            about += ", plugins"
        parts.append(f"\n{folder.folder}  ({about})\n{_indent(_engines(folder))}")
    if report.gate == "skipped":
        parts.append("\nnot checked whether the precision holds every value (--no-gate)")
    return "\n".join(parts)


def _engines(folder: "FolderReport") -> str:
    rows = []
    for engine in folder.engines:
        state = f"built in {engine.seconds:.1f} s: {engine.reason}"
        rows.append(
            (engine.name, file_size(engine.bytes), state if engine.reason else "up to date")
        )
    rows += [(name, "", f"removed: {reason}") for name, reason in folder.removed.items()]
    return table(rows, right=(1,))


def _indent(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
