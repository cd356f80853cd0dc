"""Changing checkpoint folders: other storage, other configuration, damage."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

WEIGHTS = "model.safetensors"


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of `model.safetensors`."""
    return load_file(folder / WEIGHTS)


def edit_weights(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the tensors of `model.safetensors`."""
    tensors = read_weights(folder)
    edit(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def edit_config(folder: Path, **changes: object) -> None:
    """Change `config.json`; a value of None removes the option."""
    path = folder / "config.json"
    values = json.loads(path.read_text(encoding="utf-8")) | changes
    kept = {name: value for name, value in values.items() if value is not None}
    path.write_text(json.dumps(kept), encoding="utf-8")


def store_as_state_dict(folder: Path) -> None:
    """Replace `model.safetensors` by `pytorch_model.bin`."""
    torch.save(read_weights(folder), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def store_in_shards(folder: Path, count: int, *, state_dicts: bool) -> list[str]:
    """Replace `model.safetensors` by `count` shards and their index; return the shards' names."""
    tensors = read_weights(folder)
    (folder / WEIGHTS).unlink()
    stem, suffix = ("pytorch_model", "bin") if state_dicts else ("model", "safetensors")
    files = [f"{stem}-{i + 1:05}-of-{count:05}.{suffix}" for i in range(count)]
    placed = {name: files[i % count] for i, name in enumerate(sorted(tensors))}
    for file in files:
        part = {name: tensors[name] for name, place in placed.items() if place == file}
        if state_dicts:
            torch.save(part, folder / file)
        else:
            save_file(part, folder / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": 0}, "weight_map": placed}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index), encoding="utf-8")
    return files
