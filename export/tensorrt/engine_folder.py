"""The folder `engines` of a bundle: what lies there, and changing it as a whole."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from drl.export.folders import replace_folder
from drl.runtime.backends.tensorrt.library import Flavour, release
from drl.runtime.backends.tensorrt.manifest import (
    ENGINES_FOLDER,
    MANIFEST_NAME,
    EngineManifest,
    folder_name,
)
from drl.runtime.backends.tensorrt.store import engine_folders
from drl.runtime.bundle import Bundle
from drl.runtime.errors import BundleError, ExportError

try:
    import fcntl
except ImportError:  # Windows: two builds of one bundle at a time are not kept apart there
    fcntl = None  # type: ignore[assignment]

_LOCK = ".lock"
_PARTIAL = ".partial-"


@contextmanager
def open_engines(bundle: Bundle) -> Iterator[Path]:
    """Give a temporary folder on the file system of a bundle's engines.

    However the block ends, the temporary folder goes, and so does what an earlier build left that
    was killed.

    Raises:
        ExportError: The bundle cannot be written to, the disk is full, or another build is at it.
    """
    root = bundle.folder / ENGINES_FOLDER
    try:
        root.mkdir(exist_ok=True)
        with _lock(root):
            try:
                for left in root.glob(f"{_PARTIAL}*"):
                    shutil.rmtree(left, ignore_errors=True)
                with tempfile.TemporaryDirectory(prefix=_PARTIAL, dir=root) as work:
                    yield Path(work)
            finally:
                _remove_if_bare(root)
    except OSError as error:
        room = ", make room there" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise ExportError(
            f"cannot write {root}: {error.strerror or error}; nothing was changed{room} and run "
            "the command again"
        ) from error


def read_earlier(folder: Path) -> EngineManifest | None:
    """What the manifest of an engine folder says; None if there is none that can be read."""
    try:
        return EngineManifest.load(folder)
    except BundleError:  # whatever is wrong, building anew mends it
        return None


def other_version(bundle: Bundle, flavour: Flavour, version: str, target: str) -> str | None:
    """The newest other library version that a bundle has engines of for the same GPU."""
    versions = [
        found.version
        for found in engine_folders(bundle)
        if found.flavour == flavour
        and found.compute_capability == target
        and found.version != version
    ]
    return max(versions, key=release, default=None)


def store(work: Path, root: Path, manifest: EngineManifest, files: Mapping[str, Path]) -> Path:
    """Put engines and their manifest where they belong, in the place of those that were there.

    Args:
        work: A temporary folder beside the engine folders.
        root: The folder of engine folders.
        manifest: Of all engines.
        files: Where the file of each engine lies now, by the graph's name.

    Returns:
        The engine folder.
    """
    finished = work / manifest.folder_name
    finished.mkdir()
    for name, file in files.items():
        _place(file, finished / manifest.engines[name].file)
    text = json.dumps(manifest.to_document(), indent=2, ensure_ascii=False)
    (finished / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")
    destination = root / manifest.folder_name
    replace_folder(finished, destination)
    return destination


def target_folder(bundle: Bundle, flavour: Flavour, version: str, target: str) -> Path:
    """Where the engines of a bundle for a GPU belong."""
    return bundle.folder / ENGINES_FOLDER / folder_name(flavour, version, target)


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _place(file: Path, destination: Path) -> None:
    """Give a file a second name, or copy it where the file system has no second names."""
    try:
        os.link(file, destination)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS):
            raise
        shutil.copyfile(file, destination)


@contextmanager
def _lock(root: Path) -> Iterator[None]:
    with (root / _LOCK).open("a") as stream:
        if fcntl is not None:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ExportError(
                    f"another build is at {root}; wait until it is done, or stop it"
                ) from None
        yield


def _remove_if_bare(root: Path) -> None:
    """Leave no folder behind that holds nothing but the lock."""
    with suppress(OSError):  # another build may come in between, and then it is not bare
        if [path.name for path in root.iterdir()] == [_LOCK]:
            (root / _LOCK).unlink()
            root.rmdir()
