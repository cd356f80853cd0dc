"""Bundles of every kind of model, and what they are lowered to."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from drl.benchmarks.models import draw_foreign
from drl.export import ExportOptions, export, save_checkpoint
from drl.export.passes import AppendFunctionBodies
from drl.export.tensorrt.float32_form import LoweredGraph, LoweringOptions, lower_in_float32
from drl.export.tensorrt.lowering import lower_bundle
from drl.export.tensorrt.weights_file import externalise
from drl.runtime.backends import Backend, open_backend
from drl.runtime.bundle import Bundle
from tests.export.graph.test_parity import VARIANTS
from tests.export.tensorrt.lowered import LoweredModel
from tests.models import random_model, random_prompts, tiny_config

FOREIGN: dict[str, dict[str, Any]] = {
    "T5": {"d_ff": 96, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "SwitchTransformers": {
        "d_ff": 64,
        "num_experts": 4,
        "num_sparse_encoder_layers": 1,
        "num_sparse_decoder_layers": 1,
        "expert_capacity": 3,
    },
}
SUBJECTS = [*VARIANTS, *FOREIGN]
NUMBERS = Path(__file__).parents[3] / "examples" / "numbers"


@dataclass(frozen=True)
class Subject:
    """A bundle, and token ids to run it on."""

    bundle: Bundle
    sources: Sequence[Sequence[int]]

    def backend(self) -> Backend:
        """The bundle's own backend, which the lowered graphs are held against."""
        return open_backend(self.bundle, device="cpu")

    def lower(self, folder: Path, precision: str = "fp16", **options: Any) -> LoweredModel:
        """Lower the bundle to a new folder, and open the graphs; `fp32` leaves out the typing."""
        folder.mkdir()
        if precision == "fp32":
            _save_in_float32(self.bundle, LoweringOptions(**options), folder)
        else:
            lower_bundle(self.bundle, LoweringOptions(precision, **options), folder)
        return LoweredModel.open(folder, self.bundle.manifest, options.get("capacity"))


def make_subject(name: str, folder: Path) -> Subject:
    """Export the model of this name to `folder`."""
    checkpoint = folder / "checkpoint"
    config = tiny_config(**VARIANTS.get(name, {}))
    if name in FOREIGN:
        save_foreign(name, checkpoint)
    else:
        save_checkpoint(checkpoint, random_model(config))
    export(checkpoint, folder / "bundle", ExportOptions(verify=False))
    return Subject(Bundle.load(folder / "bundle"), random_prompts(4, config))


def save_foreign(kind: str, folder: Path) -> None:
    """Save a small random model of `transformers`."""
    import transformers

    sizes = {"d_model": 48, "d_kv": 8, "num_heads": 4, "num_layers": 2, "num_decoder_layers": 2}
    words = {"vocab_size": 60, "decoder_start_token_id": 0}
    config = getattr(transformers, f"{kind}Config")(**sizes, **words, **FOREIGN[kind])
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
    draw_foreign(model.eval()).save_pretrained(folder)


def _save_in_float32(bundle: Bundle, options: LoweringOptions, folder: Path) -> list[LoweredGraph]:
    graphs = lower_in_float32(bundle, options)
    externalise([graph.model for graph in graphs], folder)
    for graph in graphs:
        AppendFunctionBodies()(graph.model)
        ir.save(graph.model, folder / f"{graph.name}.onnx")
    return graphs
