"""The timings of kernels that TensorRT measured, kept in a file that builds share."""

import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

from drl.runtime.backends.tensorrt.library import Flavour
from drl.runtime.backends.tensorrt.manifest import folder_name


def cache_file(folder: Path, flavour: Flavour, version: str, compute_capability: str) -> Path:
    """The file for a library and a GPU: timings of others would be wrong."""
    return folder / f"{folder_name(flavour, version, compute_capability)}.timing"


def load(config: Any, path: Path) -> str:
    """Give a builder configuration the timings in a file, or none if there is no file.

    Returns:
        Why the file cannot be used, or nothing. The build then measures anew.
    """
    content, fault = b"", ""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        pass
    except OSError as error:
        fault = f"the timing cache {path} cannot be read ({error.strerror})"
    cache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        fault = f"the timing cache {path} is damaged or of another GPU, and is made anew"
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    return fault


def save(config: Any, path: Path) -> str:
    """Add the timings that a build measured to a file, which changes as a whole or not at all.

    What another build wrote in the meantime is kept.

    Returns:
        Why the timings cannot be kept, or nothing.
    """
    cache = config.get_timing_cache()
    if cache is None:
        return ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path):
            if path.exists():
                earlier = config.create_timing_cache(path.read_bytes())
                if earlier is not None:
                    cache.combine(earlier, ignore_mismatch=False)
            _replace(path, bytes(cache.serialize()))
    except OSError as error:
        return f"the timing cache {path} cannot be written ({error.strerror})"
    return ""


def _locked(path: Path) -> Any:
    """Hold other builds back while the file is read and replaced."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries that Polygraphy imports
        from polygraphy.util import LockFile
    return LockFile(str(path))


def _replace(path: Path, content: bytes) -> None:
    number, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(number, "wb") as stream:
            stream.write(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
