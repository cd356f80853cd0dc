"""`drl-build` as a person meets it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from drl.export.tensorrt.cli import main
from drl.export.tensorrt.options import BuildOptions
from drl.export.tensorrt.sizes import Range, Sizes
from drl.runtime.backends.tensorrt.manifest import EngineManifest, EngineOptions
from drl.runtime.bundle import Bundle
from tests.export.tensorrt import rtx_as_tensorrt

COMMAND = [sys.executable, "-c", "from drl.export.tensorrt.cli import main; main()"]
RTX = ("--flavour", "rtx", "--compute-capability", "8.9")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def error_of(result: Result) -> str:
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    line = result.stderr.splitlines()[-1]
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


@pytest.mark.usefixtures("small_lowering")
def test_a_build_ends_with_a_table_and_the_next_one_says_what_is_up_to_date(
    bundle: Bundle,
) -> None:
    first = run(bundle.folder, *RTX, "--path", "fast", "--no-gate")
    assert first.exit_code == 0, first.output
    assert re.search(r"^lowering the graphs +\d\.\d s$", first.stderr, re.MULTILINE)
    assert re.search(r"^decoder\.fast \(8\.9\) +\d\.\d s   new$", first.stderr, re.MULTILINE)
    assert re.search(r"rtx-[\d.]+-sm89  \(fp16, cache 48, 60 candidates\)", first.stdout)
    assert re.search(r"^  encoder +[\d.]+ kB  built in \d+\.\d s: new$", first.stdout, re.MULTILINE)
    assert "not checked whether the precision holds every value (--no-gate)" in first.stdout
    second = run(bundle.folder, *RTX, "--path", "fast", "--candidates", "5", "--no-gate")
    assert re.search(r"^  encoder +[\d.]+ kB  up to date$", second.stdout, re.MULTILINE)
    assert "s: candidates 60 → 5" in second.stdout


@pytest.mark.usefixtures("small_lowering")
def test_json_holds_the_whole_report(bundle: Bundle) -> None:
    done = run(bundle.folder, *RTX, "--path", "fast", "--no-gate", "--json")
    document = json.loads(done.stdout)
    assert document["flavour"] == "tensorrt-rtx"
    assert document["gate"] == "skipped"
    (folder,) = document["folders"]
    assert folder["compute_capability"] == "8.9"
    engine = {engine["name"]: engine for engine in folder["engines"]}["decoder.fast"]
    assert engine["reason"] == "new"
    assert engine["seconds"] > 0
    assert engine["bytes"] == (Path(folder["folder"]) / "decoder.fast.engine").stat().st_size


def test_a_precision_that_overflows_is_refused_before_anything_is_built(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    from drl.export.tensorrt import numeric_gate
    from drl.runtime.errors import ExportError

    def refuse(bundle: Bundle, precision: str) -> None:
        raise ExportError(f"fp16 cannot hold it, {precision}; use --precision bf16")

    monkeypatch.setattr(numeric_gate, "check_precision", refuse)
    assert error_of(run(bundle.folder, *RTX)) == "fp16 cannot hold it, fp16; use --precision bf16"
    assert not (bundle.folder / "engines").exists()


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (("--flavour", "rtx", "--compute-capability", "9.0"), "does not build for compute capab"),
        ((*RTX, "--path", "fasst"), "did you mean 'fast'?"),
        ((*RTX, "--cache", "49"), "--cache 49 is not within 1 and the model's 48"),
        ((*RTX, "--source", "1,8,99"), "--source 1,8,99 exceeds the model's 48"),
        ((*RTX, "--beams", "2", "--sources", "1"), "give one of them"),
        ((*RTX, "--plugins"), "takes no plugins"),
        ((*RTX, "--version-compatible"), "run on the version that built them"),
        ((*RTX, "--hardware-compatible"), "one compute capability at a time"),
        (("--flavour", "rtx", "--compute-capability", "8.0", "--precision", "fp8"), "have no fp8"),
    ],
)
def test_a_mistake_is_one_line(bundle: Bundle, arguments: tuple[str, ...], fragment: str) -> None:
    assert fragment in error_of(run(bundle.folder, *arguments))
    assert not (bundle.folder / "engines").exists()


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (("--batch", "0"), "does not ascend from 1"),
        (("--batch", "8,4,2"), "does not ascend from 1"),
        (("--new-tokens", "x"), "neither a number nor MIN,OPT,MAX"),
        (("--compute-capability", "9"), "'9' is no compute capability, as 8.9 is"),
        (("--compute-capability", "8.9,"), "'' is no compute capability"),
        (("--flavour", "trt"), "'trt' is not one of"),
        (("--jobs", "0"), "0 is not in the range"),
    ],
)
def test_a_wrong_value_is_a_mistake_of_usage(
    bundle: Bundle, arguments: tuple[str, ...], fragment: str
) -> None:
    done = run(bundle.folder, *arguments)
    assert done.exit_code == 2
    assert fragment in done.stderr


def test_no_bundle_is_an_error(tmp_path: Path) -> None:
    assert "there is no bundle at" in error_of(run(tmp_path / "none", *RTX))


def test_a_missing_library_says_how_to_install_it(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert 'run `pip install "drl[rtx]"`' in error_of(run(bundle.folder, *RTX))
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    message = error_of(run(bundle.folder, "--flavour", "tensorrt"))
    assert message.startswith("TensorRT is not installed; install it from NVIDIA")


def test_missing_polygraphy_says_how_to_install_it(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    from drl.export.tensorrt import builder

    monkeypatch.setattr(builder, "find_spec", lambda name: None)
    message = error_of(run(bundle.folder, *RTX))
    assert (
        message
        == 'polygraphy is not installed, and building needs it; run `pip install "drl[rtx]"`'
    )


@pytest.mark.parametrize("module", ["onnx", "onnx_ir"])
def test_a_missing_extra_is_one_line(bundle: Bundle, module: str) -> None:
    code = f"import sys; sys.modules[{module!r}] = None\n{COMMAND[-1]}"
    command = [sys.executable, "-c", code, str(bundle.folder), *RTX]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {module} is not installed")
    assert len(done.stderr.splitlines()) == 1


def test_options_become_what_they_say(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    from drl.export.tensorrt import builder

    given: list[BuildOptions] = []

    def stop(bundle: Bundle, options: BuildOptions, progress: Any) -> None:
        given.append(options)
        raise KeyboardInterrupt

    monkeypatch.setattr(builder, "build_engines", stop)
    words = (
        "--flavour tensorrt --compute-capability 9.0,8.9,9.0 --precision bf16 --batch 1,2,4 "
        "--source 8 --new-tokens 1,1,2 --cache 20 --beams 1,1,2 --candidates 3 --no-plugins "
        "--hardware-compatible --version-compatible --weight-streaming --path a --path b --force "
        "--no-gate --jobs 2 --time-limit 9 --timing-cache here"
    )
    assert run(bundle.folder, *words.split()).exit_code == 130
    (options,) = given
    assert options == BuildOptions(
        flavour="tensorrt",
        targets=("9.0", "8.9"),
        precision="bf16",
        sizes=Sizes(
            batch=Range(1, 2, 4),
            source=Range(8, 8, 8),
            new_tokens=Range(1, 1, 2),
            beams=Range(1, 1, 2),
            capacity=20,
        ),
        candidates=3,
        plugins=False,
        engine=EngineOptions(True, True, True),
        paths=("a", "b"),
        force=True,
        gate=False,
        jobs=2,
        time_limit=9.0,
        timing_cache=Path("here"),
    )
    # What a manifest keeps of them asks for the same engines.
    assert run(bundle.folder, "--flavour", "tensorrt", *options.arguments()).exit_code == 130
    again = given[1]
    assert (again.sizes, again.precision, again.engine) == (
        options.sizes,
        options.precision,
        options.engine,
    )
    assert (again.candidates, again.plugins) == (3, False)


# In a process of its own, with graphs of a few nodes and a GPU that is made up.
SMALL = f"""
from drl.export.tensorrt import builder, wanted
from drl.runtime.gpu import Gpu, GpuReport
from tests.export.tensorrt.small_graphs import lower_small
builder.find_gpus = lambda: GpuReport("13.0", (Gpu("made up", "8.9", 1 << 34),))
wanted.lower_bundle = lower_small
{COMMAND[-1]}
"""
ROOT = Path(__file__).parents[3]


def start(*arguments: object, packages: Path = ROOT) -> "subprocess.Popen[str]":
    paths = os.pathsep.join([str(packages), str(ROOT)])
    return subprocess.Popen(
        [sys.executable, "-c", SMALL, *map(str, arguments), "--no-gate"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )


def interrupt_once(process: "subprocess.Popen[str]", ready: Callable[[], bool]) -> str:
    """Press Ctrl-C when something has happened. Returns standard error."""
    deadline = time.monotonic() + 120
    while not ready():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.splitlines()[-1] == "interrupted"
    assert "Traceback" not in stderr
    return stderr


def test_an_interrupted_build_leaves_nothing(bundle: Bundle) -> None:
    engines = bundle.folder / "engines"
    process = start(bundle.folder, *RTX)
    interrupt_once(process, lambda: bool(list(engines.glob(".partial-*/*.engine"))))
    assert not engines.exists()


def test_an_interrupted_build_keeps_earlier_engines_and_timings(
    bundle: Bundle, tmp_path: Path
) -> None:
    packages = rtx_as_tensorrt.install(tmp_path)
    timings = tmp_path / "timings" / "tensorrt-11.0.0.9-sm89.timing"
    command = [bundle.folder, "--flavour", "tensorrt", "--no-plugins"]
    command += ["--timing-cache", timings.parent]
    first = start(*command, "--path", "fast", packages=packages)
    assert first.wait(120) == 0, first.communicate()
    folder = bundle.folder / "engines" / "tensorrt-11.0.0.9-sm89"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert EngineManifest.load(folder).flavour == "tensorrt"
    timings.unlink()
    again = start(*command, "--force", packages=packages)
    interrupt_once(again, timings.exists)  # which says that the first engine is done
    assert timings.read_bytes()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert not list((bundle.folder / "engines").glob(".partial-*"))
