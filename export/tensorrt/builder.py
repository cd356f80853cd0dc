"""The recipe: a bundle's canonical graphs to the engines that lie in it."""

import dataclasses
import time
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import onnx_ir as ir

from drl.export.tensorrt.engine_folder import open_engines
from drl.export.tensorrt.engine_process import EngineProcesses
from drl.export.tensorrt.folder_build import FolderBuild
from drl.export.tensorrt.folder_plan import plan_folder
from drl.export.tensorrt.options import BuildOptions
from drl.export.tensorrt.progress import Progress, Silence
from drl.export.tensorrt.report import BuildReport, FolderReport
from drl.export.tensorrt.sizes import fit
from drl.export.tensorrt.targets import check_flavour, choose_targets
from drl.export.tensorrt.wanted import check_range, lower
from drl.runtime.backends.tensorrt.library import (
    SHORT_NAMES,
    Flavour,
    import_library,
    keeps_timings,
    version,
)
from drl.runtime.bundle import Bundle
from drl.runtime.errors import BackendError, ExportError, nearest_name
from drl.runtime.gpu import GpuReport, find_gpus


def build_engines(
    bundle: Bundle,
    options: BuildOptions,
    progress: Progress | None = None,
    *,
    processes: EngineProcesses | None = None,
    machine: GpuReport | None = None,
    before: Sequence[ir.passes.PassBase] = (),
) -> BuildReport:
    """Build the engines of a bundle that are missing or stale, for every target.

    An engine folder changes as a whole, when all of its engines are built. However the build ends,
    nothing half-made stays, and timings that were measured are kept.

    Args:
        bundle: Holds canonical graphs, and gets the engines.
        options: What to build.
        progress: Is told what happens.
        processes: Build the engines; None starts one process for each.
        machine: The GPUs that are here; None asks the driver.
        before: Passes over the canonical graphs as they are loaded, which may add outputs.

    Raises:
        BackendError: A library is missing.
        BundleError: The bundle holds no canonical graphs.
        ExportError: The options do not fit bundle or machine, or the library fails on a graph.
    """
    began = time.perf_counter()
    progress = progress or Silence()
    check_flavour(options)
    library = _import(options.flavour)
    machine = find_gpus() if machine is None else machine
    targets = choose_targets(options, library, machine)
    sizes = fit(options.sizes, bundle.manifest.limits, bundle.manifest.cache)
    bundle.canonical_file("decoder")
    _check_paths(bundle, options.paths)
    processes = processes or EngineProcesses(time_limit=options.time_limit)
    with open_engines(bundle) as work:
        progress.stage("lowering the graphs")
        lowering = lower(bundle, options, sizes, version(library), work, before)
        plans = [plan_folder(bundle, options, lowering.wanted, target) for target in targets]
        gate = "not needed"
        if any(plan.reasons for plan in plans):
            gate = check_range(bundle, options, progress)
        progress.stage("")
        notes: list[str] = []
        options = _one_at_a_time(options, progress, notes)
        builds = [
            FolderBuild(options, lowering, plan, processes, progress, work, notes) for plan in plans
        ]
        folders = _run(builds)
    wanted = lowering.wanted
    return BuildReport(
        flavour=options.flavour,
        library_version=wanted.library_version,
        precision=wanted.precision,
        capacity=wanted.capacity,
        candidates=wanted.candidates,
        plugins=bool(wanted.plugins),
        gate=gate,
        lowering_seconds=lowering.seconds,
        seconds=time.perf_counter() - began,
        folders=tuple(folders),
        warnings=tuple(dict.fromkeys(notes)),
    )


def _one_at_a_time(options: BuildOptions, progress: Progress, notes: list[str]) -> BuildOptions:
    """Keep builds apart that measure kernels: on one GPU they would measure each other."""
    if options.jobs == 1 or not keeps_timings(options.flavour):
        return options
    note = "engines are built one at a time, since TensorRT measures kernels on the GPU (--jobs)"
    notes.append(note)
    progress.note(note)
    return dataclasses.replace(options, jobs=1)


def _run(builds: Sequence[FolderBuild]) -> list[FolderReport]:
    """Build folder after folder; an error says which are done."""
    done: list[FolderReport] = []
    for build in builds:
        try:
            done.append(build.run())
        except ExportError as error:
            if not done:
                raise
            targets = ", ".join(folder.compute_capability for folder in done)
            raise ExportError(f"{error}; the engines for {targets} are done and stay") from error
    return done


def _import(flavour: Flavour) -> Any:
    """Import TensorRT, and see that Polygraphy is there for the build processes."""
    library = import_library(flavour)
    if find_spec("polygraphy") is None:
        raise BackendError(
            "polygraphy is not installed, and building needs it; "
            f'run `pip install "drl[{SHORT_NAMES[flavour]}]"`'
        )
    return library


def _check_paths(bundle: Bundle, asked: Sequence[str]) -> None:
    known = [path.name for path in bundle.manifest.paths]
    for name in asked:
        if name not in known:
            near = nearest_name(name, known)
            hint = f"did you mean {near!r}?" if near else f"there are {', '.join(known)}"
            raise ExportError(f"{bundle.folder} has no path {name!r}; {hint}")
