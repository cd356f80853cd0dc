"""The compiled library: where it lies, and how to get it where it is missing or wrong."""

import ctypes
import sys
from dataclasses import dataclass
from pathlib import Path

ABI_VERSION = 7
"""`DRL_NATIVE_ABI_VERSION` of `src/drl_native.h`."""
_SUFFIX = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")
LIBRARY = Path(__file__).parent / f"libdrl_native{_SUFFIX}"

NO_LIBRARY = (
    "DRL's native kernels were not built: the installation found no C++ compiler that works; "
    "install one (such as g++) and install DRL again"
)


class NativeLibraryError(Exception):
    """The native library is missing, of another version, or refuses what it was given."""


@dataclass(frozen=True)
class NativeLibrary:
    """What this installation has.

    Attributes:
        path: The compiled library, which holds the kernels and the operators for ONNX Runtime; or
            None.
        missing: What is missing, why, and how to get it; empty where all is there.
    """

    path: Path | None
    missing: str = ""


def find_library(path: Path = LIBRARY) -> NativeLibrary:
    """Look for the library and load it.

    Raises:
        NativeLibraryError: A library is there and does not load, or is another version's.
    """
    if not path.exists():
        return NativeLibrary(None, NO_LIBRARY)
    load(path)
    return NativeLibrary(path)


def load(path: Path = LIBRARY) -> ctypes.CDLL:
    """The library's functions, without their types.

    Raises:
        NativeLibraryError: It is missing, does not load, or is another version's.
    """
    if not path.exists():
        raise NativeLibraryError(NO_LIBRARY)
    try:
        handle = ctypes.CDLL(str(path))
    except OSError as error:
        raise NativeLibraryError(
            f"{path} does not load ({error}): it is damaged, or was built for another processor or "
            "system; install DRL again on this machine"
        ) from error
    try:
        handle.drl_abi_version.restype = ctypes.c_uint32
        version = handle.drl_abi_version()
    except AttributeError as error:
        raise NativeLibraryError(
            f"{path} is not DRL's native library, since it has no drl_abi_version; "
            "install DRL again"
        ) from error
    if version != ABI_VERSION:
        raise NativeLibraryError(
            f"{path} was built by another version of DRL: its interface is {version} and this one "
            f"needs {ABI_VERSION}; install DRL again"
        )
    return handle
