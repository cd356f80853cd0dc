"""A bundle: the deployable folder of graphs, weights, tokenizer and manifest."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Self

from drl.runtime.errors import BundleError
from drl.runtime.manifest import REPAIR, FileInfo, Manifest, check_format, parse_manifest

MANIFEST_NAME = "bundle.json"
TOKENIZER_NAME = "tokenizer.json"


@dataclass(frozen=True)
class Bundle:
    """A bundle whose manifest was read and whose files were found to be what it says.

    Attributes:
        folder: Where the bundle lies.
        manifest: The checked contents of `bundle.json`.
    """

    folder: Path
    manifest: Manifest

    @classmethod
    def load(cls, folder: str | Path, *, verify_hashes: bool = True) -> Self:
        """Read the manifest of `folder` and hold every file against it.

        Sizes are always compared. `verify_hashes=False` skips reading the files to compare their
        SHA-256, which takes about a second per gigabyte.

        Raises:
            BundleError: The folder is missing, empty, damaged, of a newer format, or names files
                outside itself.
        """
        if not isinstance(folder, str | os.PathLike):
            kind = type(folder).__name__
            raise BundleError(f"the bundle must be given as the path of its folder, not as {kind}")
        folder = Path(folder)
        bundle = cls(folder, parse_manifest(_read_document(folder)))
        bundle._check_files(verify_hashes)
        return bundle

    def file(self, name: str) -> Path:
        """The path of one of the bundle's files. Raises `BundleError` for one it does not have."""
        if name not in self.manifest.files:
            raise BundleError(f"{self.folder} lists no {name}; {REPAIR}")
        return self.folder / name

    def graph_file(self, graph: str) -> Path:
        """The path of the graph called "encoder", "bridge" or "decoder"."""
        return self.file(self.manifest.graphs[graph].file)

    def canonical_file(self, graph: str) -> Path:
        """The path of the canonical graph called "encoder", "bridge" or "decoder".

        Raises:
            BundleError: The bundle does not hold canonical graphs.
        """
        if not self.manifest.canonical:
            raise BundleError(
                f"{self.folder} holds no canonical graphs, which other backends are made from; "
                "export the checkpoint again in fp32: `drl-export CHECKPOINT BUNDLE`"
            )
        return self.file(self.manifest.canonical[graph])

    @property
    def tokenizer_file(self) -> Path | None:
        """The path of `tokenizer.json`, or None for a bundle that takes token ids only."""
        return self.file(TOKENIZER_NAME) if TOKENIZER_NAME in self.manifest.files else None

    @property
    def size(self) -> int:
        """The bytes of all files that the manifest lists."""
        return sum(info.bytes for info in self.manifest.files.values())

    def _check_files(self, verify_hashes: bool) -> None:
        root = self.folder.resolve()
        faults = []
        for name, info in self.manifest.files.items():
            _check_inside(root, name)
            fault = _find_fault(root / name, info, verify_hashes)
            if fault:
                faults.append(f"{name} {fault}")
        if faults:
            raise BundleError(f"{self.folder} is damaged: {', '.join(faults)}; {REPAIR}")


def _read_document(folder: Path) -> object:
    """Decode `bundle.json` as far as is needed to know that this version can read it."""
    make = f"make one with `drl-export CHECKPOINT {folder}`"
    if not folder.exists():
        raise BundleError(f"there is no bundle at {folder}; {make}")
    if not folder.is_dir():
        raise BundleError(f"{folder} is a file, and a bundle is a folder; {make}")
    path = folder / MANIFEST_NAME
    if not path.exists():
        state = "has no bundle.json" if any(folder.iterdir()) else "is empty"
        raise BundleError(f"{folder} {state}, so it is no bundle; {make}")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not JSON ({error}); {REPAIR}") from None
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from None
    check_format(document)
    return document


def _check_inside(root: Path, name: str) -> None:
    """Refuse a file name that could make the loader read outside the bundle.

    The rule is the same on every system, so both path grammars are tried. `resolve` follows
    symbolic links, which catches a link that leads out.
    """
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    plain = name not in ("", ".") and "\\" not in name and "\0" not in name
    absolute = posix.is_absolute() or bool(windows.anchor)
    if not plain or absolute or ".." in posix.parts:
        raise BundleError(f"bundle.json lists {name!r}, which is no plain file name; {REPAIR}")
    if not (root / name).resolve().is_relative_to(root):
        raise BundleError(f"{name} is a link out of {root}; copy the file into the bundle")


def _find_fault(path: Path, expected: FileInfo, verify_hash: bool) -> str | None:
    """What is wrong with the file at `path`, or None."""
    try:
        if not path.is_file():
            return "is missing"
        size = path.stat().st_size
        if size != expected.bytes:
            return f"has {size} bytes instead of {expected.bytes}"
        if verify_hash:
            with path.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            if digest != expected.sha256.lower():
                return "was altered (its SHA-256 differs)"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None
