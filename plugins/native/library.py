"""The compiled library: where it lies, what it holds, and how to get it where it is missing."""

import ctypes
import sys
from dataclasses import dataclass
from pathlib import Path

ABI_VERSION = 1
"""`DRL_NATIVE_ABI_VERSION` of `src/drl_native.h`."""
_SUFFIX = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")
LIBRARY = Path(__file__).parent / f"libdrl_native{_SUFFIX}"

NO_LIBRARY = (
    "DRL's native kernels were not built: the installation found no C++ compiler that works, or is "
    "older than they are; install one (such as g++) and install DRL again"
)
NO_OPERATORS = (
    "DRL's native kernels were built without ONNX Runtime's operators, since its C headers were "
    "missing; install them (Debian and Ubuntu: libonnxruntime-dev) or name their folder in "
    "DRL_ORT_INCLUDE, and install DRL again"
)


class NativeLibraryError(Exception):
    """The native library is missing, of another version, or refuses what it was given."""


@dataclass(frozen=True)
class NativeLibrary:
    """What this installation has.

    Attributes:
        path: The compiled library, or None.
        has_operators: Whether it also holds operators for ONNX Runtime.
        missing: What is missing, why, and how to get it; empty where all is there.
    """

    path: Path | None
    has_operators: bool
    missing: str = ""


def find_library(path: Path = LIBRARY) -> NativeLibrary:
    """Look for the library and load it.

    Raises:
        NativeLibraryError: A library is there and does not load, or is another version's.
    """
    if not path.exists():
        return NativeLibrary(None, False, NO_LIBRARY)
    handle = load(path)
    if not hasattr(handle, "RegisterCustomOps"):
        return NativeLibrary(path, False, NO_OPERATORS)
    return NativeLibrary(path, True)


def load(path: Path = LIBRARY) -> ctypes.CDLL:
    """The library's functions, without their types.

    Raises:
        NativeLibraryError: It is missing, does not load, or is another version's.
    """
    if not path.exists():
        raise NativeLibraryError(NO_LIBRARY)
    try:
        handle = ctypes.CDLL(str(path))
        handle.drl_abi_version.restype = ctypes.c_uint32
        version = handle.drl_abi_version()
    except (OSError, AttributeError) as error:
        raise NativeLibraryError(f"{path} does not load ({error}); install DRL again") from error
    if version != ABI_VERSION:
        raise NativeLibraryError(
            f"{path} has interface version {version} and this is DRL with {ABI_VERSION}; "
            "install DRL again"
        )
    return handle
