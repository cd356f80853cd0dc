"""Bundles with rounded weights: held against the model with the same roundings, as exports are.

Layers are not looked at one by one. A value at the boundary of two steps falls to either side by
the last bit of a float, so even two right implementations differ by whole steps from layer to
layer; what a layer's error is could not be told from that. An fp32 bundle of the same checkpoint
goes through the same emitters and shows mistakes of the graphs layer by layer.
"""

from drl.export.exporter import emit_graphs
from drl.export.options import KvCache, Precision
from drl.export.quantization_report import QuantizationReport
from drl.export.verification.options import VerifyOptions
from drl.export.verification.reference import checkpoint_of
from drl.export.verify import Sample
from drl.export.verify_quantized import compare_quantized, expect_quantized
from drl.export.weights import WEIGHTS_FILE, WeightPlan
from drl.runtime.backends import open_backend
from drl.runtime.bundle import Bundle
from drl.runtime.errors import ExportError

_BACKENDS = ("ort-cpu",)


def compare_rounded(bundle: Bundle, options: VerifyOptions, sample: Sample) -> QuantizationReport:
    """Compare a quantised bundle, on `ort-cpu`, with what it should compute.

    Raises:
        CheckpointError: The checkpoint is unusable, or that of another model.
        ExportError: The options do not fit a quantised bundle.
    """
    precision: Precision = bundle.manifest.precision  # type: ignore[assignment]
    _check_options(options, precision)
    if options.checkpoint is None:
        raise ExportError(
            f"{bundle.folder} has {precision} weights, from which the model cannot be rebuilt; "
            "give --checkpoint FOLDER"
        )
    checkpoint = checkpoint_of(bundle, options.checkpoint)
    kv_cache: KvCache = "int8" if bundle.manifest.cache.dtype == "int8" else "fp32"
    expected = expect_quantized(checkpoint, precision, sample, kv_cache)
    plan = WeightPlan()
    emit_graphs(checkpoint.config, plan, "fp32")
    backend = open_backend(bundle, "cpu")
    try:
        size = bundle.manifest.files[WEIGHTS_FILE].bytes
        return compare_quantized(expected, backend, size, plan.size)
    finally:
        backend.close()


def _check_options(options: VerifyOptions, precision: str) -> None:
    other = [name for name in options.backends if name not in _BACKENDS]
    if other:
        raise ExportError(
            f"a bundle with {precision} weights runs on ort-cpu alone, not on {', '.join(other)}; "
            "verify an fp32 bundle of the same checkpoint there"
        )
    given = {"--layers": options.layers, "--force-routes": options.force_routes}
    given["--tolerance"] = bool(options.tolerances)
    for name, on in given.items():
        if on:
            raise ExportError(
                f"{name} is for fp32 bundles: {precision} weights are compared with a model of the "
                "same roundings, by limits of their own; verify an fp32 bundle of the same "
                "checkpoint to look closer"
            )
