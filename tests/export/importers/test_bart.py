"""BART, mBART and Pegasus are reproduced; what they cannot be is refused by name."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("transformers")

from drl.export import load_checkpoint
from drl.export.importers import Import, find_importer
from drl.runtime.errors import CheckpointError, ConfigError
from tests.export.importers.bart_models import (
    POST_NORM,
    SIZES,
    reference_of_file,
    spec,
)
from tests.export.importers.oracle import assert_reproduced
from tests.export.importers.reference import (
    OTHER_PYTHON,
    Drawing,
    Spec,
    choose_end,
    compute,
    draw,
    other_python,
    reference_by,
    save_random,
)

BART, MBART, PEGASUS = (f"{name}ForConditionalGeneration" for name in ("Bart", "MBart", "Pegasus"))
UNTIED: dict[str, Any] = {"tie_word_embeddings": False, "decoder_start_token_id": 78}
SPECS = {
    "bart, scaled words": spec(BART, replace(POST_NORM, embedding=0.3), scale_embedding=True),
    "bart, bf16, relu, other depths and tokens": spec(
        BART,
        POST_NORM,
        dtype="bfloat16",
        encoder_layers=1,
        decoder_layers=3,
        activation_function="relu",
        pad_token_id=0,
        decoder_start_token_id=77,
    ),
    "mbart, scaled words": spec(
        MBART, Drawing(embedding=0.15), scale_embedding=True, decoder_start_token_id=78
    ),
    "mbart, bf16, tanh gelu, one head": spec(
        MBART,
        dtype="bfloat16",
        activation_function="gelu_new",
        encoder_attention_heads=1,
        decoder_attention_heads=1,
        decoder_start_token_id=77,
        encoder_layers=2,
    ),
    "pegasus, stored sinusoids": spec(PEGASUS, decoder_layers=3),
    "pegasus, bf16 sinusoids, relu": spec(
        PEGASUS,
        Drawing(embedding=0.15),
        dtype="bfloat16",
        activation_function="relu",
        scale_embedding=True,
    ),
}


@pytest.mark.parametrize("given", SPECS.values(), ids=list(SPECS))
def test_reproduces_transformers(given: Spec, tmp_path: Path) -> None:
    expected = reference_of_file(given, tmp_path / "checkpoint")
    assert_reproduced(tmp_path / "checkpoint", expected, tmp_path / "bundle")


@pytest.mark.skipif(other_python() is None, reason=f"{OTHER_PYTHON} names no Python")
@pytest.mark.parametrize("name", [name for name in SPECS if "bf16" in name])
def test_reproduces_transformers_4(name: str, tmp_path: Path) -> None:
    expected = reference_by(str(other_python()), SPECS[name], tmp_path / "checkpoint")
    assert_reproduced(tmp_path / "checkpoint", expected, tmp_path / "bundle")


def test_reads_a_model_saved_without_its_head(tmp_path: Path) -> None:
    save_random(spec(BART), tmp_path)
    whole = load_checkpoint(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    headless = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    del headless["final_logits_bias"]
    save_file(headless, tmp_path / "model.safetensors")
    found = load_checkpoint(tmp_path)
    assert found.config == replace(whole.config, head_bias=False)
    for name in found.shapes:
        assert torch.equal(found.tensor(name), whole.tensor(name)), name


def test_ignores_copies_of_the_words_and_the_converters_remarks(tmp_path: Path) -> None:
    save_random(spec(BART), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    words = tensors["model.shared.weight"]
    copies = ("lm_head", "model.encoder.embed_tokens", "model.decoder.embed_tokens")
    tensors |= {f"{name}.weight": words.clone() for name in copies}
    tensors["model.encoder.version"] = torch.tensor([3.0])
    save_file(tensors, tmp_path / "model.safetensors")
    assert torch.equal(load_checkpoint(tmp_path).tensor("embedding.weight"), words)


def test_reproduces_a_head_of_its_own_beside_one_word_table(tmp_path: Path) -> None:
    import transformers

    small = Drawing(embedding=0.02, position=0.02)  # so that the epsilon of norms counts
    given, folder = spec(MBART, small, **UNTIED), tmp_path / "checkpoint"
    model: Any = transformers.MBartForConditionalGeneration(
        transformers.MBartConfig(**given.config)
    )
    model.eval()
    inner = model.model
    inner.encoder.embed_tokens = inner.decoder.embed_tokens = inner.shared
    for seed in range(20):
        draw(model, given.drawing, seed)
        if choose_end(model, given):
            break
    model.config.save_pretrained(folder)
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")
    assert_reproduced(folder, compute(model, given), tmp_path / "bundle")


def test_refuses_different_word_tables_of_source_and_target(tmp_path: Path) -> None:
    save_random(spec(MBART, **UNTIED), tmp_path)
    with pytest.raises(CheckpointError, match=r"decoder\.embed_tokens\.weight differs from"):
        load_checkpoint(tmp_path)


def test_lists_a_norm_too_many(tmp_path: Path) -> None:
    save_random(spec(MBART, decoder_start_token_id=78), tmp_path)
    values = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    text = json.dumps(values | {"model_type": "bart"})
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"not in the model: .*decoder\.layer_norm\.bias"):
        load_checkpoint(tmp_path)


def test_keeps_the_language_that_generation_begins_with(tmp_path: Path) -> None:
    save_random(spec(MBART, decoder_start_token_id=78), tmp_path)
    assert "forced_bos_token_id" not in load_checkpoint(tmp_path).generation.options
    options = tmp_path / "generation_config.json"
    options.write_text('{"forced_bos_token_id": 7}', encoding="utf-8")
    assert load_checkpoint(tmp_path).generation.options["forced_bos_token_id"] == 7


def test_starts_with_the_first_token_of_sources_where_no_start_is_given() -> None:
    assert _describe("mbart", bos_token_id=6).config.decoder_start_token_id == 6
    assert _describe("bart", bos_token_id=6).config.decoder_start_token_id == 2


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("bart", {"decoder_ffn_dim": 60}, "`decoder_ffn_dim` is 60, and `encoder_ffn_dim` is 56"),
        ("bart", {"decoder_attention_heads": 4}, "`decoder_attention_heads` is 4"),
        ("bart", {"forced_bos_token_id": "en"}, "`forced_bos_token_id` is 'en'"),
        ("bart", {"normalize_before": True}, "`normalize_before` is True"),
        ("bart", {"activation_function": "tanh"}, "`activation_function` is 'tanh'"),
        ("bart", {"d_model": 50}, "`d_model` is 50, not a multiple of the 3 attention heads"),
        ("bart", {"eos_token_id": [1, 2]}, r"`eos_token_id` is \[1, 2\], not a whole number"),
        ("mbart", {"normalize_before": False}, "has its norms before the sublayers"),
        ("mbart", {}, "`decoder_start_token_id` is missing"),
        ("pegasus", {"d_model": 51}, "`d_model` is 51, must be even for sinusoidal positions"),
    ],
)
def test_refuses_what_it_cannot_do(kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _describe(kind, **options)


def _describe(kind: str, **options: Any) -> Import:
    values = {"model_type": kind} | SIZES | options
    return find_importer(values)(values, [])
