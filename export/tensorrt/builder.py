"""The recipe: a bundle's canonical graphs to the engines that lie in it."""

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
from drl.export.tensorrt.report import BuildReport
from drl.export.tensorrt.sizes import fit
from drl.export.tensorrt.targets import check_flavour, choose_targets
from drl.export.tensorrt.wanted import check_range, lower
from drl.runtime.backends.tensorrt.library import SHORT_NAMES, Flavour, import_library, version
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
        folders = [
            FolderBuild(bundle, options, lowering, plan, processes, progress, work, notes).run()
            for plan in plans
        ]
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
