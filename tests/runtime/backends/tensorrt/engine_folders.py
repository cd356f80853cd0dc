"""Engine folders without engines: files of a few bytes, and a manifest that is true of them."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drl.runtime.backends.tensorrt.manifest import (
    EngineInfo,
    EngineManifest,
    EngineOptions,
    ProfileInfo,
    Shapes,
    bundle_digest,
)
from drl.runtime.bundle import Bundle
from drl.runtime.manifest import TensorInfo

SPAN = (1, 8, 32)


def profile(name: str, **dims: tuple[int, int, int]) -> ProfileInfo:
    places = [tuple(size[i] for size in dims.values()) for i in range(3)]
    return ProfileInfo(name, {"x": Shapes(*places)}, dims)


ENCODER = (profile("any", B=SPAN, S=(1, 16, 48)),)
DECODER = (
    profile("prefill", B=SPAN, R=SPAN, K=(1, 8, 24), T=(1, 4, 16)),
    profile("step", B=SPAN, R=SPAN, K=(1, 8, 24), T=(1, 1, 1)),
)


def engine(name: str, content: bytes) -> EngineInfo:
    return EngineInfo(
        file=f"{name}.engine",
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        graph_sha256="0" * 64,
        inputs=(TensorInfo("x", "float16", ("B", "S", 64)),),
        outputs=(TensorInfo("y", "float16", ("B", "S", 64)),),
        profiles=DECODER if name.startswith("decoder") else ENCODER,
        build_seconds=1.5,
    )


def manifest(bundle: Bundle, engines: Mapping[str, EngineInfo], **changes: Any) -> EngineManifest:
    fields: dict[str, Any] = {
        "flavour": "tensorrt-rtx",
        "library_version": "1.7.1.116",
        "compute_capability": "8.9",
        "precision": "fp16",
        "capacity": 48,
        "candidates": 60,
        "plugins": {},
        "options": EngineOptions(),
        "bundle": bundle_digest(bundle.manifest),
        "arguments": ("--batch", "1,8,32"),
        "engines": engines,
    }
    return EngineManifest(**fields | changes)


def write(
    bundle: Bundle,
    *,
    folder: str | None = None,
    names: tuple[str, ...] = (),
    digest: str | None = None,
    **changes: Any,
) -> Path:
    """Write an engine folder to a bundle.

    Args:
        bundle: Whose folder.
        folder: Its name; None for the right one.
        names: Of the engines; the encoder and a decoder if there are none.
        digest: What it says of the bundle; None for the truth.
        **changes: Fields of the manifest.
    """
    contents = {name: name.encode() for name in names or ("encoder", "decoder.fast")}
    made = manifest(bundle, {name: engine(name, c) for name, c in contents.items()}, **changes)
    if digest is not None:
        made = dataclasses.replace(made, bundle=digest)
    path = bundle.folder / "engines" / (folder or made.folder_name)
    path.mkdir(parents=True)
    for name, content in contents.items():
        (path / f"{name}.engine").write_bytes(content)
    (path / "engines.json").write_text(json.dumps(made.to_document()))
    return path
