"""`drl-export`: the front door, from a checkpoint to a bundle."""

from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from drl.export.command_line import StageClock, extra_needed
from drl.export.comparison_lines import describe_parity, describe_quantization
from drl.export.options import ExportOptions, KvCache, Precision, Target
from drl.runtime.bundle import Bundle
from drl.runtime.commands.common import clean_errors, file_size

if TYPE_CHECKING:
    from drl.export.exporter import ExportReport

_STAGES = {
    "load": "reading the checkpoint",
    "emit": "emitting the graphs",
    "passes": "lowering them to the target",
    "write": "writing graphs and weights",
    "verify against transformers": "comparing with transformers",
    "verify": "comparing with eager PyTorch",
    "evaluate": "answering the evaluation set",
}


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
    "int8: a quarter of the size. int8-block: finer, a step per 32 inputs. int4+int8-head: int4 in "
    "the layers. int4: the head too; a tied embedding is then stored in fp32 beside it.",
)
@click.option(
    "--kv-cache",
    type=click.Choice(get_args(KvCache)),
    default="fp32",
    show_default=True,
    help="Keys and values of a quantised bundle: int8 takes a quarter of the memory, and less time "
    "where caches are long.",
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
    kv_cache: KvCache,
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
    with extra_needed():  # PyTorch takes seconds, and Ctrl-C works from the first
        from drl.export.exporter import export
        from drl.export.rename import read_rename
    clock = StageClock(_STAGES)
    options = ExportOptions(
        target,
        precision,
        kv_cache,
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


def _describe(bundle: Bundle, report: "ExportReport") -> str:
    """Return the table that ends an export: files, nodes and parity."""
    manifest = bundle.manifest
    cache = ", int8 keys and values" if manifest.cache.dtype == "int8" else ""
    lines = ["", f"{bundle.folder}  ({manifest.target}, {manifest.precision}{cache})"]
    nodes = {graph.file: graph.nodes for graph in bundle.manifest.graphs.values()}
    width = max(map(len, bundle.manifest.files))
    for name, info in bundle.manifest.files.items():
        count = f"{nodes[name]} nodes" if name in nodes else ""
        lines.append(f"  {name:<{width}}{file_size(info.bytes):>10}  {count}")
    if report.parity is not None:
        lines += describe_parity(report.parity)
    if report.quantization is not None:
        lines += describe_quantization(report.quantization)
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
