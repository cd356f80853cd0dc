"""Build processes: real ones on small graphs, and fake ones that end badly."""

import io
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper

from drl.export.tensorrt.engine_process import BuildStoppedError, EngineProcesses
from drl.export.tensorrt.events import Events
from drl.export.tensorrt.job import Job
from drl.export.tensorrt.network import configure, parse
from drl.plugins.cuda.plugin_nodes import PluginForm
from drl.runtime.backends.tensorrt.library import import_library
from drl.runtime.backends.tensorrt.manifest import EngineOptions, Shapes
from drl.runtime.errors import ExportError
from tests.export.tensorrt import rtx_as_tensorrt
from tests.export.tensorrt.small_graphs import WIDTH, linear, model, tensor

FORM = PluginForm("RoutedFFNCombine", ("inner", "expert_ids", "gates", "down"))
SHAPES = {"x": Shapes((1, 1, WIDTH), (2, 4, WIDTH), (4, 8, WIDTH))}


def make_job(folder: Path, proto: onnx.ModelProto | None = None, **changes: Any) -> Job:
    graph = folder / "decoder.full.onnx"
    if proto is not None:
        onnx.save(proto, graph)
    fields: dict[str, Any] = {
        "flavour": "tensorrt-rtx",
        "graph": graph,
        "engine": folder / "decoder.full.engine",
        "compute_capability": "8.9",
        "profiles": (SHAPES,),
    }
    return Job(**fields | changes)


def fake(script: str, **options: Any) -> EngineProcesses:
    """Processes that run a script in the place of a build; `say` sends an event."""
    prelude = "import json, os, signal, sys, time\njob = sys.stdin.readline()\n"
    prelude += "def say(**event): print(json.dumps(event), flush=True)\n"
    return EngineProcesses(command=(sys.executable, "-c", prelude + script), **options)


def error_of(processes: EngineProcesses, job: Job) -> str:
    with pytest.raises(ExportError) as caught:
        processes.build(job, lambda event: None)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_a_job_survives_its_line(tmp_path: Path) -> None:
    job = make_job(tmp_path, timing_cache=tmp_path / "t", options=EngineOptions(True, False, True))
    assert Job.from_json(job.to_json()) == job
    assert "\n" not in job.to_json()
    assert job.name == "decoder.full"


def test_an_engine_is_built_and_tells_of_itself(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    job = make_job(tmp_path, linear())
    built = EngineProcesses().build(job, events.append)
    assert job.engine.stat().st_size > 1000
    assert built.inputs == ("x",)
    assert built.outputs == ("z",)
    assert built.layers >= 2
    assert built.seconds > 0
    assert events
    assert all(0 <= event["share"] <= 1 for event in events if event["event"] == "progress")


@pytest.mark.parametrize(
    ("name", "streams", "flagged"),
    [("decoder.full", False, True), ("decoder.full", True, False), ("encoder", False, False)],
)
def test_decoders_allocate_nothing_while_they_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, streams: bool, flagged: bool
) -> None:
    """Else a step could not be captured in a CUDA graph."""
    monkeypatch.setenv("POLYGRAPHY_USE_TENSORRT_RTX", "1")
    library = import_library("tensorrt-rtx")
    graph = tmp_path / f"{name}.onnx"
    onnx.save(linear(), graph)
    job = make_job(tmp_path, graph=graph, options=EngineOptions(weight_streaming=streams))
    network = parse(library, graph, False, Events(io.StringIO()))
    config = configure(network, job, None)
    assert config.get_flag(library.BuilderFlag.REQUIRE_USER_ALLOCATION) == flagged


def test_weights_may_stay_outside_the_engine(tmp_path: Path) -> None:
    job = make_job(tmp_path, linear(), options=EngineOptions(weight_streaming=True))
    EngineProcesses().build(job, lambda event: None)
    assert job.engine.stat().st_size > 1000


def test_an_unknown_operator_is_named_with_its_layer(tmp_path: Path) -> None:
    message = error_of(EngineProcesses(), make_job(tmp_path, linear("Foo")))
    assert "TensorRT for RTX does not take the graph decoder.full" in message
    assert "operator Foo in layer encoder/layers.0 (node encoder/layers.0/act)" in message


def test_an_unknown_operator_within_a_function_is_named_with_its_caller(tmp_path: Path) -> None:
    inner = helper.make_node("Bar", ["a"], ["b"], name="inner", domain="drl")
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid("drl", 1)]
    function = helper.make_function("drl", "Outer", ["a"], ["b"], [inner], opsets)
    node = helper.make_node("Outer", ["x"], ["z"], name="decoder/layers.3/outer", domain="drl")
    shape = ("B", "S", WIDTH)
    proto = model([node], [tensor("x", shape)], [tensor("z", shape)], functions=[function])
    message = error_of(EngineProcesses(), make_job(tmp_path, proto))
    assert "operator Bar in layer decoder/layers.3 (node inner, within" in message
    assert "decoder/layers.3/outer (Outer)" in message


def test_an_attribute_that_is_refused_is_named_by_the_node_read_last(tmp_path: Path) -> None:
    shape = ("B", "S", WIDTH)
    node = helper.make_node(
        "ScatterElements", ["x", "i", "x"], ["z"], name="decoder/scatter", axis=0, reduction="add"
    )
    index = helper.make_tensor_value_info("i", onnx.TensorProto.INT64, list(shape))
    proto = model([node], [tensor("x", shape), index], [tensor("z", shape)])
    profiles = ({**SHAPES, "i": SHAPES["x"]},)
    message = error_of(EngineProcesses(), make_job(tmp_path, proto, profiles=profiles))
    assert "operator ScatterElements in layer decoder (node decoder/scatter)" in message
    assert "reduction" in message


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    job.graph.write_bytes(b"no graph")
    assert "decoder.full" in error_of(EngineProcesses(), job)


def test_a_profile_that_the_library_refuses_is_an_error(tmp_path: Path) -> None:
    bad = {"x": Shapes((1, 1, WIDTH + 1), (2, 4, WIDTH + 1), (4, 8, WIDTH + 1))}
    message = error_of(EngineProcesses(), make_job(tmp_path, linear(), profiles=(bad,)))
    assert "TensorRT for RTX cannot build decoder.full" in message


def test_a_missing_library_is_told_as_it_is(tmp_path: Path) -> None:
    message = error_of(EngineProcesses(), make_job(tmp_path, linear(), flavour="tensorrt"))
    assert message.startswith("TensorRT is not installed; ")


def test_plugins_that_cannot_be_made_say_how_to_do_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(rtx_as_tensorrt.install(tmp_path)))
    job = make_job(tmp_path, linear(), flavour="tensorrt", plugins=(FORM,))
    message = error_of(EngineProcesses(), job)
    assert message.startswith("the plugins cannot be made (")
    assert message.endswith("build with --no-plugins")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told(tmp_path: Path) -> None:
    job = make_job(tmp_path, linear(), engine=Path("/dev/full"))
    message = error_of(EngineProcesses(), job)
    assert message.startswith("cannot write the engine of decoder.full: No space left on device; ")


def test_an_abort_is_told_with_the_last_lines_of_the_log(tmp_path: Path) -> None:
    script = """
say(event="log", severity="WARNING", message="odd weights")
say(event="node", node="decoder/layers.2/Attention [Attention]")
say(event="log", severity="ERROR", message="assertion failed:\\n  rank")
os.abort()
"""
    message = error_of(fake(script), make_job(tmp_path))
    assert "TensorRT for RTX crashed while building decoder.full (SIGABRT)" in message
    assert "at the node decoder/layers.2/Attention [Attention]: assertion failed: rank" in message
    assert "odd weights" not in message


def test_a_crash_without_a_log_tells_what_was_on_standard_error(tmp_path: Path) -> None:
    script = "print('terminate called', file=sys.stderr, flush=True)\n"
    script += "os.kill(os.getpid(), signal.SIGSEGV)"
    message = error_of(fake(script), make_job(tmp_path))
    assert "(SIGSEGV): terminate called" in message


def test_a_crash_in_the_middle_of_a_line_is_still_told(tmp_path: Path) -> None:
    script = 'sys.stdout.write(\'{"event": "lo\'); sys.stdout.flush(); os.abort()'
    assert "crashed while building decoder.full (SIGABRT)" in error_of(
        fake(script), make_job(tmp_path)
    )


def test_a_kill_hints_at_memory(tmp_path: Path) -> None:
    message = error_of(fake("os.kill(os.getpid(), signal.SIGKILL)"), make_job(tmp_path))
    assert "SIGKILL, as the system does where memory runs out" in message


def test_an_end_without_an_engine_is_an_error(tmp_path: Path) -> None:
    message = error_of(fake("sys.exit(0)"), make_job(tmp_path))
    assert "(exit status 0); it left no message" in message


def test_a_process_that_does_not_read_its_job_is_an_error(tmp_path: Path) -> None:
    processes = EngineProcesses(command=(sys.executable, "-c", "import os; os._exit(3)"))
    assert "(exit status 3)" in error_of(processes, make_job(tmp_path))


@pytest.mark.parametrize(
    "text", ["Cuda Runtime (out of memory)", "OutOfMemory: no tactic fits the workspace"]
)
def test_too_little_device_memory_says_what_mends_it(tmp_path: Path, text: str) -> None:
    script = f"say(event='log', severity='ERROR', message={text!r})\n"
    script += "say(event='failed', reason=''); sys.exit(1)"
    message = error_of(fake(script), make_job(tmp_path))
    assert message.startswith("there is too little memory to build decoder.full: ")
    assert text in message
    assert "--weight-streaming" in message


def test_a_failed_build_has_the_librarys_reason(tmp_path: Path) -> None:
    script = "say(event='log', severity='INTERNAL_ERROR', message='no implementation of foo')\n"
    script += "say(event='failed', reason=''); sys.exit(1)"
    message = error_of(fake(script), make_job(tmp_path))
    assert message == "TensorRT for RTX cannot build decoder.full: no implementation of foo"


def test_an_engine_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    began = time.monotonic()
    message = error_of(fake("time.sleep(60)", time_limit=0.3), make_job(tmp_path))
    assert message.startswith("building decoder.full took more than 0.3 seconds; ")
    assert time.monotonic() - began < 30


def stop_when_told(processes: EngineProcesses, job: Job) -> list[dict[str, Any]]:
    """Stop a build at its first event. Returns its events."""
    events: list[dict[str, Any]] = []
    heard = threading.Event()

    def listen(event: dict[str, Any]) -> None:
        events.append(event)
        heard.set()

    def run() -> None:
        with pytest.raises(BuildStoppedError):
            processes.build(job, listen)

    thread = threading.Thread(target=run)
    thread.start()
    assert heard.wait(60)
    processes.stop()
    thread.join(30)
    assert not thread.is_alive()
    return events


def test_a_process_that_is_asked_to_stop_does(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    script = "say(event='progress', phase='tactics', share=0.5); sys.stdin.read()\n"
    script += f"open({str(kept)!r}, 'w').close(); say(event='stopped'); sys.exit(1)"
    events = stop_when_told(fake(script), make_job(tmp_path))
    assert kept.exists()
    assert events == [{"event": "progress", "phase": "tactics", "share": 0.5}]


def test_a_process_that_hangs_is_killed(tmp_path: Path) -> None:
    script = "say(event='progress', phase=str(os.getpid()), share=0.5); time.sleep(600)"
    (event,) = stop_when_told(fake(script, grace=0.3), make_job(tmp_path))
    with pytest.raises(ProcessLookupError):
        os.kill(int(event["phase"]), 0)


def test_after_a_stop_nothing_starts(tmp_path: Path) -> None:
    processes = fake("say(event='built')")
    processes.stop()
    with pytest.raises(BuildStoppedError):
        processes.build(make_job(tmp_path), lambda event: None)
