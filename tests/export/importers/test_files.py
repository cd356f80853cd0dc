"""How a foreign folder's weights may be stored, and what is said of damage."""

import json
from pathlib import Path

import pytest
import torch

from drl.export import load_checkpoint
from drl.runtime.errors import CheckpointError, ConfigError
from tests.export.importers.folders import (
    WEIGHTS,
    edit_config,
    edit_weights,
    read_weights,
    store_as_state_dict,
    store_in_shards,
)
from tests.export.importers.oracle import assert_reproduced
from tests.export.importers.reference import Reference, reference, save_random
from tests.export.importers.test_t5 import t5_spec

pytest.importorskip("transformers")

UP = "encoder.block.0.layer.1.DenseReluDense.wi.weight"
OURS = "encoder.layers.0.ffn.up.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small T5."""
    spec = t5_spec(choose_end=False, num_layers=1, num_decoder_layers=1)
    save_random(spec, tmp_path / "theirs")
    return tmp_path / "theirs"


def _expect(folder: Path, *messages: str) -> str:
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(folder)
    text = str(error.value)
    for message in messages:
        assert message in text
    assert "\n" not in text
    return text


@pytest.mark.parametrize("state_dicts", [False, True])
@pytest.mark.parametrize("shards", [1, 3])
def test_every_kind_of_file_holds_the_same_model(
    state_dicts: bool, shards: int, tmp_path: Path
) -> None:
    theirs = tmp_path / "theirs"
    expected: Reference = reference(t5_spec(num_layers=1, dtype="bfloat16"), theirs)
    if shards > 1:
        store_in_shards(theirs, shards, state_dicts=state_dicts)
    elif state_dicts:
        store_as_state_dict(theirs)
    assert (theirs / WEIGHTS).exists() == (shards == 1 and not state_dicts)
    assert_reproduced(theirs, expected, tmp_path / "bundle")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_stored_weights_of_any_precision_are_read_as_float32(dtype: str, folder: Path) -> None:
    stored = getattr(torch, dtype)
    edit_weights(folder, lambda t: t.update({name: each.to(stored) for name, each in t.items()}))
    kept = read_weights(folder)[UP]
    assert kept.dtype == stored
    assert load_checkpoint(folder).tensor(OURS).equal(kept.float())


def test_a_missing_tensor_is_named_in_both_ways(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.pop(UP))
    _expect(folder, f"missing: {OURS} (from {UP})")


def test_an_extra_tensor_is_named(folder: Path) -> None:
    edit_weights(folder, lambda t: t.update({"encoder.block.7.adapter.weight": torch.ones(3)}))
    _expect(folder, "not in the model: encoder.block.7.adapter.weight")


def test_a_misshaped_tensor_is_named_in_both_ways(folder: Path) -> None:
    edit_weights(folder, lambda t: t.update({UP: t[UP].T.contiguous()}))
    _expect(folder, f"mis-shaped: {OURS} (from {UP}) is [48, 56], should be [56, 48]")


def test_a_configuration_that_does_not_fit_names_every_misfit(folder: Path) -> None:
    edit_config(folder, num_layers=2, num_decoder_layers=1)
    edit_weights(folder, lambda t: t.update({"shared.weight": t["shared.weight"][:-1].clone()}))
    text = _expect(folder, "missing: ", "mis-shaped: embedding.weight (from shared.weight)")
    assert "encoder.layers.1.self_attention.q.weight" in text


@pytest.mark.parametrize("state_dicts", [False, True])
def test_a_half_downloaded_folder_names_the_shards_it_lacks(
    state_dicts: bool, folder: Path
) -> None:
    files = store_in_shards(folder, 4, state_dicts=state_dicts)
    (folder / files[1]).unlink()
    (folder / files[3]).unlink()
    _expect(folder, "lacks 2 of 4 shards", files[1], files[3], "download them")


@pytest.mark.parametrize("state_dicts", [False, True])
def test_a_shard_that_is_cut_off_is_named(state_dicts: bool, folder: Path) -> None:
    files = store_in_shards(folder, 2, state_dicts=state_dicts)
    content = (folder / files[1]).read_bytes()
    (folder / files[1]).write_bytes(content[: len(content) // 2])
    _expect(folder, files[1])


def test_a_pointer_of_git_lfs_is_recognised(folder: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 123\n"
    (folder / WEIGHTS).write_text(pointer)
    _expect(folder, WEIGHTS, "git-lfs pointer", "git lfs pull")


def test_an_index_may_not_lead_out_of_the_folder(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder.parent / WEIGHTS)
    index = {"weight_map": {UP: f"../{WEIGHTS}"}}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    _expect(folder, "is no file beside it")


def test_weights_that_are_no_numbers_are_refused_when_read(folder: Path) -> None:
    edit_weights(folder, lambda t: t[UP][0].fill_(torch.nan))
    checkpoint = load_checkpoint(folder)
    with pytest.raises(CheckpointError, match=f"`{OURS}` holds 48 NaN"):
        checkpoint.model()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"model_type": "led", "architectures": ["LEDForConditionalGeneration"]},
            "encoder-decoder",
        ),
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, "decoder-only"),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "encoder-only"),
        ({"model_type": "other", "architectures": None}, "has no importer"),
    ],
)
def test_another_kind_of_model_is_told_what_it_is(
    options: dict[str, object], message: str, folder: Path
) -> None:
    edit_config(folder, **{"is_encoder_decoder": None} | options)
    with pytest.raises(ConfigError, match=f"{message}.*; known are .*switch_transformers.*t5"):
        load_checkpoint(folder)
