"""The contents of `engines.json`, read into dataclasses with every field checked.

Within one format version fields may be added, so unknown ones are ignored.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from drl.runtime.backends.tensorrt.library import FLAVOURS, SHORT_NAMES, Flavour, sm
from drl.runtime.errors import BundleError
from drl.runtime.fields import Document, Fields
from drl.runtime.manifest import Manifest, TensorInfo

FORMAT = "drl-engines"
FORMAT_VERSION = 1
ENGINES_FOLDER = "engines"
MANIFEST_NAME = "engines.json"
_WEIGHTS = "weights.bin"
_REPAIR = "run `drl-build BUNDLE` again"
_DOCUMENT = Document(MANIFEST_NAME, _REPAIR)


@dataclass(frozen=True)
class Shapes:
    """The smallest, the usual and the largest shape of an input in one profile."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


@dataclass(frozen=True)
class ProfileInfo:
    """An optimisation profile: what sizes an engine takes.

    Attributes:
        name: `prefill` or `step` for decoders, `any` for the other graphs.
        shapes: Of every input.
        dims: Smallest, usual and largest size of each named dimension.
    """

    name: str
    shapes: Mapping[str, Shapes]
    dims: Mapping[str, tuple[int, int, int]]


@dataclass(frozen=True)
class EngineInfo:
    """One engine file.

    Attributes:
        file: Its name in the folder.
        bytes: Its size.
        sha256: Of the file.
        graph_sha256: Of the graph that it was built from, weights included.
        inputs: Of the engine, in the graph's order; dimensions that vary by name.
        outputs: Likewise.
        profiles: In the engine's order.
        build_seconds: How long building took.
    """

    file: str
    bytes: int
    sha256: str
    graph_sha256: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    profiles: tuple[ProfileInfo, ...]
    build_seconds: float


@dataclass(frozen=True)
class EngineOptions:
    """Properties of engines that one chooses for a whole folder."""

    hardware_compatible: bool = False
    version_compatible: bool = False
    weight_streaming: bool = False


@dataclass(frozen=True)
class EngineManifest:
    """Everything `engines.json` says.

    Attributes:
        flavour: Of TensorRT.
        library_version: Of the library that built the engines.
        compute_capability: Of the GPUs that they are for, as `8.9`.
        precision: Of the lowered graphs.
        capacity: Positions of the KV cache, C.
        candidates: How many of the largest logits the decoder tells, c.
        plugins: SHA-256 of every plugin in the engines, by name.
        options: Properties of the engines.
        bundle: What `bundle_digest` gave for the bundle that they were built from.
        arguments: What `drl-build` was given beside the flavour and the compute capability.
        engines: By the graph's name.
    """

    flavour: Flavour
    library_version: str
    compute_capability: str
    precision: str
    capacity: int
    candidates: int
    plugins: Mapping[str, str]
    options: EngineOptions
    bundle: str
    arguments: tuple[str, ...]
    engines: Mapping[str, EngineInfo]

    @property
    def folder_name(self) -> str:
        """What the folder of these engines is called."""
        return folder_name(self.flavour, self.library_version, self.compute_capability)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the manifest of an engine folder. The engine files are not looked at.

        Raises:
            BundleError: It is missing, damaged or of a newer format.
        """
        path = folder / MANIFEST_NAME
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{path} is not JSON ({error}); {_REPAIR}") from None
        except OSError as error:
            raise BundleError(f"{path} cannot be read ({error.strerror}); {_REPAIR}") from None
        return cls.parse(document)

    @classmethod
    def parse(cls, document: object) -> Self:
        """Read a decoded `engines.json`. Raises `BundleError` naming the first wrong field."""
        fields = Fields(_DOCUMENT, document)
        _check_format(fields)
        options = fields.object("options")
        flavour = fields.text("flavour")
        if flavour not in FLAVOURS:
            raise _DOCUMENT.wrong("flavour", " or ".join(FLAVOURS), flavour)
        return cls(
            flavour=flavour,
            library_version=fields.text("library_version"),
            compute_capability=fields.text("compute_capability"),
            precision=fields.text("precision"),
            capacity=fields.integer("capacity", 1),
            candidates=fields.integer("candidates", 1),
            plugins=fields.texts("plugins"),
            options=EngineOptions(
                **{
                    field.name: options.truth(field.name)
                    for field in dataclasses.fields(EngineOptions)
                }
            ),
            bundle=fields.text("bundle"),
            arguments=tuple(map(str, fields.array("arguments"))),
            engines={name: _engine(item) for name, item in fields.named("engines").items()},
        )

    def to_document(self) -> dict[str, Any]:
        """The manifest as it is written, ready for JSON."""
        return {"format": FORMAT, "format_version": FORMAT_VERSION} | dataclasses.asdict(self)


def folder_name(flavour: Flavour, library_version: str, compute_capability: str) -> str:
    """What the folder of such engines is called: `rtx-1.7.1.116-sm89`."""
    return f"{SHORT_NAMES[flavour]}-{library_version}-sm{sm(compute_capability)}"


def bundle_digest(manifest: Manifest) -> str:
    """A SHA-256 that changes with a bundle's canonical graphs and with its weights.

    It is made of the hashes that the bundle's manifest lists, so no file is read.
    """
    digest = hashlib.sha256()
    for name in sorted({*manifest.canonical.values(), _WEIGHTS}):
        if name in manifest.files:
            digest.update(f"{name} {manifest.files[name].sha256.lower()}\n".encode())
    return digest.hexdigest()


def _check_format(fields: Fields) -> None:
    found = fields.items.get("format")
    if found != FORMAT:
        raise BundleError(
            f"{MANIFEST_NAME} does not describe engines (format {found!r}, not {FORMAT!r}); "
            f"{_REPAIR}"
        )
    version = fields.integer("format_version", 1)
    if version > FORMAT_VERSION:
        raise BundleError(
            f"the engines have format {version} and this drl reads up to {FORMAT_VERSION}; "
            f"upgrade with `pip install --upgrade drl`, or {_REPAIR}"
        )


def _engine(fields: Fields) -> EngineInfo:
    file = fields.text("file")
    if not re.fullmatch(r"[^/\\\0]+\.engine", file):
        raise _DOCUMENT.wrong(fields.at("file"), "a plain file name", file)
    return EngineInfo(
        file=file,
        bytes=fields.integer("bytes"),
        sha256=fields.text("sha256"),
        graph_sha256=fields.text("graph_sha256"),
        inputs=_tensors(fields, "inputs"),
        outputs=_tensors(fields, "outputs"),
        profiles=tuple(_profile(item) for item in fields.objects("profiles")),
        build_seconds=fields.number("build_seconds"),
    )


def _tensors(fields: Fields, name: str) -> tuple[TensorInfo, ...]:
    return tuple(
        TensorInfo(item.text("name"), item.text("dtype"), tuple(item.array("shape")))
        for item in fields.objects(name)
    )


def _profile(fields: Fields) -> ProfileInfo:
    dims = fields.object("dims")
    return ProfileInfo(
        name=fields.text("name"),
        shapes={
            name: Shapes(item.integers("min"), item.integers("opt"), item.integers("max"))
            for name, item in fields.named("shapes").items()
        },
        dims={name: _range(dims, name) for name in dims.items},
    )


def _range(fields: Fields, name: str) -> tuple[int, int, int]:
    values = fields.integers(name)
    if len(values) != 3:
        raise _DOCUMENT.wrong(fields.at(name), "three numbers", list(values))
    return values[0], values[1], values[2]
