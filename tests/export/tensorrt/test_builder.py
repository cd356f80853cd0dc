"""The recipe: what is built, what is kept, why, and what a failure leaves."""

import dataclasses
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from drl.export import ExportOptions, export
from drl.export.tensorrt import builder, engine_folder, plugins, wanted
from drl.export.tensorrt.builder import build_engines
from drl.export.tensorrt.engine_folder import open_engines
from drl.export.tensorrt.engine_process import Built, EngineProcesses
from drl.export.tensorrt.job import Job
from drl.export.tensorrt.options import BuildOptions
from drl.export.tensorrt.progress import Silence
from drl.export.tensorrt.report import BuildReport
from drl.export.tensorrt.sizes import Range, Sizes
from drl.runtime.backends.tensorrt.manifest import EngineManifest, EngineOptions
from drl.runtime.backends.tensorrt.store import find_engines
from drl.runtime.bundle import Bundle
from drl.runtime.errors import BundleError, ExportError
from drl.runtime.gpu import GpuReport
from drl.runtime.manifest import Manifest
from tests.export.tensorrt.small_graphs import linear, lower_small

pytestmark = pytest.mark.usefixtures("small_lowering")

RTX = BuildOptions("tensorrt-rtx", ("8.9",), gate=False)
NAMES = ["encoder"] + [
    f"{graph}.{path}" for path in ("fast", "balanced", "full") for graph in ("bridge", "decoder")
]


class FakeProcesses(EngineProcesses):
    """Writes the job where the engine belongs, and remembers it."""

    def __init__(self, on_build: Callable[[Job], None] = lambda job: None) -> None:
        super().__init__()
        self.jobs: list[Job] = []
        self.on_build = on_build
        self.stops = 0

    def build(self, job: Job, listener: Any) -> Built:
        self.jobs.append(job)
        self.on_build(job)
        job.engine.write_text(job.to_json())
        graph = onnx.load(job.graph).graph
        names = [tuple(value.name for value in values) for values in (graph.input, graph.output)]
        return Built(names[0], names[1], layers=3, seconds=0.25)

    def stop(self) -> None:
        self.stops += 1


def build(
    bundle: Bundle, options: BuildOptions = RTX, processes: EngineProcesses | None = None
) -> BuildReport:
    return build_engines(
        bundle,
        options,
        processes=processes or FakeProcesses(),
        machine=GpuReport(None, (), "there is no NVIDIA driver"),
    )


def change(**changes: Any) -> BuildOptions:
    return dataclasses.replace(RTX, **changes)


def reasons(report: BuildReport) -> dict[str, str]:
    """Why each engine was built, of those that were."""
    (folder,) = report.folders
    return {engine.name: engine.reason for engine in folder.engines if engine.reason}


def the_folder(bundle: Bundle, target: str = "89") -> Path:
    (folder,) = (bundle.folder / "engines").glob(f"rtx-*-sm{target}")
    return folder


def test_the_first_build_builds_everything(bundle: Bundle) -> None:
    processes = FakeProcesses()
    report = build(bundle, processes=processes)
    assert reasons(report) == dict.fromkeys(NAMES, "new")
    assert sorted(job.name for job in processes.jobs) == sorted(NAMES)
    assert all(job.flavour == "tensorrt-rtx" for job in processes.jobs)
    assert all(job.timing_cache is None for job in processes.jobs)
    folder = the_folder(bundle)
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["engines.json", *(f"{name}.engine" for name in NAMES)]
    )
    assert [path.name for path in (bundle.folder / "engines").iterdir() if path.is_dir()] == [
        folder.name
    ]


def test_the_manifest_says_what_was_built(bundle: Bundle) -> None:
    report = build(bundle, change(sizes=Sizes(batch=Range(1, 4, 16), capacity=20)))
    manifest = EngineManifest.load(the_folder(bundle))
    assert manifest.flavour == "tensorrt-rtx"
    assert manifest.library_version == report.library_version
    assert manifest.compute_capability == "8.9"
    assert manifest.precision == "fp16"
    assert manifest.capacity == 20
    assert manifest.candidates == 60  # the vocabulary, which is less than 64
    assert manifest.plugins == {}
    assert manifest.options == EngineOptions()
    assert manifest.arguments == ("--batch", "1,4,16", "--cache", "20")
    assert list(manifest.engines) == NAMES
    decoder = manifest.engines["decoder.fast"]
    assert [tensor.name for tensor in decoder.inputs] == ["tokens", "cross", "past"]
    assert decoder.inputs[2].shape == ("B", 20)
    assert decoder.inputs[0].dtype == "float16"
    assert [profile.name for profile in decoder.profiles] == ["prefill", "step"]
    assert decoder.profiles[0].dims["K"] == (1, 24, 24)  # half of the 48 states
    assert manifest.engines["decoder.full"].profiles[0].dims["K"] == (1, 48, 48)
    assert decoder.build_seconds == 0.25
    assert find_engines(bundle, None, "8.9", {"tensorrt-rtx": manifest.library_version})


def test_a_second_build_builds_nothing_and_writes_nothing(bundle: Bundle) -> None:
    build(bundle)
    before = (the_folder(bundle) / "engines.json").stat()
    processes = FakeProcesses()
    report = build(bundle, processes=processes)
    assert reasons(report) == {}
    assert report.gate == "not needed"
    assert processes.jobs == []
    after = (the_folder(bundle) / "engines.json").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_force_builds_everything_again(bundle: Bundle) -> None:
    build(bundle)
    assert reasons(build(bundle, change(force=True))) == dict.fromkeys(NAMES, "--force")


DECODERS = ["decoder.balanced", "decoder.fast", "decoder.full"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            change(sizes=Sizes(batch=Range(1, 8, 64))),
            {
                **dict.fromkeys(NAMES, "profile B max 32 → 64"),
                **dict.fromkeys(DECODERS, "profile B max 32 → 64, profile R max 32 → 64"),
            },
        ),
        (
            change(sizes=Sizes(new_tokens=Range(1, 4, 8))),
            dict.fromkeys(DECODERS, "profile T 1,16,48 → 1,4,8"),
        ),
        (
            change(sizes=Sizes(capacity=40, new_tokens=Range(1, 16, 40))),
            dict.fromkeys(DECODERS, "cache 48 → 40, profile T max 48 → 40"),
        ),
        (change(candidates=5), dict.fromkeys(DECODERS, "candidates 60 → 5")),
        (
            change(precision="bf16"),
            dict.fromkeys([n for n in NAMES if n != "encoder"], "precision fp16 → bf16"),
        ),
        (
            change(engine=EngineOptions(weight_streaming=True)),
            dict.fromkeys(NAMES, "weight-streaming off → on"),
        ),
    ],
)
def test_what_an_option_changes_is_built_and_says_why(
    bundle: Bundle, options: BuildOptions, expected: dict[str, str]
) -> None:
    build(bundle)
    assert reasons(build(bundle, options)) == expected


def test_a_damaged_engine_alone_is_built(bundle: Bundle) -> None:
    build(bundle)
    folder = the_folder(bundle)
    with (folder / "encoder.engine").open("r+b") as stream:
        stream.write(b"X")
    (folder / "bridge.fast.engine").unlink()
    assert reasons(build(bundle)) == {
        "encoder": "engine file damaged",
        "bridge.fast": "engine file missing",
    }
    assert reasons(build(bundle)) == {}


@pytest.mark.parametrize("content", ["{", '{"format": "drl-engines", "format_version": 99}', "[]"])
def test_an_unreadable_manifest_is_as_good_as_none(bundle: Bundle, content: str) -> None:
    build(bundle)
    (the_folder(bundle) / "engines.json").write_text(content)
    assert reasons(build(bundle)) == dict.fromkeys(NAMES, "new")


def test_a_changed_graph_alone_is_built(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    build(bundle)

    def lower_changed(bundle: Bundle, options: Any, folder: Path, before: Any) -> Any:
        lowered = lower_small(bundle, options, folder)
        onnx.save(linear("Neg", seed=77), folder / "bridge.full.onnx")
        return lowered

    monkeypatch.setattr(wanted, "lower_bundle", lower_changed)
    assert reasons(build(bundle)) == {"bridge.full": "graph changed"}


def with_paths(bundle: Bundle, names: list[str]) -> Bundle:
    """The same bundle with some of its paths."""
    paths = tuple(path for path in bundle.manifest.paths if path.name in names)
    manifest: Manifest = dataclasses.replace(bundle.manifest, paths=paths)
    return Bundle(bundle.folder, manifest)


def test_a_new_path_leaves_the_others_alone(bundle: Bundle) -> None:
    build(with_paths(bundle, ["fast", "full"]))
    assert reasons(build(bundle)) == dict.fromkeys(["bridge.balanced", "decoder.balanced"], "new")
    assert list(EngineManifest.load(the_folder(bundle)).engines) == NAMES


def test_a_path_that_is_gone_takes_its_engines_along(bundle: Bundle) -> None:
    build(bundle)
    (folder,) = build(with_paths(bundle, ["fast", "full"])).folders
    assert folder.removed == dict.fromkeys(["bridge.balanced", "decoder.balanced"], "path removed")
    assert not (the_folder(bundle) / "decoder.balanced.engine").exists()


def test_some_paths_alone_can_be_built_and_the_rest_later(bundle: Bundle) -> None:
    report = build(bundle, change(paths=("fast",)))
    assert list(reasons(report)) == ["encoder", "bridge.fast", "decoder.fast"]
    assert list(reasons(build(bundle, change(paths=("full",))))) == ["bridge.full", "decoder.full"]
    assert list(reasons(build(bundle))) == ["bridge.balanced", "decoder.balanced"]


def test_a_path_keeps_its_profiles_while_another_gets_new_ones(bundle: Bundle) -> None:
    build(bundle)
    sizes = Sizes(new_tokens=Range(1, 2, 3))
    report = build(bundle, change(paths=("fast",), sizes=sizes))
    assert reasons(report) == {"decoder.fast": "profile T 1,16,48 → 1,2,3"}
    engines = EngineManifest.load(the_folder(bundle)).engines
    assert engines["decoder.fast"].profiles[0].dims["T"] == (1, 2, 3)
    assert engines["decoder.full"].profiles[0].dims["T"] == (1, 16, 48)


def test_engines_of_other_paths_that_no_longer_fit_are_removed(bundle: Bundle) -> None:
    build(bundle)
    (folder,) = build(bundle, change(paths=("fast",), candidates=5)).folders
    assert folder.removed == {
        "decoder.balanced": "candidates 60 → 5",
        "decoder.full": "candidates 60 → 5",
    }
    names = [engine.name for engine in folder.engines]
    assert names == ["encoder", "bridge.fast", "decoder.fast", "bridge.balanced", "bridge.full"]


def test_another_library_version_is_told_apart_and_kept(bundle: Bundle) -> None:
    build(bundle)
    folder = the_folder(bundle)
    version = EngineManifest.load(folder).library_version
    for older in ("1.2.0.1", "1.6.0.5"):
        folder.with_name(f"rtx-{older}-sm89").mkdir()
    folder.rename(folder.with_name("rtx-1.6.0.5-sm89") / "moved")
    assert reasons(build(bundle)) == dict.fromkeys(NAMES, f"library 1.6.0.5 → {version}")
    assert len(list((bundle.folder / "engines").glob("rtx-*"))) == 3


def test_every_gpu_has_a_folder(bundle: Bundle) -> None:
    processes = FakeProcesses()
    report = build(bundle, change(targets=("8.0", "12.0")), processes)
    assert [folder.compute_capability for folder in report.folders] == ["8.0", "12.0"]
    assert {job.compute_capability for job in processes.jobs} == {"8.0", "12.0"}
    assert EngineManifest.load(the_folder(bundle, "120")).compute_capability == "12.0"
    assert EngineManifest.load(the_folder(bundle, "80")).compute_capability == "8.0"


def test_another_export_with_the_same_graphs_builds_nothing(bundle: Bundle) -> None:
    build(bundle)
    files = dict(bundle.manifest.files)
    files["decoder.canonical.onnx"] = dataclasses.replace(
        files["decoder.canonical.onnx"], sha256="0" * 64
    )
    other = Bundle(bundle.folder, dataclasses.replace(bundle.manifest, files=files))
    installed = {"tensorrt-rtx": EngineManifest.load(the_folder(bundle)).library_version}
    with pytest.raises(Exception, match="another export"):
        find_engines(other, "tensorrt-rtx", "8.9", installed)  # type: ignore[arg-type]
    assert reasons(build(other)) == {}
    find_engines(other, "tensorrt-rtx", "8.9", installed)  # type: ignore[arg-type]


def fail_at(name: str) -> Callable[[Job], None]:
    def fail(job: Job) -> None:
        if job.name == name:
            raise ExportError(f"TensorRT for RTX crashed while building {name} (SIGABRT)")

    return fail


def test_a_failure_leaves_everything_as_it_was(bundle: Bundle) -> None:
    with pytest.raises(ExportError, match="SIGABRT"):
        build(bundle, processes=FakeProcesses(fail_at("decoder.full")))
    assert not (bundle.folder / "engines").exists()
    build(bundle)
    before = snapshot(bundle)
    processes = FakeProcesses(fail_at("decoder.full"))
    with pytest.raises(ExportError, match="SIGABRT"):
        build(bundle, change(candidates=5), processes)
    assert snapshot(bundle) == before
    assert processes.stops == 1


def snapshot(bundle: Bundle) -> dict[str, bytes]:
    root = bundle.folder / "engines"
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


def test_a_failure_keeps_the_gpus_that_are_done(bundle: Bundle) -> None:
    def fail(job: Job) -> None:
        if job.compute_capability == "12.0":
            raise ExportError("no")

    with pytest.raises(ExportError, match=r"^no; the engines for 8\.0 are done and stay$"):
        build(bundle, change(targets=("8.0", "12.0")), FakeProcesses(fail))
    assert len(EngineManifest.load(the_folder(bundle, "80")).engines) == len(NAMES)
    assert not list((bundle.folder / "engines").glob("*sm120*"))


def test_an_interrupt_stops_the_processes_and_leaves_nothing(bundle: Bundle) -> None:
    def interrupt(job: Job) -> None:
        raise KeyboardInterrupt

    processes = FakeProcesses(interrupt)
    with pytest.raises(KeyboardInterrupt):
        build(bundle, processes=processes)
    assert processes.stops == 1
    assert not (bundle.folder / "engines").exists()


def test_what_a_killed_build_left_is_removed(bundle: Bundle) -> None:
    left = bundle.folder / "engines" / ".partial-abc"
    left.mkdir(parents=True)
    (left / "big").write_text("x")
    build(bundle)
    assert not left.exists()


def test_two_builds_of_one_bundle_do_not_meet(bundle: Bundle) -> None:
    waiting, proceed = threading.Event(), threading.Event()

    def wait(job: Job) -> None:
        waiting.set()
        assert proceed.wait(30)

    first = threading.Thread(target=build, args=(bundle, RTX, FakeProcesses(wait)))
    first.start()
    try:
        assert waiting.wait(30)
        with pytest.raises(ExportError, match="another build is at"):
            build(bundle)
    finally:
        proceed.set()
        first.join(30)
    assert reasons(build(bundle)) == {}


def test_several_engines_are_built_at_a_time(bundle: Bundle) -> None:
    together = threading.Barrier(3, timeout=30)

    def meet(job: Job) -> None:
        if job.name in ("encoder", "bridge.fast", "decoder.fast"):
            together.wait()

    build(bundle, change(jobs=3), FakeProcesses(meet))


def test_an_unwritable_bundle_is_an_error(bundle: Bundle) -> None:
    (bundle.folder / "engines").write_text("in the way")
    with pytest.raises(ExportError, match=r"cannot write .*engines: "):
        build(bundle)


def test_a_disk_that_fills_up_is_an_error(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(engine_folder, "replace_folder", fail)
        with pytest.raises(
            ExportError, match="sm89: No space left on device; nothing was changed there, make room"
        ):
            build(bundle)
    assert not (bundle.folder / "engines").exists()
    monkeypatch.setattr(wanted, "lower_bundle", fail)
    with pytest.raises(ExportError, match=r"cannot write .*engines: No space left on device"):
        build(bundle)


def test_an_error_that_has_nothing_to_do_with_the_folder_keeps_its_name(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise FileNotFoundError(2, "No such file", "weights.bin")

    monkeypatch.setattr(wanted, "lower_bundle", fail)
    with pytest.raises(FileNotFoundError, match=r"weights\.bin"):
        build(bundle)
    assert not (bundle.folder / "engines").exists()


def test_engines_that_a_killed_build_moved_aside_come_back(bundle: Bundle) -> None:
    build(bundle)
    folder = the_folder(bundle)
    aside = folder.parent / f".{folder.name}.replaced-abc"
    aside.mkdir()
    folder.rename(aside / folder.name)
    (folder.parent / ".rtx-1-sm80.replaced-x").mkdir()
    assert reasons(build(bundle)) == {}
    assert sorted(p.name for p in folder.parent.iterdir()) == [".lock", folder.name]


def test_a_lock_whose_file_was_removed_does_not_count(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another build removes the folder between opening the lock's file and locking it."""
    root = bundle.folder / "engines"
    flock = engine_folder.fcntl.flock
    locked: list[Path] = []

    def late(stream: Any, how: int) -> None:
        if not locked:
            (root / ".lock").unlink()
            root.rmdir()
        locked.append(root)
        flock(stream, how)

    monkeypatch.setattr(engine_folder.fcntl, "flock", late)
    with open_engines(bundle), pytest.raises(ExportError, match="another build is at"):
        build(bundle)
    assert len(locked) == 3


def test_timings_are_measured_one_at_a_time(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = threading.Lock()

    def alone(job: Job) -> None:
        assert busy.acquire(blocking=False)
        time.sleep(0.02)
        busy.release()

    monkeypatch.setattr(builder, "keeps_timings", lambda flavour: True)
    report = build(bundle, change(jobs=3), FakeProcesses(alone))
    assert [w for w in report.warnings if "built one at a time" in w]


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_a_range_that_nobody_looked_at_is_not_said_to_hold(bundle: Bundle, precision: Any) -> None:
    assert build(bundle, change(precision=precision, gate=True)).gate == "not needed"


def test_an_engine_without_an_input_of_its_graph_is_an_error(bundle: Bundle) -> None:
    class Forgetful(FakeProcesses):
        def build(self, job: Job, listener: Any) -> Built:
            return dataclasses.replace(super().build(job, listener), inputs=())

    with pytest.raises(ExportError, match="the engine of encoder lacks x of its graph"):
        build(bundle, processes=Forgetful())


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        (change(paths=("fasst",)), "has no path 'fasst'; did you mean 'fast'?"),
        (change(paths=("quick",)), "there are fast, balanced, full"),
        (change(targets=()), "there is no NVIDIA driver, so say which GPUs"),
        (change(targets=("9.0",)), "does not build for compute capability 9.0"),
        (change(sizes=Sizes(capacity=49)), "--cache 49"),
        (change(sizes=Sizes(capacity=46)), "--cache 46 is no multiple of 4"),
        (change(candidates=61), "--candidates 61 is not within 1 and the vocabulary's 60"),
        (change(candidates=0), "--candidates 0"),
        (change(plugins=True), "takes no plugins"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_built(
    bundle: Bundle, options: BuildOptions, fragment: str
) -> None:
    processes = FakeProcesses()
    with pytest.raises(ExportError) as caught:
        build(bundle, options, processes)
    assert fragment in str(caught.value)
    assert processes.jobs == []
    assert not (bundle.folder / "engines").exists()


def test_a_quantised_bundle_has_nothing_to_build_from(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    export(tiny_checkpoint, tmp_path / "int8", ExportOptions(precision="int8", verify=False))
    with pytest.raises(BundleError, match="holds no canonical graphs"):
        build(Bundle.load(tmp_path / "int8"))
    assert not (tmp_path / "int8" / "engines").exists()


def test_a_plugins_digest_changes_with_its_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "kernel.cu").write_text("one")
    monkeypatch.setattr(plugins.resources, "files", lambda package: tmp_path)
    names = ["ExpertRoute", "RoutedFFNInner_gate"]
    before = plugins.plugin_digests(names)
    assert list(before) == names
    assert plugins.plugin_digests(names) == before
    (tmp_path / "src" / "kernel.cu").write_text("two")
    assert plugins.plugin_digests(names) != before


class Told(Silence):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.shares: list[tuple[str, float]] = []
        self.done: list[str] = []
        self.notes: list[str] = []

    def stage(self, text: str) -> None:
        self.stages.append(text)

    def share(self, name: str, phase: str, share: float) -> None:
        self.shares.append((name, share))

    def built(self, name: str, seconds: float) -> None:
        self.done.append(name)

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_real_engines_are_built_with_progress(bundle: Bundle) -> None:
    options, told = change(paths=("fast",)), Told()
    report = build_engines(bundle, options, told)
    assert told.done == ["encoder (8.9)", "bridge.fast (8.9)", "decoder.fast (8.9)"]
    assert {name for name, _ in told.shares} == set(told.done)
    assert told.notes == []
    (folder,) = report.folders
    for engine in folder.engines:
        file = Path(folder.folder) / f"{engine.name}.engine"
        assert file.stat().st_size == engine.bytes > 1000
        assert engine.seconds > 0
    assert json.loads((Path(folder.folder) / "engines.json").read_text())["format"] == "drl-engines"


def test_a_real_graph_that_is_refused_names_operator_and_layer(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lower_unknown(bundle: Bundle, options: Any, folder: Path, before: Any) -> Any:
        lowered = lower_small(bundle, options, folder)
        onnx.save(linear("Foo"), folder / "encoder.onnx")
        return lowered

    monkeypatch.setattr(wanted, "lower_bundle", lower_unknown)
    with pytest.raises(ExportError, match="operator Foo in layer encoder/layers"):
        build_engines(bundle, RTX)
    assert not (bundle.folder / "engines").exists()
