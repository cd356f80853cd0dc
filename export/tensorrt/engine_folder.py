"""The folder `engines` of a bundle: what lies there, and changing it as a whole."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import IO

from drl.export.folders import replace_folder, restore_replaced
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
_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def open_engines(bundle: Bundle) -> Iterator[Path]:
    """Give a temporary folder on the file system of a bundle's engines.

    However the block ends, the temporary folder goes, and so does what an earlier build left that
    was killed.

    Raises:
        ExportError: The bundle cannot be written to, the disk is full, or another build is at it.
    """
    root = bundle.folder / ENGINES_FOLDER
    with _writing(root):
        lock = _take_lock(root)
    with closing(lock):
        try:
            with _writing(root):
                restore_replaced(root)
                for left in root.glob(f"{_PARTIAL}*"):
                    shutil.rmtree(left, ignore_errors=True)
                work = tempfile.mkdtemp(prefix=_PARTIAL, dir=root)
            try:
                yield Path(work)
            except OSError as error:  # of the graphs, most likely; others have names of their own
                if error.errno not in _FULL:
                    raise
                raise _cannot_write(root, error) from error
            finally:
                shutil.rmtree(work, ignore_errors=True)
        finally:
            _remove_if_bare(root)


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

    Raises:
        ExportError: It cannot be written, and is as it was.
    """
    finished = work / manifest.folder_name
    destination = root / manifest.folder_name
    with _writing(destination):
        finished.mkdir()
        for name, file in files.items():
            _place(file, finished / manifest.engines[name].file)
        text = json.dumps(manifest.to_document(), indent=2, ensure_ascii=False)
        (finished / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")
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
def _writing(folder: Path) -> Iterator[None]:
    """Tell which folder cannot be written. Raises `ExportError`."""
    try:
        yield
    except OSError as error:
        raise _cannot_write(folder, error) from error


def _cannot_write(folder: Path, error: OSError) -> ExportError:
    room = ", make room" if error.errno in _FULL else ""
    return ExportError(
        f"cannot write {folder}: {error.strerror or error}; nothing was changed there{room} and "
        "run the command again"
    )


def _take_lock(root: Path) -> IO[str]:
    """Lock a folder, which is made if it is not there; until the file is closed.

    The last build that leaves nothing behind removes the folder with its lock. So a lock counts
    only if its file still has its name when it is got.
    """
    while True:
        root.mkdir(exist_ok=True)
        try:
            stream = (root / _LOCK).open("a")
        except FileNotFoundError:  # the folder was removed in between
            continue
        if fcntl is None:
            return stream
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(stream.fileno()), (root / _LOCK).stat()):
                return stream
        except FileNotFoundError:
            pass
        except BlockingIOError:
            stream.close()
            raise ExportError(
                f"another build is at {root}; wait until it is done, or stop it"
            ) from None
        stream.close()


def _remove_if_bare(root: Path) -> None:
    """Leave no folder behind that holds nothing but the lock, which the caller has."""
    with suppress(OSError):  # another build may come in between, and then it is not bare
        if [path.name for path in root.iterdir()] == [_LOCK]:
            (root / _LOCK).unlink()
            root.rmdir()
