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


def cache_file(engines: EngineManifest) -> Path:
    """Where the kernels of engines are kept: in the user's cache, by what they depend on."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "drl" / "tensorrt"
    return folder / f"{engines.folder_name}-{engines.bundle[:16]}-{engines.precision}.kernels"


class RuntimeCache:
    """One for all contexts of a backend.

    Args:
        file: Where it is kept.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._cache: Any = None
        self._kept = b""

    def attach(self, config: Any) -> None:
        """Let a context that is made with a runtime configuration use and fill the cache."""
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            if self._file.exists():
                self._kept = self._file.read_bytes()
                self._cache.deserialize(self._kept)  # False: for another driver, so begin anew
        config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Keep what has been compiled. Warns if the file cannot be written."""
        if self._cache is None:
            return
        content = bytes(self._cache.serialize())
        if content == self._kept:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            _replace(self._file, content)
        except OSError as error:
            warnings.warn(
                f"compiled kernels cannot be kept in {self._file} ({error.strerror}), so the next "
                "process compiles them again; set XDG_CACHE_HOME to a folder that can be written",
                RuntimeWarning,
                stacklevel=2,
            )
        self._kept = content


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
