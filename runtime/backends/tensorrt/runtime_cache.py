"""Kernels that TensorRT for RTX has compiled for this GPU, kept from one process to the next.

Compiling takes most of the time until the first token. The library itself refuses what was kept by
another version, driver or GPU, and compiles anew.
"""

import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

from drl.runtime.backends.tensorrt.manifest import EngineManifest

_MEND = "set XDG_CACHE_HOME to a folder that can be written"


def cache_folder() -> Path:
    """Where what TensorRT may find again is kept unless told otherwise: in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "drl" / "tensorrt"


def cache_file(engines: EngineManifest) -> Path:
    """Where the kernels of engines are kept, by what they depend on."""
    name = f"{engines.folder_name}-{engines.bundle[:16]}-{engines.precision}.kernels"
    return cache_folder() / name


class RuntimeCache:
    """One for all contexts of a backend.

    Args:
        file: Where it is kept.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._cache: Any = None
        self._kept = b""
        self._able = True

    def attach(self, config: Any) -> None:
        """Let a context that is made with a runtime configuration use and fill the cache.

        Warns if there can be none, or if what was kept cannot be read.
        """
        if self._cache is None and self._able:
            self._cache = config.create_runtime_cache()
            self._able = self._cache is not None
            if not self._able:
                _warn("TensorRT makes no cache for compiled kernels", "see `drl-doctor`")
                return
            self._kept = self._read()
            if self._kept:
                self._cache.deserialize(self._kept)  # False: for another driver, so begin anew
        if self._cache is not None:
            config.set_runtime_cache(self._cache)

    def _read(self) -> bytes:
        try:
            return self._file.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return b""
        except OSError as error:
            _warn(f"compiled kernels cannot be read from {self._file} ({error.strerror})", _MEND)
            return b""

    def save(self) -> None:
        """Keep what has been compiled, in the device's order. Warns if that cannot be done."""
        if self._cache is None:
            return
        memory = self._cache.serialize()
        if memory is None:
            _warn("TensorRT does not give its compiled kernels back", "see `drl-doctor`")
            return
        content = bytes(memory)
        if content == self._kept:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            _replace(self._file, content)
        except OSError as error:
            _warn(f"compiled kernels cannot be kept in {self._file} ({error.strerror})", _MEND)
        self._kept = content


def _warn(what: str, mend: str) -> None:
    warnings.warn(
        f"{what}, so kernels are compiled again in each process; {mend}",
        RuntimeWarning,
        stacklevel=3,
    )


def _replace(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as stream:
        temporary = Path(stream.name)
        try:
            stream.write(content)
            stream.close()
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
