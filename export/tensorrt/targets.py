"""Which GPUs to build for, and whether a flavour can."""

from collections.abc import Sequence
from typing import Any

from drl.export.tensorrt.options import BuildOptions
from drl.runtime.backends.tensorrt.library import (
    builds_without_gpu,
    makes_portable_engines,
    release,
    takes_plugins,
    targets,
    title,
)
from drl.runtime.errors import ExportError
from drl.runtime.gpu import GpuReport

_FIRST_WITH_FP8 = (8, 9)


def choose_targets(options: BuildOptions, library: Any, machine: GpuReport) -> tuple[str, ...]:
    """The compute capabilities to build for, as `("8.0", "8.9")`.

    Args:
        options: What was asked for.
        library: The flavour's module.
        machine: The GPUs that are here.

    Raises:
        ExportError: There is no GPU and none was named, or the flavour does not build for it.
    """
    here = machine.gpus[0].compute_capability if machine.gpus else None
    if builds_without_gpu(options.flavour):
        chosen = _named_or_here(options.targets, here, targets(library), machine)
    else:
        chosen = _only_here(options.targets, here, machine)
    if options.precision == "fp8":
        for target in chosen:
            if release(target) < _FIRST_WITH_FP8:
                raise ExportError(
                    f"GPUs of compute capability {target} have no fp8, it begins with 8.9; "
                    "give --precision fp16 or bf16"
                )
    return chosen


def check_flavour(options: BuildOptions) -> None:
    """Refuse what a flavour does not have. Raises `ExportError`."""
    name = title(options.flavour)
    if options.plugins and not takes_plugins(options.flavour):
        raise ExportError(
            f"{name} takes no plugins; leave --plugins out, or build with --flavour tensorrt"
        )
    if makes_portable_engines(options.flavour):
        return
    if options.engine.hardware_compatible:
        raise ExportError(
            f"{name} builds for one compute capability at a time; "
            "name all of them in --compute-capability instead of --hardware-compatible"
        )
    if options.engine.version_compatible:
        raise ExportError(
            f"engines of {name} run on the version that built them; leave --version-compatible "
            "out, and build again after an upgrade"
        )


def _named_or_here(
    named: Sequence[str], here: str | None, known: Sequence[str], machine: GpuReport
) -> tuple[str, ...]:
    if not named and here is None:
        raise ExportError(
            f"{machine.fault}, so say which GPUs to build for: --compute-capability "
            f"{','.join(known)} or some of them"
        )
    chosen = tuple(dict.fromkeys(named)) or (str(here),)
    for target in chosen:
        if target not in known:
            whose = "" if named else ", which this machine's GPU has"
            raise ExportError(
                f"TensorRT for RTX does not build for compute capability {target}{whose}; it "
                f"builds for {', '.join(known)}"
                + ("" if target in named else "; build with --flavour tensorrt on this machine")
            )
    return chosen


def _only_here(named: Sequence[str], here: str | None, machine: GpuReport) -> tuple[str, ...]:
    if here is None:
        raise ExportError(
            f"{machine.fault}, and TensorRT builds on the GPU that the engines are for; build on a "
            "machine that has it, or with --flavour rtx --compute-capability 8.9"
        )
    if wrong := [target for target in named if target != here]:
        raise ExportError(
            f"TensorRT builds for the GPU that is here, of compute capability {here}, and not for "
            f"{', '.join(wrong)}; build on a machine that has it, or with --flavour rtx"
        )
    return (here,)
