"""Marian and OPUS-MT are reproduced; what they cannot be is refused by name."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("transformers")

from drl.export import load_checkpoint
from drl.export.importers import find_importer
from drl.runtime.errors import ConfigError
from tests.export.importers.bart_models import POST_NORM, SIZES, reference_of_file, spec
from tests.export.importers.oracle import assert_reproduced
from tests.export.importers.reference import (
    OTHER_PYTHON,
    Spec,
    other_python,
    reference_by,
    save_random,
)

MARIAN = "MarianMTModel"
PAD = 79
TOKENS: dict[str, Any] = {
    "pad_token_id": PAD,
    "decoder_start_token_id": PAD,
    "decoder_vocab_size": 80,
}
DRAWING = replace(POST_NORM, embedding=0.3)
SPECS = {
    "swish, scaled words": spec(
        MARIAN,
        replace(DRAWING, embedding=0.1),
        activation_function="swish",
        scale_embedding=True,
        **TOKENS,
    ),
    "bf16, relu, other depths": spec(
        MARIAN,
        DRAWING,
        dtype="bfloat16",
        activation_function="relu",
        encoder_layers=1,
        decoder_layers=3,
        **TOKENS,
    ),
}


@pytest.mark.parametrize("given", SPECS.values(), ids=list(SPECS))
def test_reproduces_transformers(given: Spec, tmp_path: Path) -> None:
    expected = reference_of_file(given, tmp_path / "checkpoint")
    assert_reproduced(tmp_path / "checkpoint", expected, tmp_path / "bundle")


@pytest.mark.skipif(other_python() is None, reason=f"{OTHER_PYTHON} names no Python")
def test_reproduces_transformers_4(tmp_path: Path) -> None:
    expected = reference_by(
        str(other_python()), SPECS["bf16, relu, other depths"], tmp_path / "checkpoint"
    )
    assert_reproduced(tmp_path / "checkpoint", expected, tmp_path / "bundle")


def test_a_stored_position_table_is_read_as_it_is(tmp_path: Path) -> None:
    save_random(spec(MARIAN, **TOKENS), tmp_path)
    assert load_checkpoint(tmp_path).config.position == "sinusoidal"
    tensors = load_file(tmp_path / "model.safetensors")
    table = torch.randn(160, 48).half()
    tensors |= {f"model.{stack}.embed_positions.weight": table for stack in ("encoder", "decoder")}
    save_file({n: t.clone() for n, t in tensors.items()}, tmp_path / "model.safetensors")
    found = load_checkpoint(tmp_path)
    assert found.config.position == "learned"
    assert torch.equal(found.tensor("encoder.positions.weight"), table.float())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share_encoder_decoder_embeddings": False}, "one vocabulary"),
        ({"decoder_vocab_size": 90}, "`decoder_vocab_size` is 90, but one vocabulary"),
        ({"normalize_before": True}, "has its norms after the sublayers"),
        ({"d_model": 45}, "`d_model` is 45, must be even for sinusoidal positions"),
    ],
)
def test_refuses_what_it_cannot_do(options: dict[str, Any], message: str) -> None:
    values = {"model_type": "marian"} | SIZES | TOKENS | options
    with pytest.raises(ConfigError, match=message):
        find_importer(values)(values, [])
