"""The recipe: a bundle's canonical graphs to the engines that lie in it."""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from drl.export.tensorrt import timing_cache
from drl.export.tensorrt.engine_folder import (
    file_sha256,
    open_engines,
    other_version,
    read_earlier,
    store,
    target_folder,
)
from drl.export.tensorrt.engine_process import Built, EngineProcesses
from drl.export.tensorrt.job import Job
from drl.export.tensorrt.options import BuildOptions
from drl.export.tensorrt.plan import Wanted
from drl.export.tensorrt.progress import Progress, Silence
from drl.export.tensorrt.reasons import reason_to_build, reason_to_remove
from drl.export.tensorrt.report import BuildReport, EngineReport, FolderReport
from drl.export.tensorrt.sizes import fit
from drl.export.tensorrt.targets import check_flavour, choose_targets
from drl.export.tensorrt.wanted import Lowering, check_range, lower
from drl.runtime.backends.tensorrt.library import (
    SHORT_NAMES,
    Flavour,
    import_library,
    keeps_timings,
    version,
)
from drl.runtime.backends.tensorrt.manifest import EngineInfo, EngineManifest
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
    sizes = fit(options.sizes, bundle.manifest.limits)
    bundle.canonical_file("decoder")
    _check_paths(bundle, options.paths)
    processes = processes or EngineProcesses(time_limit=options.time_limit)
    with open_engines(bundle) as work:
        progress.stage("lowering the graphs")
        lowering = lower(bundle, options, sizes, version(library), work)
        plans = [_plan(bundle, options, lowering.wanted, target) for target in targets]
        gate = "not needed"
        if any(plan.reasons for plan in plans):
            gate = check_range(bundle, options, progress)
        progress.stage("")
        notes: list[str] = []
        folders = [
            _Build(bundle, options, lowering, plan, processes, progress, work, notes).run()
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


@dataclass(frozen=True)
class _Plan:
    """What to do for one GPU.

    Attributes:
        target: Its compute capability.
        folder: Where its engines belong.
        earlier: What lies there, if it can be read.
        reasons: Why to build each engine that must be, by the graph's name.
        removals: Why each engine must go that was not asked for.
        selected: Every graph that was asked for.
    """

    target: str
    folder: Path
    earlier: EngineManifest | None
    reasons: Mapping[str, str]
    removals: Mapping[str, str]
    selected: tuple[str, ...]


def _plan(bundle: Bundle, options: BuildOptions, wanted: Wanted, target: str) -> _Plan:
    flavour, here = wanted.flavour, wanted.library_version
    folder = target_folder(bundle, flavour, here, target)
    earlier = read_earlier(folder)
    selected = tuple(name for name in wanted.graphs if _asked_for(name, options.paths))
    reasons = {name: reason_to_build(wanted, name, earlier, folder) for name in selected}
    before = other_version(bundle, flavour, here, target)
    if earlier is None and before is not None:
        reasons = dict.fromkeys(selected, f"library {before} → {here}")
    if options.force:
        reasons = {name: reason or "--force" for name, reason in reasons.items()}
    others = set(earlier.engines) - set(selected) if earlier is not None else ()
    removals = {
        name: reason_to_remove(wanted, name, earlier, folder) for name in sorted(others) if earlier
    }
    return _Plan(
        target,
        folder,
        earlier,
        {name: reason for name, reason in reasons.items() if reason},
        {name: reason for name, reason in removals.items() if reason},
        selected,
    )


@dataclass
class _Build:
    """Building the engines for one GPU."""

    bundle: Bundle
    options: BuildOptions
    lowering: Lowering
    plan: _Plan
    processes: EngineProcesses
    progress: Progress
    work: Path
    notes: list[str]

    def run(self) -> FolderReport:
        """Build what must be, and put the folder in its place if anything changed."""
        plan, wanted = self.plan, self.lowering.wanted
        files = {name: self._keep(name) for name in self._kept()}
        engines = {name: plan.earlier.engines[name] for name in files if plan.earlier}
        for name, built in self._build_all().items():
            files[name] = self._engine_file(name)
            engines[name] = _describe(wanted, name, files[name], built)
        order = [*wanted.graphs]
        engines = {name: engines[name] for name in sorted(engines, key=order.index)}
        manifest = _manifest(wanted, plan.target, engines)
        if manifest != plan.earlier:
            store(self.work, plan.folder.parent, manifest, files)
        reports = (
            EngineReport(name, plan.reasons.get(name, ""), engine.build_seconds, engine.bytes)
            for name, engine in engines.items()
        )
        return FolderReport(str(plan.folder), plan.target, tuple(reports), dict(plan.removals))

    def _kept(self) -> Sequence[str]:
        earlier = self.plan.earlier.engines if self.plan.earlier else {}
        return [name for name in earlier if name not in {**self.plan.reasons, **self.plan.removals}]

    def _keep(self, name: str) -> Path:
        assert self.plan.earlier is not None
        return self.plan.folder / self.plan.earlier.engines[name].file

    def _build_all(self) -> dict[str, Built]:
        """Build the engines that must be, some at a time; if one fails, the others are stopped."""
        built: dict[str, Built] = {}
        with ThreadPoolExecutor(self.options.jobs) as pool:
            futures = {pool.submit(self._build, name): name for name in self.plan.reasons}
            try:
                for future in as_completed(futures):
                    built[futures[future]] = future.result()
            except BaseException:
                for future in futures:
                    future.cancel()
                self.processes.stop()
                raise
        return built

    def _build(self, name: str) -> Built:
        label = f"{name} ({self.plan.target})"

        def listen(event: dict[str, Any]) -> None:
            if event["event"] == "progress":
                self.progress.share(label, event["phase"], event["share"])
            elif event["event"] == "warning":
                self.notes.append(event["message"])
                self.progress.note(event["message"])

        self.progress.engine(label, self.plan.reasons[name])
        built = self.processes.build(self._job(name), listen)
        self.progress.built(label, built.seconds)
        return built

    def _job(self, name: str) -> Job:
        wanted = self.lowering.wanted
        cache = None
        if keeps_timings(wanted.flavour):
            folder = self.options.timing_cache or timing_cache.default_folder()
            cache = timing_cache.cache_file(
                folder, wanted.flavour, wanted.library_version, self.plan.target
            )
        return Job(
            flavour=wanted.flavour,
            graph=self.lowering.folder / f"{name}.onnx",
            engine=self._engine_file(name),
            compute_capability=self.plan.target,
            profiles=tuple(profile.shapes for profile in wanted.graphs[name].profiles),
            options=wanted.options,
            plugins=bool(wanted.plugins),
            timing_cache=cache,
        )

    def _engine_file(self, name: str) -> Path:
        return self.work / f"{self.plan.target}.{name}.engine"


def _describe(wanted: Wanted, name: str, file: Path, built: Built) -> EngineInfo:
    graph = wanted.graphs[name]
    for tensors, found in ((graph.inputs, built.inputs), (graph.outputs, built.outputs)):
        if names := {tensor.name for tensor in tensors} ^ set(found):
            raise ExportError(
                f"the engine of {name} lacks {sorted(names)[0]} of its graph, or has it in excess; "
                "report this with the checkpoint's config.json"
            )
    return EngineInfo(
        file=f"{name}.engine",
        bytes=file.stat().st_size,
        sha256=file_sha256(file),
        graph_sha256=graph.sha256,
        inputs=graph.inputs,
        outputs=graph.outputs,
        profiles=graph.profiles,
        build_seconds=round(built.seconds, 3),
    )


def _manifest(wanted: Wanted, target: str, engines: Mapping[str, EngineInfo]) -> EngineManifest:
    return EngineManifest(
        flavour=wanted.flavour,
        library_version=wanted.library_version,
        compute_capability=target,
        precision=wanted.precision,
        capacity=wanted.capacity,
        candidates=wanted.candidates,
        plugins=dict(wanted.plugins),
        options=wanted.options,
        bundle=wanted.bundle,
        arguments=wanted.arguments,
        engines=engines,
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


def _asked_for(graph: str, paths: Sequence[str]) -> bool:
    _, _, path = graph.partition(".")
    return not paths or not path or path in paths
