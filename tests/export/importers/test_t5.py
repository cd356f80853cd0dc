"""T5, mT5 and UMT5 against transformers."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from drl.export import load_checkpoint
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
    "d_ff": 56,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
LENGTHS = (1, 7, 19, 4, 33, 12, 2)


def t5_spec(kind: str = "T5", lengths: tuple[int, ...] = LENGTHS, **changes: Any) -> Spec:
    """Return a small model of a family; a `Spec` field among `changes` is one, others configure."""
    names = {field.name for field in dataclasses.fields(Spec)}
    config = BASE | {name: value for name, value in changes.items() if name not in names}
    given = {name: value for name, value in changes.items() if name in names}
    return Spec(
        f"{kind}ForConditionalGeneration",
        config,
        random_sources(lengths, VOCABULARY),
        Drawing(query=1.5 * config["d_kv"] ** -0.5),
        **given,
    )


SPECS: dict[str, Spec] = {
    "v1.0: ReLU, tied": t5_spec(),
    "v1.0, heads wider than the model": t5_spec(d_kv=20, num_heads=3, num_layers=1),
    "v1.1: gated tanh-GELU, untied": t5_spec(
        feed_forward_proj="gated-gelu", tie_word_embeddings=False, untie=True, num_decoder_layers=5
    ),
    "untied in name only: outputs not scaled": t5_spec(tie_word_embeddings=False),
    "gated SiLU, heads of odd size": t5_spec(
        feed_forward_proj="gated-silu", d_kv=7, num_heads=5, num_layers=2, num_decoder_layers=3
    ),
    "exact GELU, bfloat16": t5_spec(feed_forward_proj="gelu", dtype="bfloat16"),
    "ungated SiLU, float16, one head": t5_spec(
        feed_forward_proj="silu", dtype="float16", num_heads=1, d_kv=24, layer_norm_epsilon=1e-3
    ),
    "sources and targets beyond the bucket range": t5_spec(
        lengths=(200, 131, 1, 65, 9, 150, 17),
        target_length=150,
        num_layers=2,
    ),
    "few buckets, short distance": t5_spec(
        lengths=(50, 21, 1, 30, 9, 4, 17),
        target_length=40,
        relative_attention_num_buckets=6,
        relative_attention_max_distance=11,
    ),
    "odd number of buckets, long distance": t5_spec(
        lengths=(150, 21, 1, 30, 9, 90, 17),
        target_length=60,
        relative_attention_num_buckets=21,
        relative_attention_max_distance=300,
    ),
    "a distance where two buckets meet": t5_spec(
        lengths=(40, 21, 1, 30, 9, 4, 17),
        relative_attention_num_buckets=34,
        relative_attention_max_distance=27,
    ),
    "mT5": t5_spec("MT5", num_decoder_layers=3),
    "mT5, ReLU, untied": t5_spec("MT5", feed_forward_proj="relu", untie=True),
    "UMT5: a bias per layer": t5_spec(
        "UMT5", lengths=(140, 21, 1, 30, 9, 4, 17), relative_attention_max_distance=40
    ),
}


@pytest.mark.parametrize("name", SPECS)
def test_a_model_computes_what_transformers_computes(name: str, tmp_path: Path) -> None:
    expected = reference(SPECS[name], tmp_path / "theirs")
    assert_reproduced(tmp_path / "theirs", expected, tmp_path / "bundle")


VERSION_4 = {
    "Flan": t5_spec(feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "mT5": t5_spec("MT5", tie_word_embeddings=False),
    "UMT5": t5_spec("UMT5", tie_word_embeddings=False, num_layers=2),
    "tied": t5_spec(num_layers=2),
}


@pytest.mark.skipif(other_python() is None, reason=f"{OTHER_PYTHON} names no Python")
@pytest.mark.parametrize("name", VERSION_4)
def test_a_folder_written_by_version_4_computes_what_version_4_computes(
    name: str, tmp_path: Path
) -> None:
    python = other_python()
    assert python is not None
    expected = reference_by(python, VERSION_4[name], tmp_path / "theirs")
    config = load_checkpoint(tmp_path / "theirs").config
    assert config.tie_embeddings == (name == "tied")
    assert_reproduced(tmp_path / "theirs", expected, tmp_path / "bundle")


def _small(folder: Path, kind: str = "T5", **changes: Any) -> Path:
    spec = t5_spec(kind, choose_end=False, num_layers=1, num_decoder_layers=1, **changes)
    save_random(spec, folder)
    return folder


def test_a_head_that_differs_is_taken_though_version_5_calls_it_tied(tmp_path: Path) -> None:
    folder = _small(tmp_path, tie_word_embeddings=False, untie=True)
    assert "lm_head.weight" in read_weights(folder)
    config = load_checkpoint(folder).config
    assert not config.tie_embeddings
    assert config.output_scale == 1.0


@pytest.mark.parametrize(("kind", "scale"), [("T5", 48**-0.5), ("MT5", 1.0), ("UMT5", 48**-0.5)])
def test_a_tied_head_has_the_scale_of_its_family(kind: str, scale: float, tmp_path: Path) -> None:
    config = load_checkpoint(_small(tmp_path, kind)).config
    assert config.tie_embeddings
    assert config.output_scale == scale


def test_copies_of_the_embedding_are_accepted_and_must_be_equal(tmp_path: Path) -> None:
    folder = _small(tmp_path)
    names = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
    edit_weights(folder, lambda t: t.update({n: t["shared.weight"].clone() for n in names}))
    assert load_checkpoint(folder).config.tie_embeddings
    edit_weights(folder, lambda t: t["lm_head.weight"][3].add_(1e-3))
    with pytest.raises(CheckpointError, match=r"lm_head.weight differs from shared.weight, "):
        load_checkpoint(folder)


def test_the_embedding_is_found_under_its_other_names(tmp_path: Path) -> None:
    folder = _small(tmp_path)
    expected = read_weights(folder)["shared.weight"]
    edit_weights(
        folder, lambda t: t.update({"decoder.embed_tokens.weight": t.pop("shared.weight")})
    )
    assert load_checkpoint(folder).tensor("embedding.weight").equal(expected)


def test_the_bias_that_no_model_reads_is_ignored(tmp_path: Path) -> None:
    folder = _small(tmp_path)
    cross = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    own = "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    edit_weights(folder, lambda t: t.update({cross: t[own] + 1}))
    load_checkpoint(folder)


@pytest.mark.parametrize(
    ("options", "activation"),
    [
        ({"feed_forward_proj": "gated-gelu", "dense_act_fn": None}, "gelu_glu"),
        ({"feed_forward_proj": "gated-silu", "dense_act_fn": None}, "silu_glu"),
        ({"feed_forward_proj": "gated-gelu_new", "dense_act_fn": None}, "gelu_glu"),
        (
            {"feed_forward_proj": "relu", "dense_act_fn": "gelu_new", "is_gated_act": True},
            "gelu_glu",
        ),
    ],
)
def test_gated_activations(options: dict[str, Any], activation: str, tmp_path: Path) -> None:
    folder = _small(tmp_path, feed_forward_proj="gated-gelu")
    edit_config(folder, **{"is_gated_act": None} | options)
    assert load_checkpoint(folder).config.activation == activation


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dense_act_fn": "mish"}, "`dense_act_fn` is 'mish'; T5 models here may have gelu, "),
        ({"dense_act_fn": None, "feed_forward_proj": "gated-relu"}, "`feed_forward_proj` is 'gate"),
        ({"dense_act_fn": "gelu", "is_gated_act": True}, "`dense_act_fn` is 'gelu'; T5 models"),
        ({"relative_attention_num_buckets": 3}, "`position_buckets` is 3, must be at least 4"),
        ({"relative_attention_max_distance": 16}, "`position_max_distance` is 16, must exceed"),
        ({"architectures": ["T5EncoderModel"]}, "names T5EncoderModel, which does not generate"),
        ({"architectures": ["T5ForTokenClassification"]}, "names T5ForTokenClassification"),
        ({"d_model": None, "num_heads": 2.5}, "`num_heads` is 2.5, not a whole.*`d_model` is miss"),
        ({"d_model": 0}, "`d_model` is 0, must be positive"),
        ({"eos_token_id": 99}, "`eos_token_id` is 99, outside the vocabulary of 80"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = _small(tmp_path)
    edit_config(folder, **options)
    with pytest.raises(ConfigError, match=message):
        load_checkpoint(folder)
