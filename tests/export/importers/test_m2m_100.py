"""M2M-100 and dense NLLB models are reproduced; what they cannot be is refused by name."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

from drl.export.importers import find_importer
from drl.runtime.errors import ConfigError
from tests.export.importers.bart_models import SIZES, reference_of_file, spec
from tests.export.importers.oracle import assert_reproduced
from tests.export.importers.reference import (
    OTHER_PYTHON,
    Drawing,
    Spec,
    other_python,
    reference_by,
)

M2M100 = "M2M100ForConditionalGeneration"
SPECS = {
    "scaled words, relu": spec(M2M100, Drawing(embedding=48**-0.5)),
    "bf16, swish, other depths": spec(
        M2M100,
        dtype="bfloat16",
        scale_embedding=False,
        activation_function="swish",
        encoder_layers=1,
        decoder_layers=3,
    ),
    "another padding token": spec(
        M2M100,
        Drawing(embedding=48**-0.5),
        pad_token_id=0,
        decoder_start_token_id=1,
        max_position_embeddings=150,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
    ),
}


@pytest.mark.parametrize("given", SPECS.values(), ids=list(SPECS))
def test_reproduces_transformers(given: Spec, tmp_path: Path) -> None:
    expected = reference_of_file(given, tmp_path / "checkpoint")
    assert_reproduced(tmp_path / "checkpoint", expected, tmp_path / "bundle")


@pytest.mark.skipif(other_python() is None, reason=f"{OTHER_PYTHON} names no Python")
def test_reproduces_transformers_4(tmp_path: Path) -> None:
    expected = reference_by(
        str(other_python()), SPECS["bf16, swish, other depths"], tmp_path / "checkpoint"
    )
    assert_reproduced(tmp_path / "checkpoint", expected, tmp_path / "bundle")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoder_start_token_id": 1}, "`decoder_start_token_id` is 1, the padding token"),
        ({"encoder_ffn_dim": None}, "`encoder_ffn_dim` is missing"),
        ({"scale_embedding": "yes"}, "`scale_embedding` is 'yes', not true or false"),
    ],
)
def test_refuses_what_it_cannot_do(options: dict[str, Any], message: str) -> None:
    values = {"model_type": "m2m_100"} | SIZES | options
    with pytest.raises(ConfigError, match=message):
        find_importer(values)(values, [])
