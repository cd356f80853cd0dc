"""A routed model's engines are built with plugins, as far as that can be seen without TensorRT."""

import io
import json
import threading
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import onnx
import pytest

from drl.export.tensorrt import build_process, builder, plugins
from drl.export.tensorrt.builder import build_engines
from drl.export.tensorrt.events import Events
from drl.export.tensorrt.job import Job
from drl.export.tensorrt.options import BuildOptions
from drl.plugins.cuda import compile as kernel_compiler
from drl.plugins.cuda.errors import CudaKernelError
from drl.plugins.cuda.plugin_nodes import PluginForm
from drl.runtime.backends.tensorrt.manifest import EngineManifest, EngineOptions
from drl.runtime.bundle import Bundle
from drl.runtime.errors import ExportError
from drl.runtime.gpu import Gpu, GpuReport
from tests.export.tensorrt.test_builder import FakeProcesses
from tests.plugins.cuda import fake_tensorrt
from tests.plugins.cuda.fake_tensorrt import DataType

DEFAULT = BuildOptions("tensorrt", gate=False, paths=("full",))
FORM = PluginForm("RoutedFFNCombine", ("inner", "expert_ids", "gates", "down"))


class _Kept(FakeProcesses):
    """Keeps what each graph was when it was built."""

    def __init__(self) -> None:
        super().__init__()
        self.graphs: dict[str, onnx.ModelProto] = {}

    def build(self, job: Job, listener: Any) -> Any:
        self.graphs[job.name] = onnx.load(job.graph, load_external_data=False)
        return super().build(job, listener)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return fake_tensorrt.install(monkeypatch)


def build(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, options: BuildOptions = DEFAULT
) -> _Kept:
    monkeypatch.setattr(
        builder, "import_library", lambda flavour: SimpleNamespace(__version__="11.0.0.9")
    )
    processes = _Kept()
    machine = GpuReport("13.0", (Gpu("made up", "8.9", 1 << 34),))
    build_engines(bundle, options, processes=processes, machine=machine)
    return processes


def plugin_nodes(proto: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in proto.graph.node if node.domain == "drl"]


def test_routed_layers_become_plugins_by_default(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes = build(bundle, monkeypatch)
    forms = {job.name: job.plugins for job in processes.jobs}
    assert {form.operator for form in forms["decoder.full"]} >= {
        "ExpertRoute",
        "RoutedFFNInner",
        "RoutedFFNCombine",
    }
    for name, proto in processes.graphs.items():
        nodes = plugin_nodes(proto)
        assert {node.op_type for node in nodes} == {form.name for form in forms[name]}
        for node in nodes:
            (form,) = (form for form in forms[name] if form.name == node.op_type)
            assert len(node.input) == len(form.inputs)
            assert all(node.input)
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            assert attributes.pop("plugin_namespace") == b"drl"
            assert set(attributes) == ({form.attribute} if form.attribute else set())
        assert not {f.name for f in proto.functions} & {form.operator for form in forms[name]}
    (folder,) = (bundle.folder / "engines").glob("tensorrt-*")
    names = {form.name for used in forms.values() for form in used}
    assert set(EngineManifest.load(folder).plugins) == names


def test_without_plugins_there_are_none(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    processes = build(bundle, monkeypatch, replace(DEFAULT, plugins=False))
    assert all(job.plugins == () for job in processes.jobs)
    (folder,) = (bundle.folder / "engines").glob("tensorrt-*")
    assert EngineManifest.load(folder).plugins == {}


def test_plugins_that_changed_are_built_again(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(bundle, monkeypatch)
    assert build(bundle, monkeypatch).jobs == []
    monkeypatch.setattr(plugins, "_SOURCES", (".cu",))
    assert "decoder.full" in [job.name for job in build(bundle, monkeypatch).jobs]


def test_an_operator_that_no_plugin_takes_is_an_error(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(model: object) -> tuple[PluginForm, ...]:
        raise CudaKernelError("node 'x': both biases or none")

    monkeypatch.setattr(plugins, "use_plugins", refuse)
    with pytest.raises(ExportError, match=r"encoder cannot have plugins .*with --no-plugins"):
        build(bundle, monkeypatch)


def job(folder: Path, **changes: Any) -> Job:
    fields: dict[str, Any] = {
        "flavour": "tensorrt",
        "graph": folder / "decoder.full.onnx",
        "engine": folder / "decoder.full.engine",
        "compute_capability": "9.0",
        "profiles": (),
        "plugins": (FORM,),
    }
    return Job(**fields | changes)


@pytest.mark.parametrize(
    ("options", "target"),
    [(EngineOptions(), "sm_90"), (EngineOptions(hardware_compatible=True), "sm_80")],
)
def test_plugins_are_compiled_for_every_gpu_that_the_engine_is_for(
    library: ModuleType, tmp_path: Path, options: EngineOptions, target: str
) -> None:
    build_process.register_plugins(library, job(tmp_path, options=options))
    built = fake_tensorrt.build(
        library,
        FORM.name,
        [
            (DataType.HALF, ["B", "T", 2, 16]),
            (DataType.INT32, ["B", "T", 2]),
            (DataType.FLOAT, ["B", "T", 2]),
            (DataType.HALF, [4, 16, 32]),
        ],
        {},
    )
    assert all(f".target {target}\n" in tactic.ptx for tactic in built.values())


def test_a_job_with_plugins_survives_its_line(tmp_path: Path) -> None:
    assert Job.from_json(job(tmp_path).to_json()) == job(tmp_path)


def test_a_gpu_without_kernels_is_told(library: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(
        ExportError, match=r"need compute capability 8\.0, and not 7\.5.*no-plugins"
    ):
        build_process.register_plugins(library, job(tmp_path, compute_capability="7.5"))


def test_a_missing_compiler_is_told_before_the_build(
    library: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> str:
        raise CudaKernelError("NVRTC is not installed")

    monkeypatch.setattr(kernel_compiler, "version", fail)
    with pytest.raises(ExportError, match=r"plugins cannot be made \(NVRTC is not.*--no-plugins"):
        build_process.register_plugins(library, job(tmp_path))


def test_the_build_process_has_a_plugin_for_every_node_before_it_parses(
    bundle: Bundle, library: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes = build(bundle, monkeypatch)
    (made,) = (made for made in processes.jobs if made.name == "decoder.full")
    parsed: list[str] = []

    def parse(library: Any, graph: Path, with_plugins: bool, events: Events) -> Any:
        assert with_plugins
        for node in plugin_nodes(processes.graphs["decoder.full"]):
            creator = library.get_plugin_registry().get_creator(node.op_type, "1", "drl")
            fields = {field.name for field in creator.field_names}
            assert fields == {a.name for a in node.attribute} - {"plugin_namespace"}
            parsed.append(node.op_type)
        serialized = SimpleNamespace(build_serialized_network=lambda network, config: b"engine")
        return SimpleNamespace(
            builder=serialized,
            network=SimpleNamespace(num_layers=1),
            tensors=lambda: (["x"], ["y"]),
        )

    monkeypatch.setattr(build_process, "import_library", lambda flavour: library)
    monkeypatch.setattr(build_process, "parse", parse)
    monkeypatch.setattr(build_process, "configure", lambda network, job, monitor: None)
    monkeypatch.setattr(build_process, "open_monitor", lambda *_: None)
    told = io.StringIO()
    here = replace(made, engine=tmp_path / "engine", timing_cache=None)
    build_process._build(Job.from_json(here.to_json()), Events(told), threading.Event())
    assert len(parsed) >= 3
    assert here.engine.read_bytes() == b"engine"
    assert json.loads(told.getvalue().splitlines()[-1])["event"] == "built"
