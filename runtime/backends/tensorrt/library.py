"""The two libraries called TensorRT: NVIDIA's TensorRT, and TensorRT for RTX.

They share an API. What one can and the other cannot is said here, and nowhere else.
"""

import re
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Literal, get_args

from drl.runtime.errors import BackendError

Flavour = Literal["tensorrt", "tensorrt-rtx"]
FLAVOURS: tuple[Flavour, ...] = get_args(Flavour)
SHORT_NAMES: Mapping[Flavour, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "rtx"}
"""What folders and the option `--flavour` call them."""

FIRST_PORTABLE = (8, 0)
"""Hardware-compatible engines run from Ampere on, on this compute capability and later ones."""

_MODULES: Mapping[Flavour, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_OLDEST: Mapping[Flavour, tuple[int, int]] = {"tensorrt": (11, 0), "tensorrt-rtx": (1, 7)}
_INSTALL: Mapping[Flavour, str] = {
    "tensorrt": 'install it from NVIDIA, `pip install "drl[tensorrt]"`',
    "tensorrt-rtx": 'run `pip install "drl[rtx]"`',
}
_TITLES: Mapping[Flavour, str] = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT for RTX"}


def flavour_of(name: str) -> Flavour:
    """The flavour that a short or a full name means. Raises `BackendError` for any other name."""
    for flavour, short in SHORT_NAMES.items():
        if name in (flavour, short):
            return flavour
    raise BackendError(f"there is no TensorRT flavour {name!r}; there are tensorrt and rtx")


def title(flavour: Flavour) -> str:
    """The library's name, for people."""
    return _TITLES[flavour]


def import_library(flavour: Flavour) -> ModuleType:
    """Import a flavour's module.

    Raises:
        BackendError: It is not installed, too old, or its shared libraries do not load.
    """
    name = _MODULES[flavour]
    try:
        module = import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != name:
            reason = f"{title(flavour)} is not installed as a whole: {error}"
        else:
            reason = f"{title(flavour)} is not installed"
        raise BackendError(f"{reason}; {_INSTALL[flavour]}") from None
    except (ImportError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise BackendError(
            f"{title(flavour)} is installed and does not load ({reason}); {_INSTALL[flavour]}"
        ) from error
    if release(version(module)) < _OLDEST[flavour]:
        oldest = ".".join(map(str, _OLDEST[flavour]))
        raise BackendError(
            f"{title(flavour)} {version(module)} is too old, drl needs {oldest}; "
            f"{_INSTALL[flavour]}"
        )
    return module


def version(module: ModuleType) -> str:
    """The version that engines of this library belong to, as `1.7.1.116`."""
    text: str = module.__version__
    return text


def release(text: str) -> tuple[int, ...]:
    """The numbers of a version, to compare it by: `(1, 7, 1, 116)`."""
    return tuple(int(number) for number in re.findall(r"\d+", text))


def default_flavour() -> Flavour:
    """The flavour to use where none is named: the first that is installed, TensorRT before RTX."""
    return next((name for name in FLAVOURS if find_spec(_MODULES[name])), FLAVOURS[0])


def installed_flavours() -> dict[Flavour, str]:
    """The version of every flavour that can be imported here."""
    found: dict[Flavour, str] = {}
    for flavour in FLAVOURS:
        try:
            found[flavour] = version(import_library(flavour))
        except BackendError:  # not an answer to this question: `import_library` gives it
            continue
    return found


def takes_plugins(flavour: Flavour) -> bool:
    """Whether engines of this flavour may hold plugins."""
    return flavour == "tensorrt"


def builds_without_gpu(flavour: Flavour) -> bool:
    """Whether the flavour builds for GPUs that are not in this machine."""
    return flavour == "tensorrt-rtx"


def keeps_timings(flavour: Flavour) -> bool:
    """Whether building measures kernels, so that a timing cache makes the next build faster.

    TensorRT for RTX compiles kernels where the engine runs, and has no timings to keep.
    """
    return flavour == "tensorrt"


def makes_portable_engines(flavour: Flavour) -> bool:
    """Whether the flavour builds hardware-compatible and version-compatible engines."""
    return flavour == "tensorrt"


def targets(module: Any) -> tuple[str, ...]:
    """The compute capabilities that TensorRT for RTX builds for: `("7.5", "8.0", …, "12.1")`."""
    found = []
    for name in module.ComputeCapability.__members__:
        if match := re.fullmatch(r"SM(\d+)(\d)", name):
            found.append((int(match[1]), int(match[2])))
    return tuple(f"{major}.{minor}" for major, minor in sorted(found))


def sm(compute_capability: str) -> str:
    """`89` for the compute capability `8.9`."""
    return compute_capability.replace(".", "")
