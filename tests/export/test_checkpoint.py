import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from drl.export import load_checkpoint, save_checkpoint
from drl.export.model import DualRouterModel, generate
from drl.runtime.errors import CheckpointError
from tests.models import TINY, random_prompts


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint to be damaged."""
    return shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")


def test_a_saved_model_loads_as_it_was(tiny_model: DualRouterModel, tmp_path: Path) -> None:
    tokenizer = tmp_path / "somewhere.json"
    tokenizer.write_text("{}")
    save_checkpoint(tmp_path / "saved", tiny_model, tokenizer)
    checkpoint = load_checkpoint(tmp_path / "saved")
    assert checkpoint.config == TINY
    assert checkpoint.tokenizer == tmp_path / "saved" / "tokenizer.json"
    prompts = random_prompts(4)
    expected = generate(tiny_model, prompts, max_new_tokens=8)
    assert generate(checkpoint.model(), prompts, max_new_tokens=8) == expected


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_a_state_dict_beside_its_config_loads(
    tiny_model: DualRouterModel, folder: Path, suffix: str
) -> None:
    (folder / "model.safetensors").unlink()
    path = folder / f"weights{suffix}"
    half = {name: tensor.half() for name, tensor in tiny_model.state_dict().items()}
    torch.save(half, path)
    for given in (path, folder):
        tensor = load_checkpoint(given).tensor("embedding.weight")
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, tiny_model.embedding.weight, atol=1e-3, rtol=1e-3)


def _edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


def _truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def _replace_by_pickle(folder: Path, value: object) -> None:
    (folder / "model.safetensors").unlink()
    with (folder / "model.pt").open("wb") as file:
        pickle.dump(value, file)


def _replace_by_torch_file(folder: Path, value: object) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(value, folder / "model.pt")


def _misfit(tensors: dict[str, torch.Tensor]) -> None:
    tensors["encoder.norm.bias"] = tensors.pop("encoder.norm.weight")
    tensors["decoder.norm.weight"] = torch.ones(3)
    del tensors["group_router.prototypes"]


def _add_many(tensors: dict[str, torch.Tensor]) -> None:
    tensors.update({f"extra.{i}": torch.ones(1) for i in range(40)})


def _write_index(folder: Path, shard: object) -> None:
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": shard, "b": shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _make_folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


FAULTS: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "no config": (lambda f: (f / "config.json").unlink(), ["has no config.json"]),
    "empty config": (lambda f: (f / "config.json").write_text(""), ["not valid JSON"]),
    "config list": (lambda f: (f / "config.json").write_text("[1]"), ["holds a list"]),
    "other family": (
        lambda f: _edit_config(f, model_type="gpt2", architectures=["GPT2LMHeadModel"]),
        ["model_type 'gpt2' is a decoder-only model"],
    ),
    "unknown field": (
        lambda f: _edit_config(f, d_mdel=4),
        ["unknown field `d_mdel` (did you mean `d_model`?)"],
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), ["has no model.safetensors"]),
    "truncated": (_truncate, ["damaged or incomplete"]),
    "git-lfs pointer": (
        lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com/"),
        ["git lfs pull"],
    ),
    "several faults": (
        lambda f: _edit_weights(f, _misfit),
        [
            "missing: group_router.prototypes, encoder.norm.weight",
            "not in the model: encoder.norm.bias",
            "decoder.norm.weight is [3], should be [64]",
        ],
    ),
    "pickled object": (lambda f: _replace_by_pickle(f, Path("x")), ["not a plain state dict"]),
    "text as pickle": (
        lambda f: (f / "model.safetensors").rename(f / "model.pt"),
        ["not a plain state dict"],
    ),
    "no state dict": (lambda f: _replace_by_torch_file(f, [1, 2]), ["holds a list"]),
    "nested state dict": (
        lambda f: _replace_by_torch_file(f, {"model": {}, "step": 3}),
        ["not name → tensor"],
    ),
    "integer keys": (
        lambda f: _replace_by_torch_file(f, {0: torch.ones(1)}),
        ["not name → tensor"],
    ),
    "sparse": (
        lambda f: _replace_by_torch_file(f, {"a": torch.eye(3).to_sparse()}),
        ["tensor `a` is sparse_coo; save it dense"],
    ),
    "meta": (
        lambda f: _replace_by_torch_file(f, {"a": torch.ones(3, device="meta")}),
        ["tensor `a` is meta"],
    ),
    "list as model type": (
        lambda f: _edit_config(f, model_type=[1]),
        ["model_type [1] has no importer"],
    ),
    "number as shard": (lambda f: _write_index(f, 3), ["is no index of shards"]),
    "list as shard": (lambda f: _write_index(f, ["x"]), ["is no index of shards"]),
    "null as shard": (lambda f: _write_index(f, None), ["is no index of shards"]),
    "endless source": (
        lambda f: _edit_config(f, max_source_length=10**12),
        ["`max_source_length` is 1000000000000, must be at most"],
    ),
    "many tensors too many": (
        lambda f: _edit_weights(f, _add_many),
        [f"extra.{i}" for i in range(40)],
    ),
    "config is a folder": (
        lambda f: _make_folder(f / "config.json"),
        ["config.json cannot be read: Is a directory"],
    ),
    "weights are a folder": (
        lambda f: _make_folder(f / "model.safetensors"),
        ["model.safetensors cannot be read: Is a directory"],
    ),
    "generation options are a folder": (
        lambda f: _make_folder(f / "generation_config.json"),
        ["generation_config.json cannot be read: Is a directory"],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_in_one_line(folder: Path, fault: str) -> None:
    damage, fragments = FAULTS[fault]
    damage(folder)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    for fragment in fragments:
        assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_pickle_runs_no_code(folder: Path, tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return (tmp_path.joinpath("ran").touch, ())

    _replace_by_pickle(folder, {"embedding.weight": Malicious()})
    with pytest.raises(CheckpointError):
        load_checkpoint(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(folder: Path, value: float) -> None:
    def poison(tensors: dict[str, torch.Tensor]) -> None:
        tensors["decoder.layers.2.ffn.up.weight"][3, 4] = value

    _edit_weights(folder, poison)
    with pytest.raises(CheckpointError, match=r"`decoder.layers.2.ffn.up.weight` holds 1 NaN"):
        load_checkpoint(folder).model()


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64])
def test_weights_of_another_kind_are_refused(folder: Path, dtype: torch.dtype) -> None:
    def convert(tensors: dict[str, torch.Tensor]) -> None:
        name = "decoder.layers.2.ffn.up.weight"
        tensors[name] = tensors[name].to(dtype)

    _edit_weights(folder, convert)
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(
        CheckpointError, match=rf"`decoder.layers.2.ffn.up.weight` is of type {kind}"
    ):
        load_checkpoint(folder).model()


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load_checkpoint(tmp_path / "nothing")
