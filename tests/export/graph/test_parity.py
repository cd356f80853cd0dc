"""Emitters and modules are held together: every configuration field, both targets."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from drl.export import ExportOptions, export, save_checkpoint
from drl.export.model import PathConfig, PathRouterConfig
from drl.export.options import Target
from drl.export.parity import TOLERANCE
from tests.models import DENSE, random_model, tiny_config

VARIANTS: dict[str, dict[str, Any]] = {
    "every feature": {},
    "relative bias, gated GELU": {
        "position": "t5_bias",
        "attention_scale": 1.0,
        "activation": "gelu_glu",
        "position_buckets": 8,
        "position_max_distance": 20,
    },
    "ReLU, untied, no shared expert": {
        "activation": "relu",
        "tie_embeddings": False,
        "d_shared": 0,
    },
    "GELU, no positions": {"activation": "gelu", "position": "none", "logit_scale": 0.3},
    "SiLU, one group": {
        "activation": "silu",
        "groups": 1,
        "top_groups": 1,
        "experts_per_group": 8,
    },
    "attention head": {"path_router": PathRouterConfig("attention", hidden=9)},
    "greedy head": {"path_router": PathRouterConfig("greedy", threshold=0.3)},
    "no grouped heads": {"kv_heads": 4, "norm_eps": 1e-5, "rope_theta": 500.0},
    "all groups, four experts": {
        "top_groups": 4,
        "experts_per_token": 4,
        "encoder_sparse_layers": (0, 1, 2),
        "decoder_sparse_layers": (0, 1, 2, 3),
    },
    "one path, keeping some states": {
        "paths": (PathConfig("half", (0, 1, 2, 3), experts_per_token=2, keep_ratio=0.5),)
    },
    "one experts count": {
        "paths": (PathConfig("short", (1,)), PathConfig("long", (0, 1, 2, 3), keep_ratio=0.9))
    },
    "dense": DENSE,
    "post-norm, biases, learned positions": DENSE
    | {
        "norm": "layer",
        "norm_position": "post",
        "bias": True,
        "position": "learned",
        "position_offset": 2,
        "embedding_norm": True,
        "activation": "gelu",
        "head_bias": True,
        "embedding_scale": 8.0,
    },
    "sinusoids, final norms after all": DENSE
    | {
        "norm": "layer",
        "norm_position": "post",
        "final_norm": True,
        "position": "sinusoidal",
        "sinusoid_width": 62,
        "position_offset": 2,
        "activation": "gelu_tanh",
        "bias": True,
    },
    "a bias per layer": DENSE | {"position": "t5_bias", "position_bias_per_layer": True},
    "capacity, router bias": {
        "groups": 1,
        "top_groups": 1,
        "experts_per_group": 4,
        "d_shared": 0,
        "expert_capacity": 2,
        "router_bias": True,
        "position": "t5_bias",
        "activation": "relu",
    },
    "normalised gates, biased experts": {
        "gates": "normalized",
        "expert_output_scale": 0.8,
        "bias": True,
        "norm": "layer",
        "router_bias": True,
    },
    "two embeddings, two levels of routing": {"shared_embedding": False},
    "two embeddings, untied": DENSE | {"shared_embedding": False, "tie_embeddings": False},
    "gates of one": {"gates": "one", "activation": "gelu_glu", "bias": True},
    "dense with relative bias": DENSE
    | {"position": "t5_bias", "attention_scale": 1.0, "activation": "relu", "kv_heads": 4},
}


@pytest.mark.parametrize("target", ["portable", "ort-cpu"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_bundle_computes_what_the_model_computes(
    variant: str, target: Target, tmp_path: Path
) -> None:
    config = tiny_config(**VARIANTS[variant])
    save_checkpoint(tmp_path / "checkpoint", random_model(config))
    options = ExportOptions(target=target)
    report = export(tmp_path / "checkpoint", tmp_path / "bundle", options).parity
    assert report is not None
    assert report.drift <= TOLERANCE
    for path in report.paths:
        assert path.drift <= path.absolute <= TOLERANCE
    assert report.encoder <= TOLERANCE
    assert report.routes.wrong == 0
    # rows are only left out of the comparison after a near tie has flipped
    least = 4 * 36 if report.routes.flips == 0 else 36
    assert all(path.positions >= least for path in report.paths)
    for name in ("encoder", "bridge", "decoder"):
        onnx.checker.check_model(tmp_path / "bundle" / f"{name}.onnx", full_check=True)


def test_the_tables_of_level_1_are_constants(tiny_bundle: Path) -> None:
    model = onnx.load(tiny_bundle / "encoder.onnx")
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    assert shapes["group_router.log_probs"] == (60, 4)
    assert shapes["group_router.allowed"] == (60, 4)
    assert "group_router.prototypes" not in shapes


def test_weights_keep_the_names_of_the_checkpoint(tiny_bundle: Path) -> None:
    model = onnx.load(tiny_bundle / "decoder.canonical.onnx")
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    assert tuple(tensors["decoder.layers.1.ffn.experts.up"].dims) == (8, 64, 32)
    stored = onnx.numpy_helper.to_array(tensors["decoder.layers.0.self_attention.k.weight"])
    assert stored.shape == (64, 32)
    assert np.isfinite(stored).all()


def test_nodes_are_scoped_to_their_module(tiny_bundle: Path) -> None:
    model = onnx.load(tiny_bundle / "encoder.onnx", load_external_data=False)
    names = [node.name for node in model.graph.node if node.op_type == "MatMul"]
    assert "encoder/layers.2/ffn/down/MatMul" in {name.rsplit("_node", 1)[0] for name in names}
