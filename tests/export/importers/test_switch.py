"""Switch Transformers against transformers."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from drl.export import load_checkpoint
from drl.export.model.generate import pad
from drl.runtime.errors import CheckpointError, ConfigError
from tests.export.importers.folders import edit_config, edit_weights, read_weights
from tests.export.importers.oracle import assert_reproduced, random_sources
from tests.export.importers.reference import (
    OTHER_PYTHON,
    Drawing,
    Spec,
    other_python,
    reference,
    reference_by,
    save_random,
)

pytest.importorskip("transformers")

VOCABULARY = 80
BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 48,
    "d_kv": 8,
    "d_ff": 40,
    "num_layers": 4,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "num_experts": 4,
    "num_sparse_encoder_layers": 2,
    "num_sparse_decoder_layers": 1,
    "decoder_start_token_id": 0,
}
LENGTHS = (1, 7, 19, 4, 33, 12, 2)


def switch_spec(lengths: tuple[int, ...] = LENGTHS, **changes: Any) -> Spec:
    """Return a small model; a `Spec` field among `changes` is one, others configure."""
    names = {field.name for field in dataclasses.fields(Spec)}
    config = BASE | {name: value for name, value in changes.items() if name not in names}
    given = {name: value for name, value in changes.items() if name in names}
    drawing = Drawing(query=1.5 * config["d_kv"] ** -0.5)
    sources = random_sources(lengths, VOCABULARY)
    return Spec("SwitchTransformersForConditionalGeneration", config, sources, drawing, **given)


SPECS: dict[str, Spec] = {
    "every second layer, every third": switch_spec(),
    "capacity reached": switch_spec(lengths=(60, 7, 19, 40, 33, 12, 2), expert_capacity=3),
    "capacity of 1, every layer sparse": switch_spec(
        lengths=(30, 7, 19, 4, 33, 12, 2),
        expert_capacity=1,
        num_layers=2,
        num_sparse_encoder_layers=2,
        num_sparse_decoder_layers=3,
    ),
    "router bias, many experts, exact GELU": switch_spec(
        router_bias=True, num_experts=13, dense_act_fn="gelu", num_decoder_layers=5
    ),
    "dense encoder, SiLU, odd heads": switch_spec(
        num_sparse_encoder_layers=0, num_layers=1, dense_act_fn="silu", d_kv=6, num_heads=5
    ),
    "dense decoder, long sources, bfloat16": switch_spec(
        lengths=(170, 7, 19, 140, 33, 12, 2),
        num_sparse_decoder_layers=0,
        num_decoder_layers=1,
        relative_attention_max_distance=60,
        dtype="bfloat16",
    ),
    "one expert, outputs of router probabilities": switch_spec(
        num_experts=1, add_router_probs=True, router_ignore_padding_tokens=True
    ),
}


@pytest.mark.parametrize("name", SPECS)
def test_a_model_computes_what_transformers_computes(name: str, tmp_path: Path) -> None:
    expected = reference(SPECS[name], tmp_path / "theirs")
    assert_reproduced(tmp_path / "theirs", expected, tmp_path / "bundle")


@pytest.mark.parametrize(
    ("name", "dropped"),
    [
        ("every second layer, every third", False),
        ("capacity reached", True),
        ("capacity of 1, every layer sparse", True),
    ],
)
def test_capacity_is_reached_where_a_test_says_so(name: str, dropped: bool, tmp_path: Path) -> None:
    save_random(SPECS[name], tmp_path)
    model = load_checkpoint(tmp_path).model()
    with torch.inference_mode():
        encoded = model.encode(*pad(SPECS[name].sources, 0))
    real = encoded.source_mask
    assert encoded.routes
    assert any(bool((route.expert_ids[real] < 0).any()) for route in encoded.routes) == dropped


@pytest.mark.parametrize(
    ("options", "encoder", "decoder"),
    [
        ({"num_layers": 12, "num_decoder_layers": 12}, (1, 3, 5, 7, 9, 11), (1, 3, 5, 7, 9, 11)),
        ({"num_layers": 7, "num_decoder_layers": 9}, (0, 1, 2, 3, 4, 5, 6), tuple(range(9))),
        ({"num_layers": 5, "num_decoder_layers": 13}, (), (1, 3, 5, 7, 9, 11)),
    ],
)
def test_sparse_layers_lie_where_transformers_puts_them(
    options: dict[str, Any],
    encoder: tuple[int, ...],
    decoder: tuple[int, ...],
    tmp_path: Path,
) -> None:
    given = options | {"num_sparse_encoder_layers": 6, "num_sparse_decoder_layers": 6}
    save_random(switch_spec(choose_end=False, num_experts=2, **given), tmp_path)
    config = load_checkpoint(tmp_path).config  # every tensor is where it is expected
    assert config.encoder_sparse_layers == encoder
    assert config.decoder_sparse_layers == decoder


@pytest.mark.skipif(other_python() is None, reason=f"{OTHER_PYTHON} names no Python")
@pytest.mark.parametrize("tied", [True, False])
def test_a_folder_written_by_version_4_computes_what_version_4_computes(
    tied: bool, tmp_path: Path
) -> None:
    python = other_python()
    assert python is not None
    spec = switch_spec(expert_capacity=4, tie_word_embeddings=tied)
    expected = reference_by(python, spec, tmp_path / "theirs")
    assert load_checkpoint(tmp_path / "theirs").config.tie_embeddings == tied
    assert_reproduced(tmp_path / "theirs", expected, tmp_path / "bundle")


def test_an_embedding_of_its_own_for_a_stack_is_refused(tmp_path: Path) -> None:
    save_random(switch_spec(choose_end=False), tmp_path)
    name = "decoder.embed_tokens.weight"
    edit_weights(tmp_path, lambda t: t.update({name: t["shared.weight"].clone()}))
    load_checkpoint(tmp_path)
    edit_weights(tmp_path, lambda t: t[name][5].add_(1e-3))
    with pytest.raises(CheckpointError, match=f"{name} differs from shared.weight"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"router_dtype": "bfloat16"}, "`router_dtype` is 'bfloat16', and routes are computed in"),
        ({"router_type": "experts_masked"}, "`router_type` is 'experts_masked', and only the"),
        ({"expert_capacity": 0}, "`expert_capacity` is 0, must be at least 1"),
        ({"dense_act_fn": "mish"}, "`dense_act_fn` is 'mish'; Switch models here may have gelu"),
        ({"num_experts": "8"}, "`num_experts` is '8', not a whole number"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    save_random(switch_spec(choose_end=False, num_layers=1), tmp_path)
    edit_config(tmp_path, **options)
    with pytest.raises(ConfigError, match=message):
        load_checkpoint(tmp_path)


def test_a_missing_expert_is_named(tmp_path: Path) -> None:
    save_random(switch_spec(choose_end=False), tmp_path)
    lost = "encoder.block.1.layer.1.mlp.experts.expert_2.wi.weight"
    assert lost in read_weights(tmp_path)
    edit_weights(tmp_path, lambda tensors: tensors.pop(lost))
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(tmp_path)
    assert "encoder.layers.1.ffn.experts.up (from " in str(error.value)
    assert lost in str(error.value)
