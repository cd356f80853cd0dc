"""Checkpoints: a folder with `config.json`, weights and `tokenizer.json`, read tensor by tensor."""

import json
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from drl.export.generation_defaults import GenerationDefaults, read_generation_defaults
from drl.export.importers import OWN_TYPE, find_importer
from drl.export.importers.mapping import Source, same
from drl.export.model import DualRouterModel, ModelConfig, parameter_shapes
from drl.export.rename import expand_rename
from drl.export.tensor_files import (
    STATE_DICT_SUFFIXES,
    WEIGHTS_FILE,
    Shape,
    TensorFiles,
    find_weights,
    open_tensors,
    reading,
)
from drl.runtime.errors import CheckpointError, ConfigError

CONFIG_FILE = "config.json"
TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True)
class Checkpoint:
    """A checked checkpoint: its tensors are those of its configuration, but still on disk.

    Attributes:
        config: The model's configuration.
        shapes: Name to shape of every parameter.
        tokenizer: Path of `tokenizer.json`, or None.
        generation: How it generates by default.
    """

    config: ModelConfig
    shapes: Mapping[str, tuple[int, ...]]
    tokenizer: Path | None
    generation: GenerationDefaults
    _read: Callable[[str], Tensor] = field(repr=False)

    def tensor(self, name: str) -> Tensor:
        """Read one parameter as fp32.

        Raises:
            CheckpointError: It holds NaN or infinity, or cannot be read.
        """
        with reading(name):
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


def load_checkpoint(path: Path, rename: Mapping[str, str] | None = None) -> Checkpoint:
    """Open a checkpoint: a folder, or a weights file that lies beside its `config.json`.

    Foreign checkpoints are mapped to ours by the importer of their `model_type`.

    Args:
        path: The folder or the weights file.
        rename: Our tensor names to the names they have in the file, where those differ; `*` in
            both stands for the same text.

    Raises:
        CheckpointError: Something is missing, unreadable, or does not fit the configuration.
    """
    with reading(path):
        return _load(path, rename or {})


def _load(path: Path, rename: Mapping[str, str]) -> Checkpoint:
    if not path.exists():
        raise CheckpointError(f"no checkpoint at {path}; give a folder with {CONFIG_FILE}")
    if path.is_file() and path.suffix not in (".safetensors", *STATE_DICT_SUFFIXES):
        raise CheckpointError(
            f"{path} is no checkpoint; give a folder, a .safetensors, .pt, .pth or .bin file"
        )
    folder = path if path.is_dir() else path.parent
    values = _read_config(folder / CONFIG_FILE)
    importer = find_importer(values)
    try:
        files = open_tensors(find_weights(path))
        described = importer(values, files.shapes.keys())
    except ConfigError as error:
        message = str(error).removeprefix("config: ")
        raise ConfigError(f"{folder / CONFIG_FILE}: {message}") from None
    expected = parameter_shapes(described.config)
    renamed = expand_rename(rename, expected, files.shapes)
    tensors = {**described.tensors, **{ours: same(name) for ours, name in renamed.items()}}
    ignored = {*described.ignored, *described.copies}
    _check_tensors(expected, tensors, files.shapes, ignored)
    _check_copies(described.copies, files)
    tokenizer = folder / TOKENIZER_FILE
    return Checkpoint(
        described.config,
        expected,
        tokenizer if tokenizer.exists() else None,
        read_generation_defaults(folder, values, described.config.vocab_size),
        lambda name: tensors[name].read(files),
    )


def save_checkpoint(folder: Path, model: DualRouterModel, tokenizer: Path | None = None) -> None:
    """Write `model` as a checkpoint folder, with a copy of the tokenizer file if one is given."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_type": OWN_TYPE} | model.config.to_dict()
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
    tensors = {name: value.contiguous().float() for name, value in model.state_dict().items()}
    save_file(tensors, folder / WEIGHTS_FILE)
    (folder / WEIGHTS_FILE).chmod(0o644)  # safetensors makes files for their owner alone
    if tokenizer is not None and tokenizer.resolve() != (folder / TOKENIZER_FILE).resolve():
        shutil.copyfile(tokenizer, folder / TOKENIZER_FILE)


def _read_config(path: Path) -> dict[str, Any]:
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
    return values


def _check_tensors(
    expected: Mapping[str, Shape],
    tensors: Mapping[str, Source],
    found: Mapping[str, Shape],
    ignored: Collection[str],
) -> None:
    """Hold our names and shapes against the tensors that are there; name every misfit."""
    used = {name for source in tensors.values() for name in source.names}
    mistakes = []
    missing = {
        ours: [name for name in source.names if name not in found]
        for ours, source in tensors.items()
    }
    absent = [_both(ours, names) for ours, names in missing.items() if names]
    absent += [ours for ours in expected if ours not in tensors]
    if absent:
        mistakes.append("missing: " + ", ".join(absent))
    if extra := [name for name in found if name not in used and name not in ignored]:
        mistakes.append("not in the model: " + ", ".join(extra))
    misshaped = [
        f"{_both(ours, source.names)} is {_shape(source, found)}, should be {list(expected[ours])}"
        for ours, source in tensors.items()
        if not missing[ours] and _shape(source, found) != list(expected[ours])
    ]
    if misshaped:
        mistakes.append("mis-shaped: " + ", ".join(misshaped))
    if mistakes:
        raise CheckpointError("the weights do not fit the configuration; " + "; ".join(mistakes))


def _check_copies(copies: Mapping[str, str], files: TensorFiles) -> None:
    """Hold tensors that are stored twice against each other."""
    for copy, original in copies.items():
        if copy in files.shapes and not torch.equal(files.read(copy), files.read(original)):
            raise CheckpointError(
                f"{copy} differs from {original}, and the model has one tensor for both"
            )


def _both(ours: str, theirs: Collection[str]) -> str:
    """Name a tensor by our name, and by the foreign ones where those differ."""
    foreign = [name for name in theirs if name != ours]
    return f"{ours} (from {', '.join(foreign)})" if foreign else ours


def _shape(source: Source, found: Mapping[str, Shape]) -> list[int] | str:
    """Return the shape that a source gives, or a remark if its parts do not fit together."""
    try:
        return list(source.shape(found))
    except (RuntimeError, IndexError):
        return " and ".join(str(list(found[name])) for name in source.names)
