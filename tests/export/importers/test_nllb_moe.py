"""NLLB-MoE is reproduced; what would make it drop or draw experts is refused by name."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

from drl.export.importers import find_importer
from drl.runtime.errors import ConfigError
from tests.export.importers.bart_models import SIZES, spec
from tests.export.importers.oracle import assert_reproduced
from tests.export.importers.reference import OTHER_PYTHON, Drawing, other_python, reference_by

NLLB_MOE = "NllbMoeForConditionalGeneration"
DRAWING = Drawing(embedding=48**-0.5)
SPECS = {
    "five experts, every second layer, router bias": spec(
        NLLB_MOE,
        DRAWING,
        num_experts=5,
        router_bias=True,
        encoder_sparse_step=2,
        decoder_sparse_step=2,
        moe_token_dropout=0.3,
    ),
    "four experts, every layer, options that change nothing": spec(
        NLLB_MOE,
        DRAWING,
        num_experts=4,
        encoder_sparse_step=1,
        decoder_sparse_step=1,
        moe_token_dropout=0.0,
        batch_prioritized_routing=True,
        normalize_router_prob_before_dropping=True,
        router_ignore_padding_tokens=True,
        expert_capacity=1,
    ),
    "bf16, three experts in the decoder, swish": spec(
        NLLB_MOE,
        dtype="bfloat16",
        num_experts=3,
        encoder_sparse_step=0,
        decoder_sparse_step=3,
        decoder_layers=4,
        activation_function="swish",
        scale_embedding=False,
    ),
}


@pytest.mark.skipif(other_python() is None, reason=f"{OTHER_PYTHON} names no Python")
@pytest.mark.parametrize("name", SPECS)
def test_reproduces_transformers_4(name: str, tmp_path: Path) -> None:
    """Later versions take the router's one-hot mask for indices, and run the wrong experts."""
    expected = reference_by(str(other_python()), SPECS[name], tmp_path / "checkpoint")
    assert_reproduced(tmp_path / "checkpoint", expected, tmp_path / "bundle")


def test_every_nth_layer_is_sparse() -> None:
    options = {"encoder_sparse_step": 2, "decoder_sparse_step": 1, "encoder_layers": 5}
    values = {"model_type": "nllb-moe"} | SIZES | options
    config = find_importer(values)(values, []).config
    assert (config.encoder_sparse_layers, config.decoder_sparse_layers) == ((1, 3), (0, 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"moe_eval_capacity_token_fraction": 0.5}, "experts drop tokens"),
        ({"moe_eval_capacity_token_fraction": -1.0}, "experts drop tokens"),
        ({"second_expert_policy": "sampling"}, "`second_expert_policy` is 'sampling'"),
        ({"router_dtype": "bfloat16"}, "`router_dtype` is 'bfloat16', but routing"),
        ({"num_experts": 1}, "hold only 1 experts"),
    ],
)
def test_refuses_what_it_cannot_do(options: dict[str, Any], message: str) -> None:
    values = {"model_type": "nllb-moe", "encoder_sparse_step": 1} | SIZES | options
    with pytest.raises(ConfigError, match=message):
        find_importer(values)(values, [])
