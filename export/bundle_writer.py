"""Write a bundle: all of it in a temporary folder, which takes its name only when it is whole."""

import hashlib
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import onnx_ir as ir

from drl.export.folders import replace_folder
from drl.export.graph.kv_cache import CACHE_FORMS
from drl.export.model import ModelConfig
from drl.export.options import KvCache
from drl.runtime.bundle import MANIFEST_NAME
from drl.runtime.errors import ExportError
from drl.runtime.manifest import FORMAT, FORMAT_VERSION

_DTYPES = {
    ir.DataType.FLOAT: "float32",
    ir.DataType.INT8: "int8",
    ir.DataType.INT32: "int32",
    ir.DataType.INT64: "int64",
    ir.DataType.BOOL: "bool",
}
_ENGINES = "engines"  # what backends build from a bundle, and can build again
CANONICAL_DECODER = "decoder.canonical.onnx"
_TOOLS = ("drl", "onnx", "onnx-ir", "onnxscript", "torch")


@dataclass(frozen=True)
class BundleContents:
    """What the manifest says beside the files: configuration, target, graphs and defaults.

    Attributes:
        config: Of the model.
        target: What the graphs are lowered to.
        precision: Of the weights.
        graphs: The lowered graphs: encoder, bridge and decoder.
        generation: Defaults of the checkpoint.
        canonical_decoder: The fp32 decoder before the passes of the target, if that is stored too.
        kv_cache: Of keys and values.
    """

    config: ModelConfig
    target: str
    precision: str
    graphs: Mapping[str, ir.Model]
    generation: Mapping[str, Any]
    canonical_decoder: ir.Model | None = None
    kv_cache: KvCache = "fp32"

    @property
    def canonical(self) -> dict[str, str]:
        """The file of every canonical graph, none for rounded weights."""
        if self.precision != "fp32":
            return {}
        files = {name: f"{name}.onnx" for name in self.graphs}
        return files if self.canonical_decoder is None else files | {"decoder": CANONICAL_DECODER}


@contextmanager
def new_folder(destination: Path, *, force: bool) -> Iterator[Path]:
    """Give a temporary folder that becomes `destination` if the block ends well.

    However the block ends, nothing half-made is left, and an earlier folder is replaced only by
    a whole one.

    Raises:
        ExportError: The destination exists and `force` is off, or it cannot be written.
    """
    if destination.exists() and not force:
        raise ExportError(f"{destination} exists already; give --force to replace it")
    if destination.exists():
        _check_replaceable(destination)
    temporary: Path | None = None
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{destination.name}.partial-"
        temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=destination.parent))
        temporary.chmod(0o755)
        yield temporary
        replace_folder(temporary, destination)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ExportError(
            f"cannot write {destination}: {reason}; nothing was changed there, choose another "
            "place or make room"
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def write_manifest(
    folder: Path, contents: BundleContents, parity: Mapping[str, Any] | None
) -> None:
    """Write `bundle.json` for all other files that lie in `folder`.

    Args:
        folder: The bundle under construction.
        contents: What it was made from.
        parity: Summary of the verification, or None if there was none.
    """
    config, form = contents.config, CACHE_FORMS[contents.kv_cache]
    document: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "producer": {tool: metadata.version(tool) for tool in _TOOLS},
        "target": contents.target,
        "precision": contents.precision,
        "model": config.to_dict(),
        "tokens": {
            "pad": config.pad_token_id,
            "eos": config.eos_token_id,
            "start": config.decoder_start_token_id,
        },
        "limits": {
            "vocab_size": config.vocab_size,
            "max_source_length": config.max_source_length,
            "max_target_length": config.max_target_length,
        },
        "cache": {
            "decoder_layers": config.decoder_layers,
            "kv_heads": config.kv_heads,
            "head_dim": config.head_dim,
            "dtype": _DTYPES[form.dtype],
            "scale_bytes": form.behind,
        },
        "paths": _describe_paths(config),
        "path_router": _describe_router(config),
        "generation": _fitting(contents.generation, config),
        "graphs": {name: _describe_graph(name, m) for name, m in contents.graphs.items()},
        "canonical": contents.canonical,
        "files": {
            path.name: _describe_file(path)
            for path in sorted(folder.iterdir())
            if path.name != MANIFEST_NAME
        },
        "parity": parity,
    }
    write_json(folder / MANIFEST_NAME, document)


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON file for people and programs to read.

    Raises:
        ExportError: A number is not finite, which JSON has no word for.
    """
    try:
        text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise ExportError(
            f"{path.name} cannot be written: {error}; look for NaN or infinity in the checkpoint"
        ) from None
    path.write_text(text + "\n", encoding="utf-8")


def _check_replaceable(folder: Path) -> None:
    """Refuse a folder that holds anything but a bundle and what is built from it."""
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if not (folder / MANIFEST_NAME).is_file():
        raise ExportError(
            f"{folder} is no bundle, so --force will not replace it; choose another place"
        )
    known = {MANIFEST_NAME, _ENGINES, *_listed_files(folder / MANIFEST_NAME)}
    if foreign := sorted(path.name for path in folder.iterdir() if path.name not in known):
        raise ExportError(
            f"{folder} holds {foreign[0]}, which its {MANIFEST_NAME} does not list, so --force "
            "will not replace it; move that away or choose another place"
        )


def _listed_files(manifest: Path) -> list[str]:
    """Return the files of a bundle, none if its manifest is damaged."""
    try:
        return list(json.loads(manifest.read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _describe_paths(config: ModelConfig) -> list[dict[str, Any]]:
    return [
        {
            "name": path.name,
            "layers": list(path.layers),
            "experts_per_token": path.experts_per_token,
            "keep_ratio": path.keep_ratio,
            "cost": cost,
        }
        for path, cost in zip(config.paths, config.path_costs, strict=True)
    ]


def _fitting(generation: Mapping[str, Any], config: ModelConfig) -> dict[str, Any]:
    """Return generation defaults that ask for no more tokens than the model's cache holds."""
    longest = config.max_target_length
    limits = {"max_new_tokens": longest, "min_new_tokens": longest}
    limits |= {"max_length": longest + 1, "min_length": longest + 1}  # with the start token
    return {n: min(v, limits[n]) if n in limits else v for n, v in generation.items()}


def _describe_router(config: ModelConfig) -> dict[str, Any] | None:
    router = config.path_router
    return None if router is None else {"head": router.head, "threshold": router.threshold}


def _describe_graph(name: str, model: ir.Model) -> dict[str, Any]:
    operators = Counter(
        f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        for node in model.graph.all_nodes()
    )
    return {
        "file": f"{name}.onnx",
        "nodes": operators.total(),
        "operators": dict(sorted(operators.items())),
        "inputs": [_describe_value(value) for value in model.graph.inputs],
        "outputs": [_describe_value(value) for value in model.graph.outputs],
    }


def _describe_value(value: ir.Value) -> dict[str, Any]:
    assert value.dtype is not None
    assert value.shape is not None
    shape = [dim if isinstance(dim, int) else dim.value for dim in value.shape]
    return {"name": value.name, "dtype": _DTYPES[value.dtype], "shape": shape}


def _describe_file(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}
