"""Building the engines for one GPU, and putting their folder in its place."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drl.export.tensorrt import timing_cache
from drl.export.tensorrt.engine_folder import file_sha256, store
from drl.export.tensorrt.engine_process import Built, EngineProcesses
from drl.export.tensorrt.folder_plan import FolderPlan
from drl.export.tensorrt.job import Job
from drl.export.tensorrt.options import BuildOptions
from drl.export.tensorrt.plan import Wanted
from drl.export.tensorrt.progress import Progress
from drl.export.tensorrt.report import EngineReport, FolderReport
from drl.export.tensorrt.wanted import Lowering
from drl.runtime.backends.tensorrt.library import keeps_timings
from drl.runtime.backends.tensorrt.manifest import EngineInfo, EngineManifest
from drl.runtime.backends.tensorrt.runtime_cache import cache_folder
from drl.runtime.errors import ExportError


@dataclass
class FolderBuild:
    """Building the engines for one GPU."""

    options: BuildOptions
    lowering: Lowering
    plan: FolderPlan
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
            folder = self.options.timing_cache or cache_folder()
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
            plugins=wanted.graphs[name].plugins,
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
