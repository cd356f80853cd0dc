"""Quantised graphs against an eager model of the same roundings, over every configuration field."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from drl.export import ExportOptions, ExportReport, export, load_checkpoint, save_checkpoint
from drl.export.exporter import emit_graphs
from drl.export.graph import fused, quantized
from drl.export.model import DualRouterModel, ModelConfig, PathConfig
from drl.export.options import KvCache, Precision
from drl.export.verify_quantized import compare_quantized, expect_quantized
from drl.export.weights import WeightPlan
from drl.runtime.backends import open_backend
from drl.runtime.bundle import Bundle
from drl.runtime.errors import ExportError
from tests.export.graph.test_parity import VARIANTS
from tests.export.graph.test_shared_sources import Graphs
from tests.export.test_exporter import executed_nodes
from tests.models import DENSE, TINY, random_model, tiny_config

BIASED = ("post-norm, biases, learned positions", "normalised gates, biased experts")
pytestmark = pytest.mark.filterwarnings("ignore:.* many times slower:RuntimeWarning")


def uneven_model(config: ModelConfig, seed: int = 0) -> DualRouterModel:
    """A random model in which no norm and no bias could be left out unnoticed."""
    model = random_model(config, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("norm.weight"):
                parameter *= 1 + 0.3 * noise
            elif name.endswith("bias") and "router" not in name:
                parameter += 0.5 * noise
    return model


def make(
    folder: Path, precision: Precision, kv_cache: KvCache = "fp32", **changes: Any
) -> ExportReport:
    """Export a small model to `folder / "bundle"`."""
    save_checkpoint(folder / "checkpoint", uneven_model(tiny_config(**changes)))
    options = ExportOptions(precision=precision, kv_cache=kv_cache)
    return export(folder / "checkpoint", folder / "bundle", options)


def operators(bundle: Path, graph: str) -> Counter[str]:
    """How many nodes of each operator a graph has."""
    manifest = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    return Counter(manifest["graphs"][graph]["operators"])


def tensors(bundle: Path, graph: str) -> dict[str, onnx.TensorProto]:
    model = onnx.load(bundle / f"{graph}.onnx", load_external_data=False)
    return {tensor.name: tensor for tensor in model.graph.initializer}


@pytest.mark.parametrize(
    ("variant", "precision"),
    [(variant, "int8") for variant in VARIANTS]
    + [(variant, "int4") for variant in ("every feature", "two embeddings, untied", *BIASED)]
    + [(variant, "int8-block") for variant in ("every feature", "two embeddings, untied", *BIASED)]
    + [(variant, "int4+int8-head") for variant in ("capacity, router bias", *BIASED)],
)
def test_a_bundle_computes_what_the_rounded_model_computes(
    variant: str, precision: Precision, tmp_path: Path
) -> None:
    report = make(tmp_path, precision, **VARIANTS[variant])
    assert report.parity is None
    assert report.quantization is not None
    assert report.quantization.passed
    for path in report.quantization.paths:
        assert path.positions == 4 * 36
        assert path.distance <= 0.02
    for name in ("encoder", "bridge", "decoder"):
        onnx.checker.check_model(tmp_path / "bundle" / f"{name}.onnx", full_check=True)


@pytest.mark.parametrize(
    ("variant", "precision"),
    [(variant, "int8") for variant in VARIANTS] + [("every feature", "int4")],
)
def test_a_bundle_with_a_cache_of_int8_computes_what_the_rounded_model_computes(
    variant: str, precision: Precision, tmp_path: Path
) -> None:
    found = make(tmp_path, precision, "int8", **VARIANTS[variant]).quantization
    assert found is not None
    assert found.passed
    assert all(path.positions == 4 * 36 for path in found.paths)
    manifest = Bundle.load(tmp_path / "bundle").manifest
    config = tiny_config(**VARIANTS[variant])
    cache = manifest.cache
    assert (cache.dtype, cache.row_width) == ("int8", config.head_dim + 2)
    for graph, kinds in (("bridge", ("cross",)), ("decoder", ("cross", "past", "present"))):
        info = manifest.graphs[graph]
        states = [t for t in (*info.inputs, *info.outputs) if t.name.startswith(kinds)]
        states = [t for t in states if t.name != "cross_bias"]
        assert len(states) == 2 * len(kinds) * config.decoder_layers
        assert {(t.dtype, t.shape[1], t.shape[3]) for t in states} == {
            ("int8", config.kv_heads, config.head_dim + 2)
        }
        onnx.checker.check_model(tmp_path / "bundle" / f"{graph}.onnx", full_check=True)
    found_operators = operators(tmp_path / "bundle", "decoder")
    for name in ("CachedAttention", "CrossAttention"):
        assert found_operators[f"drl.Quantized{name}"] == config.decoder_layers
        assert found_operators[f"drl.{name}"] == 0


def test_a_model_that_does_not_round_its_cache_is_another(tmp_path: Path) -> None:
    """Most positions of the bundle equal the model with its roundings, and few those of another."""
    make(tmp_path, "int8", "int8", **VARIANTS["dense with relative bias"])
    checkpoint = load_checkpoint(tmp_path / "checkpoint")
    backend = open_backend(Bundle.load(tmp_path / "bundle"))
    kinds: tuple[KvCache, ...] = ("int8", "fp32")
    right, wrong = (
        compare_quantized(expect_quantized(checkpoint, "int8", kv_cache=kind), backend, 1, 4)
        for kind in kinds
    )
    backend.close()
    assert max(path.distance for path in right.paths) < 1e-5
    assert min(path.distance for path in wrong.paths) > 1e-4


def test_a_layer_of_products_is_a_few_operators(tmp_path: Path) -> None:
    make(tmp_path, "int8", **DENSE)
    layers = 4
    found = operators(tmp_path / "bundle", "decoder")
    assert found["drl.QuantizedProjections"] == layers
    assert found["drl.CachedAttention"] == layers
    assert found["drl.CrossAttention"] == layers
    # self-attention's o; cross-attention's q and o; the gated pair, and down
    assert found["drl.QuantizedLinear"] == 5 * layers
    assert (found["drl.QuantizedHead"], found["drl.QuantizedGather"]) == (1, 1)
    left = {"RMSNormalization", "MatMul", "Gemm", "Attention", "Swish", "If"}
    assert not left & found.keys()
    assert found["Add"] == 1  # positions
    encoder = operators(tmp_path / "bundle", "encoder")
    assert encoder["drl.QuantizedLinear"] == 3 * 3
    assert (encoder["drl.QuantizedProjections"], encoder["drl.EncoderAttention"]) == (3, 3)
    assert not {"Attention", "MatMul", "Where"} & encoder.keys()
    assert encoder["RMSNormalization"] == 1  # the states are an output
    assert operators(tmp_path / "bundle", "bridge")["drl.QuantizedLinear"] == 2 * layers


@pytest.mark.parametrize(
    ("changes", "norms"),
    [({"norm": "layer"}, 3 * 4 + 1), ({"norm": "layer", "norm_position": "post"}, 3 * 4)],
    ids=["layer norm first", "layer norm after"],
)
def test_a_norm_that_no_product_can_do_stays_a_node(
    changes: dict[str, Any], norms: int, tmp_path: Path
) -> None:
    make(tmp_path, "int8", **DENSE | changes)
    found = operators(tmp_path / "bundle", "decoder")
    assert found["LayerNormalization"] == norms
    assert found["drl.QuantizedLinear"] == 5 * 4
    assert found["Add"] == 1


def test_a_sparse_layer_norms_once_for_router_and_experts(tmp_path: Path) -> None:
    make(tmp_path, "int8", **DENSE | {"decoder_sparse_layers": (2,), "experts_per_group": 4})
    found = operators(tmp_path / "bundle", "decoder")
    assert found["RMSNormalization"] == 1
    assert (found["drl.ExpertRoute"], found["drl.QuantizedRoutedFFN"]) == (1, 1)
    assert found["drl.RoutedFFN"] == 0
    assert found["Add"] == 1  # the shared expert takes the residual, the experts take its sum


@pytest.mark.parametrize(
    ("precision", "tied", "gathered"),
    [
        ("int8", True, True),
        ("int8-block", True, True),
        ("int4+int8-head", True, True),
        ("int4", True, False),
        ("int8", False, False),
    ],
)
def test_a_tied_head_of_8_bits_is_the_embedding_and_is_stored_once(
    precision: Precision, tied: bool, gathered: bool, tmp_path: Path
) -> None:
    make(tmp_path, precision, **DENSE | {"tie_embeddings": tied})
    bundle = tmp_path / "bundle"
    for graph in ("encoder", "decoder"):
        assert operators(bundle, graph)["drl.QuantizedGather"] == gathered
        stored = tensors(bundle, graph)
        assert ("embedding.weight" in stored) != gathered
        assert ("embedding.weight.packed" in stored) == (gathered or (tied and graph == "decoder"))
    assert ("lm_head.weight.packed" in tensors(bundle, "decoder")) != tied
    places = {
        graph: {entry.key: entry.value for entry in found.external_data}
        for graph in ("encoder", "decoder")
        if (found := tensors(bundle, graph).get("embedding.weight.packed")) is not None
    }
    assert len({(place["offset"], place["length"]) for place in places.values()}) <= 1


def test_two_embeddings_pack_the_one_that_the_head_is_tied_to(tmp_path: Path) -> None:
    make(tmp_path, "int8", **DENSE | {"shared_embedding": False})
    assert operators(tmp_path / "bundle", "encoder")["drl.QuantizedGather"] == 0
    assert operators(tmp_path / "bundle", "decoder")["drl.QuantizedGather"] == 1


def test_routers_norms_and_tables_stay_fp32(tmp_path: Path) -> None:
    make(tmp_path, "int4")
    packed = {
        name
        for graph in ("encoder", "bridge", "decoder")
        for name, tensor in tensors(tmp_path / "bundle", graph).items()
        if tensor.data_type == onnx.TensorProto.UINT8
    }
    modules = {name.rpartition(".")[0] for name in packed}
    assert {name.rpartition(".")[2] for name in packed} == {"packed", "multiplier"}
    assert "decoder.layers.1.self_attention.qkv" in modules
    assert "decoder.layers.1.ffn.experts.gate" in modules
    assert "decoder.layers.1.ffn.shared.gate_up" in modules
    assert "decoder.layers.0.ffn.down.weight" in modules
    assert "encoder.layers.0.ffn.gate_up" in modules
    assert not [name for name in modules if "router" in name or "norm" in name]


@pytest.mark.parametrize(
    ("precision", "megabytes"),
    [("fp32", 242), ("int8", 61), ("int8-block", 63), ("int4", 98), ("int4+int8-head", 40)],
)
def test_the_weights_shrink_as_they_should(precision: Precision, megabytes: int) -> None:
    """T5-small: 60.5 million parameters, of which 16.4 million are words."""
    t5_small = ModelConfig(
        vocab_size=32128,
        d_model=512,
        encoder_layers=6,
        decoder_layers=6,
        num_heads=8,
        kv_heads=8,
        head_dim=64,
        d_ff=2048,
        paths=(PathConfig("full", tuple(range(6))),),
        activation="relu",
        position="t5_bias",
    )
    weights = WeightPlan()
    emit_graphs(t5_small, weights, precision)
    assert round(weights.size / 1e6) == megabytes


def test_exporting_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    make(tmp_path, "int4+int8-head")
    options = ExportOptions(precision="int4+int8-head")
    export(tmp_path / "checkpoint", tmp_path / "again", options)
    for path in sorted((tmp_path / "bundle").iterdir()):
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


def run_decoder(bundle: Path, config: ModelConfig, path: int, candidates: int) -> dict[str, Any]:
    """One call of three tokens for two rows, in a plain session."""
    graphs = Graphs(bundle, config)
    cross = {name: array[:2] for name, array in graphs.cross(path).items()}
    session = graphs.session("decoder")
    feeds: dict[str, Any] = cross | {
        "tokens": np.array([[2, 5, 9], [2, 7, 3]]),
        "lengths": np.zeros(2, np.int32),
        "new_lengths": np.full(2, 3, np.int32),
        "candidates": np.array([candidates]),
        "path": np.array(path),
    }
    for layer in range(config.decoder_layers):
        length = 4 if layer in config.paths[path].layers else 0
        cache = np.zeros((2, config.kv_heads, length, config.head_dim), np.float32)
        feeds |= {f"past_k.{layer}": cache, f"past_v.{layer}": cache}
    wanted = {each.name: feeds[each.name] for each in session.get_inputs()}
    names = [each.name for each in session.get_outputs()]
    return dict(zip(names, session.run(None, wanted), strict=True))


@pytest.mark.parametrize("path", [0, 2])
def test_candidates_are_the_largest_logits_in_their_place(path: int, tmp_path: Path) -> None:
    make(tmp_path, "int8")
    config = tiny_config()
    whole = run_decoder(tmp_path / "bundle", config, path, 0)
    ranked = run_decoder(tmp_path / "bundle", config, path, 5)
    assert whole["logits"].shape == (2, 3, config.vocab_size)
    assert whole["top_values"].shape == whole["top_ids"].shape == (2, 3, 0)
    assert ranked["logits"].shape == (2, 3, 0)
    order = np.argsort(-whole["logits"], axis=-1, kind="stable")[..., :5]
    np.testing.assert_array_equal(ranked["top_ids"], order)
    values = np.take_along_axis(whole["logits"], order, -1)
    np.testing.assert_array_equal(ranked["top_values"], values)
    expected = torch.from_numpy(whole["logits"]).logsumexp(dim=-1)
    for found in (whole, ranked):
        np.testing.assert_allclose(found["normalisers"], expected, rtol=1e-5)


def test_a_skipped_layer_does_no_work(tmp_path: Path) -> None:
    make(tmp_path, "int8")
    products = []
    for path in range(3):
        names = executed_nodes(tmp_path / "bundle", path, tmp_path)
        turned = {re.findall(r"layers\.(\d)", name)[0] for name in names if "Rotary" in name}
        assert turned == {str(layer) for layer in TINY.paths[path].layers}
        products.append(sum("MatMulInteger" in name for name in names))
    fast, balanced, full = products
    assert 0 < fast < balanced < full


def without_residual(monkeypatch: pytest.MonkeyPatch) -> None:
    original = fused.FusedEmitter.linear
    monkeypatch.setattr(
        fused.FusedEmitter,
        "linear",
        lambda self, name, x, *, residual=None: original(self, name, x),
    )


def without_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    original = fused.split
    monkeypatch.setattr(fused, "split", lambda x: (original(x)[0], None))


def without_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    original = fused.FusedEmitter._product
    monkeypatch.setattr(
        fused.FusedEmitter,
        "_product",
        lambda self, x, weight, columns, activation, bias, residual=None: original(
            self, x, weight, columns, activation, None, residual
        ),
    )


def gate_and_up_exchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    original = fused.stacked
    monkeypatch.setattr(fused, "stacked", lambda names: original(names[::-1]))


def query_and_value_exchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    original = fused.joined
    monkeypatch.setattr(fused, "joined", lambda names: original(names[::-1]))


def experts_in_disorder(monkeypatch: pytest.MonkeyPatch) -> None:
    original = quantized.each_transposed

    def shifted(name: str) -> Any:
        make = original(name)
        return lambda checkpoint: make(checkpoint).roll(1, dims=0)

    monkeypatch.setattr(quantized, "each_transposed", shifted)


MISTAKES = {
    without_residual: {},
    without_norm: {},
    without_bias: {"bias": True, "kv_heads": 4},
    gate_and_up_exchanged: {},
    query_and_value_exchanged: {"kv_heads": 4},
    experts_in_disorder: {},
}


@pytest.mark.parametrize("precision", ["int8", "int8-block", "int4"])
@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_a_graph_with_a_mistake_is_refused(
    mistake: Any, precision: Precision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mistake(monkeypatch)
    with pytest.raises(ExportError, match="does not compute what the rounded model does"):
        make(tmp_path, precision, **MISTAKES[mistake])
    assert not (tmp_path / "bundle").exists()
