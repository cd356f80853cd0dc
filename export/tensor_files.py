"""Weight files of any common kind, read tensor by tensor."""

import json
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from drl.runtime.errors import CheckpointError

WEIGHTS_FILE = "model.safetensors"
STATE_DICT_SUFFIXES = (".pt", ".pth", ".bin")
_INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_LFS_MARK = b"version https://git-lfs"
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

Shape = tuple[int, ...]


@dataclass(frozen=True)
class TensorFiles:
    """The tensors of one or more weight files.

    Attributes:
        shapes: Name to shape.
        read: Reads one tensor in the dtype it is stored in.
    """

    shapes: Mapping[str, Shape]
    read: Callable[[str], Tensor] = field(repr=False)


def find_weights(path: Path) -> list[Path]:
    """Return the weight files of a checkpoint: `path` itself, or those in the folder `path`.

    Raises:
        CheckpointError: There are none, too many, or a shard is missing.
    """
    if path.is_file():
        return [path]
    if (path / WEIGHTS_FILE).exists():
        return [path / WEIGHTS_FILE]
    for name in _INDEX_FILES:
        if (path / name).exists():
            return _shards(path / name)
    found = sorted(p for p in path.iterdir() if p.suffix in STATE_DICT_SUFFIXES)
    weights = [p for p in found if p.name == "pytorch_model.bin"] or found
    if len(weights) == 1:
        return weights
    if weights:
        names = ", ".join(p.name for p in weights)
        raise CheckpointError(f"{path} holds several state dicts ({names}); name one of them")
    raise CheckpointError(
        f"{path} has no {WEIGHTS_FILE} and no pytorch_model.bin, .pt or .pth file; add the weights"
    )


def open_tensors(paths: list[Path]) -> TensorFiles:
    """Open weight files: safetensors lazily, state dicts with `weights_only=True`.

    Raises:
        CheckpointError: A file is damaged, not what its name says, or a git-lfs pointer.
    """
    opened = [_open(path) for path in paths]
    owner = {name: files for files in opened for name in files.shapes}
    shapes = {name: shape for files in opened for name, shape in files.shapes.items()}
    return TensorFiles(shapes, lambda name: _weights(name, owner[name].read(name)))


@contextmanager
def reading(what: Path | str) -> Iterator[None]:
    """Tell a failure to read apart from one to write.

    Raises:
        CheckpointError: The block raised an `OSError`.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise CheckpointError(f"{error.filename or what} cannot be read: {reason}") from error


def is_lfs_pointer(path: Path) -> bool:
    """Whether a file stands for another that git-lfs has not fetched."""
    with path.open("rb") as file:
        return file.read(len(_LFS_MARK)) == _LFS_MARK


def _weights(name: str, tensor: Tensor) -> Tensor:
    if tensor.dtype not in _DTYPES:
        raise CheckpointError(
            f"tensor `{name}` is of type {_plain(tensor.dtype)}; give weights as fp32, fp16 or bf16"
        )
    return tensor


def _plain(kind: torch.dtype | torch.layout) -> str:
    return str(kind).removeprefix("torch.")


def _shards(index: Path) -> list[Path]:
    try:
        weight_map: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
        if strange := [name for name in names if not isinstance(name, str)]:
            raise TypeError(f"{strange[0]!r} is no file name")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is no index of shards ({error}); copy it again") from None
    if outside := [name for name in names if Path(name).name != name]:
        raise CheckpointError(f"{index} names {outside[0]!r}, which is no file beside it")
    if missing := [name for name in names if not (index.parent / name).exists()]:
        raise CheckpointError(
            f"{index.parent} lacks {len(missing)} of {len(names)} shards ({', '.join(missing)}); "
            "download them"
        )
    return [index.parent / name for name in names]


def _open(path: Path) -> TensorFiles:
    if is_lfs_pointer(path):
        raise CheckpointError(f"{path} is a git-lfs pointer, not weights; run `git lfs pull`")
    return _open_safetensors(path) if path.suffix == ".safetensors" else _open_state_dict(path)


def _open_safetensors(path: Path) -> TensorFiles:
    try:
        file: Any = safe_open(path, framework="pt")
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged or incomplete ({error}); copy it again") from None
    shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return TensorFiles(shapes, file.get_tensor)


def _open_state_dict(path: Path) -> TensorFiles:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on a foreign pickle add nothing to the error
            state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} is damaged or not a plain state dict ({reason}); copy it again, or save one "
            "with `torch.save(model.state_dict(), path)`"
        ) from None
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise CheckpointError(
            f"{path} holds a {type(state).__name__} that is not name → tensor; save one with "
            "`torch.save(model.state_dict(), path)`"
        )
    for name, value in state.items():
        if value.layout is not torch.strided or value.is_meta or value.is_quantized:
            kind = "meta" if value.is_meta else _plain(value.layout)
            kind = "quantized" if value.is_quantized else kind
            raise CheckpointError(
                f"{path}: tensor `{name}` is {kind}; save it dense, with its data"
            )
    return TensorFiles(
        {name: tuple(value.shape) for name, value in state.items()}, state.__getitem__
    )
