"""`drl-export`: the front door, from a checkpoint to a bundle."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from drl.export.options import ExportOptions, Precision, Target
from drl.runtime.bundle import Bundle
from drl.runtime.commands.common import clean_errors, file_size
from drl.runtime.errors import ExportError

if TYPE_CHECKING:
    from drl.export.exporter import ExportReport
    from drl.export.parity import ParityReport
    from drl.export.quantization_report import QuantizationReport

_EXTRA = ("torch", "onnx", "onnx_ir", "onnxscript", "safetensors")

_STAGES = {
    "load": "reading the checkpoint",
    "emit": "emitting the graphs",
    "passes": "lowering them to the target",
    "write": "writing graphs and weights",
    "verify against transformers": "comparing with transformers",
    "verify": "comparing with eager PyTorch",
    "evaluate": "answering the evaluation set",
}


class _StageClock:
    """Prints each stage as it begins, and the seconds it took when the next one does."""

    def __init__(self) -> None:
        self._begun: float | None = None

    def __call__(self, stage: str) -> None:
        self.finish()
        click.echo(f"{_STAGES[stage]:<30}", nl=False, err=True)
        self._begun = time.perf_counter()

    def finish(self, note: str = "") -> None:
        """End the stage under way, if there is one."""
        if self._begun is not None:
            seconds = time.perf_counter() - self._begun
            click.echo(note or f"{seconds:6.1f} s", err=True)
            self._begun = None


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--target",
    type=click.Choice(get_args(Target)),
    default="ort-cpu",
    show_default=True,
    help="portable: standard operators only. ort-cpu: ONNX Runtime's own attention kernel.",
)
@click.option(
    "--precision",
    type=click.Choice(get_args(Precision)),
    default="fp32",
    show_default=True,
    help="fp32, or rounded weights in the layers and in the head, for the kernels of drl on a CPU. "
    "int8: a quarter of the size. int4+int8-head: int4 in the layers. int4: the head too; a tied "
    "embedding is then stored in fp32 beside it.",
)
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@click.option("--no-verify", is_flag=True, help="Do not compare the bundle with eager PyTorch.")
@click.option(
    "--verify-against",
    type=click.Choice(["transformers"]),
    help="Compare the imported model with another implementation too.",
)
@click.option(
    "--rename",
    type=click.Path(path_type=Path),
    metavar="MAP.json",
    help="Our tensor names to the checkpoint's, as a JSON object; * stands for the same in both.",
)
@click.option(
    "--evaluate",
    type=click.Path(path_type=Path),
    metavar="PAIRS.jsonl",
    help='JSON lines {"source": "…", "target": "…"}: tell how many a quantised bundle answers '
    "exactly, and how many an fp32 one.",
)
@clean_errors
def main(
    checkpoint: Path,
    bundle: Path,
    target: Target,
    precision: Precision,
    force: bool,
    no_verify: bool,
    verify_against: str | None,
    rename: Path | None,
    evaluate: Path | None,
) -> None:
    """Export CHECKPOINT, a folder or a state dict beside its config.json, to the folder BUNDLE.

    The bundle is checked against the PyTorch model before it takes its place; a failed or
    interrupted export leaves nothing behind.
    """
    with _extra_needed():  # PyTorch takes seconds, and Ctrl-C works from the first
        from drl.export.exporter import export
        from drl.export.rename import read_rename
    clock = _StageClock()
    options = ExportOptions(
        target,
        precision,
        force=force,
        verify=not no_verify,
        verify_against_transformers=verify_against is not None,
        rename=None if rename is None else read_rename(rename),
        evaluate=evaluate,
    )
    try:
        report = export(checkpoint, bundle, options, progress=clock)
    except BaseException:
        clock.finish(note="failed")
        raise
    clock.finish()
    click.echo(_describe(Bundle.load(bundle, verify_hashes=False), report))


@contextmanager
def _extra_needed() -> Iterator[None]:
    """Say how to install a library of the extra `export` that the block fails to import."""
    try:
        yield
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library not in _EXTRA:
            raise
        raise ExportError(
            f'{library} is not installed, and exporting needs it; run `pip install ".[export]"`'
        ) from None


def _describe(bundle: Bundle, report: "ExportReport") -> str:
    """Return the table that ends an export: files, nodes and parity."""
    lines = ["", f"{bundle.folder}  ({bundle.manifest.target}, {bundle.manifest.precision})"]
    nodes = {graph.file: graph.nodes for graph in bundle.manifest.graphs.values()}
    width = max(map(len, bundle.manifest.files))
    for name, info in bundle.manifest.files.items():
        count = f"{nodes[name]} nodes" if name in nodes else ""
        lines.append(f"  {name:<{width}}{file_size(info.bytes):>10}  {count}")
    if report.parity is not None:
        lines += _describe_parity(report.parity)
    if report.quantization is not None:
        lines += _describe_quantization(report.quantization)
    if report.parity is None and report.quantization is None:
        lines.append("  not compared with PyTorch (--no-verify)")
    if report.transformers is not None:
        found = report.transformers
        lines.append(f"  largest difference from transformers {found.version}: {found.logits:.1e}")
    if report.tokenizer_note:
        lines.append(f"  tokenizer: {report.tokenizer_note}")
    if report.generation_left_out:
        left_out = ", ".join(report.generation_left_out)
        lines.append(f"  generation defaults that this version leaves out: {left_out}")
    return "\n".join(lines)


def _describe_parity(parity: "ParityReport") -> list[str]:
    positions = sum(path.positions for path in parity.paths)
    lines = [f"  largest difference from PyTorch, over {positions} positions:"]
    for path in parity.paths:
        absolute = f" ({path.absolute:.1e} absolute)" if path.absolute > path.drift else ""
        lines.append(f"    path {path.path:<12} logits {path.drift:.1e}{absolute}")
    routes = parity.routes
    if routes.compared:
        lines.append(
            f"  expert choices: {routes.compared} clear ones, {routes.wrong} wrong; "
            f"{routes.near_ties} near ties, {routes.flips} flipped"
        )
    return lines


def _describe_quantization(report: "QuantizationReport") -> list[str]:
    share = 100 * report.bytes / report.fp32_bytes
    positions = sum(path.positions for path in report.paths)
    lines = [
        f"  weights: {share:.0f} % of fp32",
        f"  predictions against the fp32 model, over {positions} positions:",
    ]
    for path in report.paths:
        clear = f", {_percent(path.clear_same, path.clear)} of clear ones" if path.clear else ""
        lines.append(
            f"    path {path.path:<12} KL {path.kl_mean:.1e} (at most {path.kl_max:.1e}), "
            f"same token {_percent(path.same, path.positions)}{clear}"
        )
    for layer in report.layers:
        flipped = _percent(layer.flips, layer.choices)
        lines.append(f"  expert choices of {layer.layer}: {flipped} flipped")
    if report.path_choices:
        same = _percent(report.path_choices_same, report.path_choices)
        lines.append(f"  path choices: {same} the same")
    worst = max(report.paths, key=lambda path: path.distance)
    lines.append(f"  distance from PyTorch with the same rounding: {worst.distance:.1e}")
    if report.accuracy is not None:
        found = report.accuracy
        lines.append(
            f"  right answers of {found.pairs}: {_percent(found.quantized, found.pairs)}, "
            f"in fp32 {_percent(found.fp32, found.pairs)}"
        )
    return lines


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / max(whole, 1):.1f} %"
