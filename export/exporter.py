"""The recipe from checkpoint to bundle: load, emit, passes, write, verify."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx_ir as ir

from drl.export.bundle_writer import BundleContents, new_folder, write_json, write_manifest
from drl.export.checkpoint import TOKENIZER_FILE, Checkpoint, load_checkpoint
from drl.export.graph import emit_bridge, emit_decoder, emit_encoder
from drl.export.parity import TOLERANCE, ParityReport
from drl.export.passes import AppendFunctionBodies, LowerCachedAttention
from drl.export.verify import verify
from drl.export.weights import WeightPlan
from drl.runtime.backends import open_backend
from drl.runtime.bundle import Bundle
from drl.runtime.errors import ExportError

Target = Literal["portable", "ort-cpu"]
Precision = Literal["fp32"]
PARITY_FILE = "parity.json"


@dataclass(frozen=True)
class ExportOptions:
    """What to make of a checkpoint.

    Attributes:
        target: `portable` graphs run on any ONNX runtime of opset 24; `ort-cpu` ones use ONNX
            Runtime's own attention kernel over a shared cache.
        precision: Of weights and arithmetic.
        force: Whether to replace an existing bundle.
        verify: Whether to hold the bundle against the eager model.
    """

    target: Target = "ort-cpu"
    precision: Precision = "fp32"
    force: bool = False
    verify: bool = True


def export(
    source: Path,
    destination: Path,
    options: ExportOptions = ExportOptions(),
    progress: Callable[[str], None] = lambda _: None,
) -> ParityReport | None:
    """Make the bundle `destination` from the checkpoint `source`.

    Args:
        source: A checkpoint folder, or a state dict beside its `config.json`.
        destination: The bundle's folder, which must not exist unless `options.force`.
        options: Target, precision and checks.
        progress: Told of every stage as it begins.

    Returns:
        How the bundle compares with the eager model, or None without `options.verify`.

    Raises:
        CheckpointError: The checkpoint is unusable.
        ExportError: The bundle cannot be written, or does not reproduce the model. Nothing is
            left behind then.
    """
    with new_folder(destination, force=options.force) as folder:
        progress("load")
        checkpoint = load_checkpoint(source)
        progress("emit")
        weights = WeightPlan()
        graphs = emit_graphs(checkpoint, weights)
        progress("passes")
        graphs = {name: lower(model, options.target) for name, model in graphs.items()}
        contents = BundleContents(checkpoint.config, options.target, options.precision, graphs)
        progress("write")
        _write(folder, checkpoint, weights, contents)
        if not options.verify:
            return None
        progress("verify")
        report = _verify(folder, checkpoint)
        write_json(folder / PARITY_FILE, report.to_dict())
        write_manifest(folder, contents, report.summary())
        return report


def emit_graphs(checkpoint: Checkpoint, weights: WeightPlan) -> dict[str, ir.Model]:
    """Emit the three canonical graphs over one plan of the weights file."""
    emitters = {"encoder": emit_encoder, "bridge": emit_bridge, "decoder": emit_decoder}
    return {name: emit(checkpoint.config, weights) for name, emit in emitters.items()}


def lower(model: ir.Model, target: Target) -> ir.Model:
    """Run the passes of a target over a canonical graph."""
    passes: list[ir.passes.PassBase] = []
    if target == "ort-cpu" and model.graph.name == "decoder":
        passes.append(LowerCachedAttention())
    passes.append(AppendFunctionBodies())
    return ir.passes.Sequential(*passes)(model).model


def _write(
    folder: Path, checkpoint: Checkpoint, weights: WeightPlan, contents: BundleContents
) -> None:
    weights.write(checkpoint, folder)
    for name, model in contents.graphs.items():
        ir.save(model, folder / f"{name}.onnx")
    if checkpoint.tokenizer is not None:
        shutil.copyfile(checkpoint.tokenizer, folder / TOKENIZER_FILE)
    write_manifest(folder, contents, parity=None)


def _verify(folder: Path, checkpoint: Checkpoint) -> ParityReport:
    backend = open_backend(Bundle.load(folder, verify_hashes=False), device="cpu")
    try:
        report = verify(checkpoint.model(), backend)
    finally:
        backend.close()
    if not report.passed:
        raise ExportError(
            f"the bundle does not reproduce the model: logits differ by {report.drift:.1e} "
            f"(limit {TOLERANCE:.0e}), {report.routes.wrong} routes are wrong; "
            "--no-verify writes it all the same, to be looked into"
        )
    return report
