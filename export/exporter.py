"""The recipe from checkpoint to bundle: load, emit, passes, write, verify."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from drl.export.bundle_writer import (
    CANONICAL_DECODER,
    BundleContents,
    new_folder,
    write_json,
    write_manifest,
)
from drl.export.checkpoint import Checkpoint, load_checkpoint
from drl.export.evaluation import Pair, check_pairs, count_right, read_pairs
from drl.export.graph import emit_bridge, emit_decoder, emit_encoder
from drl.export.model import DualRouterModel, ModelConfig
from drl.export.options import DEFAULTS, ExportOptions, KvCache, Precision
from drl.export.parity import TOLERANCE, ParityReport
from drl.export.passes import AppendFunctionBodies, LowerCachedAttention
from drl.export.quantization_report import Accuracy, QuantizationReport
from drl.export.tokenizers import FoundTokenizer, find_tokenizer
from drl.export.verify import Expectation, compare, expect
from drl.export.verify_quantized import compare_quantized, expect_quantized
from drl.export.verify_transformers import ForeignParity, verify_against_transformers
from drl.export.weights import WeightPlan
from drl.runtime.backends import open_backend
from drl.runtime.bundle import TOKENIZER_NAME, Bundle
from drl.runtime.errors import ExportError

PARITY_FILE = "parity.json"
PORTABLE = ExportOptions(target="portable")


@dataclass(frozen=True)
class ExportReport:
    """What came of an export.

    Attributes:
        parity: An fp32 bundle against the eager model, or None without `options.verify`.
        quantization: A quantised bundle against the eager model, or None likewise.
        transformers: The eager model against transformers, if that was asked for.
        generation_left_out: Generation defaults of the checkpoint that the runtime cannot follow.
        tokenizer_note: Where a converted tokenizer came from, or why there is none; else empty.
    """

    parity: ParityReport | None
    quantization: QuantizationReport | None
    transformers: ForeignParity | None
    generation_left_out: tuple[str, ...]
    tokenizer_note: str = ""


def export(
    source: Path,
    destination: Path,
    options: ExportOptions = DEFAULTS,
    progress: Callable[[str], None] = lambda _: None,
) -> ExportReport:
    """Make the bundle `destination` from the checkpoint `source`.

    Args:
        source: A checkpoint folder, or a state dict beside its `config.json`.
        destination: The bundle's folder, which must not exist unless `options.force`.
        options: Target, precision and checks.
        progress: Told of every stage as it begins.

    Returns:
        What was made, and how it compares.

    Raises:
        CheckpointError: The checkpoint is unusable.
        ExportError: The bundle cannot be written, or does not reproduce the model. Nothing is
            left behind then.
    """
    pairs = None if options.evaluate is None else read_pairs(options.evaluate)
    with new_folder(destination, force=options.force) as folder:
        progress("load")
        checkpoint = load_checkpoint(source, options.rename)
        tokenizer = find_tokenizer(_folder(source), checkpoint.config.vocab_size)
        if pairs is not None:
            check_pairs(pairs, tokenizer, checkpoint.config.max_source_length)
        contents, weights = _build(checkpoint, options, progress)
        progress("write")
        _write(folder, checkpoint, weights, contents, tokenizer)
        foreign = None
        if options.verify_against_transformers:
            progress("verify against transformers")
            foreign = _verify_against_transformers(source, checkpoint.model())
        parity, quantization = None, None
        if options.verify:
            progress("verify")
            if options.quantized:
                quantization = _verify_quantized(folder, checkpoint, options, weights)
            else:
                parity = _verify(folder, expect(checkpoint.model()))
        if quantization is not None and pairs is not None:
            progress("evaluate")
            accuracy = _evaluate(folder, checkpoint, tokenizer, pairs)
            quantization = replace(quantization, accuracy=accuracy)
        report = parity or quantization
        if report is not None:
            write_json(folder / PARITY_FILE, report.to_dict())
            write_manifest(folder, contents, report.summary())
        left_out = checkpoint.generation.left_out
        return ExportReport(parity, quantization, foreign, left_out, tokenizer.note)


def emit_graphs(
    config: ModelConfig, weights: WeightPlan, precision: Precision, kv_cache: KvCache = "fp32"
) -> dict[str, ir.Model]:
    """Emit the three canonical graphs over one plan of the weights file."""
    return {
        "encoder": emit_encoder(config, weights, precision),
        "bridge": emit_bridge(config, weights, precision, kv_cache),
        "decoder": emit_decoder(config, weights, precision, kv_cache),
    }


def lower(model: ir.Model, options: ExportOptions) -> ir.Model:
    """Run the passes of a target over a canonical graph.

    Quantised graphs are made for the kernels of ours, and one of them is attention over the cache.
    """
    passes: list[ir.passes.PassBase] = []
    decoder = model.graph.name == "decoder"
    if options.target == "ort-cpu" and decoder and not options.quantized:
        passes.append(LowerCachedAttention())
    passes.append(AppendFunctionBodies())
    return ir.passes.Sequential(*passes)(model).model


def _build(
    checkpoint: Checkpoint, options: ExportOptions, progress: Callable[[str], None]
) -> tuple[BundleContents, WeightPlan]:
    """Make the graphs, and the plan of their weights."""
    progress("emit")
    weights = WeightPlan()
    config, canonical = checkpoint.config, None
    graphs = emit_graphs(config, weights, options.precision, options.kv_cache)
    if options.target == "ort-cpu" and not options.quantized:
        canonical = lower(graphs["decoder"], PORTABLE)
        # Last, so that its weights lie behind those of the canonical graphs.
        graphs["decoder"] = emit_decoder(config, weights, panels=True)
    progress("passes")
    graphs = {name: lower(model, options) for name, model in graphs.items()}
    contents = BundleContents(
        config,
        options.target,
        options.precision,
        graphs,
        checkpoint.generation.options,
        canonical,
        options.kv_cache,
    )
    return contents, weights


def _folder(source: Path) -> Path:
    """Return the folder of a checkpoint that may be given by its weights file."""
    return source if source.is_dir() else source.parent


def _write(
    folder: Path,
    checkpoint: Checkpoint,
    weights: WeightPlan,
    contents: BundleContents,
    tokenizer: FoundTokenizer,
) -> None:
    weights.write(checkpoint, folder)
    for name, model in contents.graphs.items():
        ir.save(model, folder / f"{name}.onnx")
    if contents.canonical_decoder is not None:
        ir.save(contents.canonical_decoder, folder / CANONICAL_DECODER)
    if tokenizer.content is not None:
        (folder / TOKENIZER_NAME).write_bytes(tokenizer.content)
    write_manifest(folder, contents, parity=None)


def _verify_against_transformers(source: Path, model: DualRouterModel) -> ForeignParity:
    parity = verify_against_transformers(_folder(source), model)
    if not parity.passed:
        raise ExportError(
            f"the model as imported differs from transformers {parity.version}: encoder states by "
            f"{parity.encoder:.1e}, logits by {parity.logits:.1e} (limit {TOLERANCE:.0e}); "
            "please report it with the folder's config.json"
        )
    return parity


def _verify(folder: Path, expected: Expectation) -> ParityReport:
    backend = open_backend(Bundle.load(folder, verify_hashes=False), device="cpu")
    try:
        report = compare(expected, backend)
    finally:
        backend.close()
    uncompared = [path.path for path in report.paths if not path.positions]
    if uncompared and not report.routes.wrong:
        raise ExportError(
            f"nothing is left to compare on path {uncompared[0]}: every row left the comparison at "
            "a near tie of experts that fell the other way; --no-verify writes it all the same"
        )
    if not report.passed:
        raise ExportError(
            f"the bundle does not reproduce the model: logits differ by {report.drift:.1e} "
            f"(limit {TOLERANCE:.0e}), {report.routes.wrong} routes are wrong; "
            "--no-verify writes it all the same, to be looked into"
        )
    return report


def _verify_quantized(
    folder: Path, checkpoint: Checkpoint, options: ExportOptions, weights: WeightPlan
) -> QuantizationReport:
    expected = expect_quantized(checkpoint, options.precision, kv_cache=options.kv_cache)
    fp32 = WeightPlan()
    emit_graphs(checkpoint.config, fp32, "fp32")
    backend = open_backend(Bundle.load(folder, verify_hashes=False), device="cpu")
    try:
        report = compare_quantized(expected, backend, weights.size, fp32.size)
    finally:
        backend.close()
    if not report.passed:
        failure = next(path.failure for path in report.paths if path.failure)
        raise ExportError(
            f"the bundle does not compute what the rounded model does: {failure}; "
            "--no-verify writes it all the same, to be looked into"
        )
    return report


def _evaluate(
    folder: Path, checkpoint: Checkpoint, tokenizer: FoundTokenizer, pairs: list[Pair]
) -> Accuracy:
    """Count the right answers of the bundle in `folder`, and of an fp32 one made for that."""
    quantized = count_right(folder, pairs)
    with tempfile.TemporaryDirectory(prefix=f"{folder.name}-", dir=folder.parent) as temporary:
        contents, weights = _build(checkpoint, DEFAULTS, lambda _: None)
        _write(Path(temporary), checkpoint, weights, contents, tokenizer)
        return Accuracy(len(pairs), count_right(Path(temporary), pairs), quantized)
