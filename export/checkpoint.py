"""Checkpoints: a folder with `config.json`, weights and `tokenizer.json`, read tensor by tensor."""

import json
import pickle
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from drl.export.model import DualRouterModel, ModelConfig
from drl.runtime.errors import CheckpointError, ConfigError

MODEL_TYPE = "drl"
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILE = "tokenizer.json"
_STATE_DICT_SUFFIXES = (".pt", ".pth")
_LFS_MARK = b"version https://git-lfs"


@dataclass(frozen=True)
class Checkpoint:
    """A checked checkpoint: its tensors are those of its configuration, but still on disk.

    Attributes:
        config: The model's configuration.
        shapes: Name to shape of every parameter.
        tokenizer: Path of `tokenizer.json`, or None.
    """

    config: ModelConfig
    shapes: Mapping[str, tuple[int, ...]]
    tokenizer: Path | None
    _read: Callable[[str], Tensor] = field(repr=False)

    def tensor(self, name: str) -> Tensor:
        """Read one parameter as fp32.

        Raises:
            CheckpointError: It holds NaN or infinity.
        """
        tensor = self._read(name).float()
        if not torch.isfinite(tensor).all():
            bad = int((~torch.isfinite(tensor)).sum())
            raise CheckpointError(
                f"tensor `{name}` holds {bad} NaN or infinite values; export a checkpoint from "
                "before training diverged"
            )
        return tensor

    def model(self) -> DualRouterModel:
        """Load all parameters into an eager model in evaluation mode."""
        with torch.device("meta"):
            model = DualRouterModel(self.config)
        model.load_state_dict({name: self.tensor(name) for name in self.shapes}, assign=True)
        return model.eval()


def load_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint folder, or a `.pt`/`.pth` state dict that lies beside its `config.json`.

    Raises:
        CheckpointError: Something is missing, unreadable, or does not fit the configuration.
    """
    if not path.exists():
        raise CheckpointError(f"no checkpoint at {path}; give a folder with {CONFIG_FILE}")
    if path.is_file() and path.suffix not in (".safetensors", *_STATE_DICT_SUFFIXES):
        raise CheckpointError(
            f"{path} is no checkpoint; give a folder, a .safetensors, .pt or .pth file"
        )
    folder = path if path.is_dir() else path.parent
    config = _load_config(folder / CONFIG_FILE)
    shapes, read = _open_weights(_find_weights(path))
    expected = expected_shapes(config)
    _check_tensors(expected, shapes)
    tokenizer = folder / TOKENIZER_FILE
    return Checkpoint(config, expected, tokenizer if tokenizer.exists() else None, read)


def save_checkpoint(folder: Path, model: DualRouterModel, tokenizer: Path | None = None) -> None:
    """Write `model` as a checkpoint folder, with a copy of the tokenizer file if one is given."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_type": MODEL_TYPE} | model.config.to_dict()
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
    tensors = {name: value.contiguous().float() for name, value in model.state_dict().items()}
    save_file(tensors, folder / WEIGHTS_FILE)
    if tokenizer is not None and tokenizer.resolve() != (folder / TOKENIZER_FILE).resolve():
        shutil.copyfile(tokenizer, folder / TOKENIZER_FILE)


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every parameter that a model of this configuration has."""
    with torch.device("meta"):
        model = DualRouterModel(config)
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def _load_config(path: Path) -> ModelConfig:
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.parent} has no {CONFIG_FILE}; a checkpoint is a folder with {CONFIG_FILE}, "
            f"{WEIGHTS_FILE} and {TOKENIZER_FILE}"
        ) from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path} is not valid JSON ({error}); write it again") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds a {type(values).__name__}, not an object of fields")
    kind = values.pop("model_type", MODEL_TYPE)
    if kind != MODEL_TYPE:
        raise ConfigError(
            f"{path} is of model_type {kind!r}; this version exports {MODEL_TYPE!r} checkpoints"
        )
    try:
        return ModelConfig.from_dict(values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {str(error).removeprefix('config: ')}") from None


def _find_weights(path: Path) -> Path:
    if path.is_file():
        return path
    if (path / WEIGHTS_FILE).exists():
        return path / WEIGHTS_FILE
    found = sorted(p for p in path.iterdir() if p.suffix in _STATE_DICT_SUFFIXES)
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(p.name for p in found)
        raise CheckpointError(f"{path} holds several state dicts ({names}); name one of them")
    raise CheckpointError(f"{path} has no {WEIGHTS_FILE} and no .pt or .pth file; add the weights")


def _open_weights(path: Path) -> tuple[dict[str, tuple[int, ...]], Callable[[str], Tensor]]:
    with path.open("rb") as file:
        start = file.read(len(_LFS_MARK))
    if start == _LFS_MARK:
        raise CheckpointError(f"{path} is a git-lfs pointer, not weights; run `git lfs pull`")
    return _open_safetensors(path) if path.suffix == ".safetensors" else _open_state_dict(path)


def _open_safetensors(path: Path) -> tuple[dict[str, tuple[int, ...]], Callable[[str], Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged or incomplete ({error}); copy it again") from None

    def read(name: str) -> Tensor:
        with safe_open(path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    return shapes, read


def _open_state_dict(path: Path) -> tuple[dict[str, tuple[int, ...]], Callable[[str], Tensor]]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on a foreign pickle add nothing to the error
            state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} is not a plain state dict ({reason}); save one with "
            "`torch.save(model.state_dict(), path)`"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(
            f"{path} holds a {type(state).__name__} that is not name → tensor; save one with "
            "`torch.save(model.state_dict(), path)`"
        )
    return {name: tuple(value.shape) for name, value in state.items()}, state.__getitem__


def _check_tensors(
    expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> None:
    mistakes = []
    if missing := [name for name in expected if name not in found]:
        mistakes.append("missing: " + ", ".join(missing))
    if extra := [name for name in found if name not in expected]:
        mistakes.append("not in the model: " + ", ".join(extra))
    misshaped = [
        f"{name} is {list(found[name])}, should be {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if misshaped:
        mistakes.append("mis-shaped: " + ", ".join(misshaped))
    if mistakes:
        raise CheckpointError("the weights do not fit the configuration; " + "; ".join(mistakes))
