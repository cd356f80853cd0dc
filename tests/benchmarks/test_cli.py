"""`drl-bench` from end to end, on a tiny model."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from drl.benchmarks import floor
from drl.benchmarks.cli import main
from drl.benchmarks.findings import read_json
from drl.runtime import Bundle
from drl.runtime.backends.ort_device import OrtDeviceBackend
from tests.runtime.backends.fake_device import fake_backend


def test_everything_is_measured_and_written(tiny_bundle: Path, tmp_path: Path) -> None:
    files = {kind: tmp_path / f"out.{kind}" for kind in ("json", "markdown", "html")}
    arguments = [
        str(tiny_bundle),
        "--batch",
        "1,2",
        "--source",
        "8",
        "--new",
        "4",
        "--beams",
        "1,2",
    ]
    arguments += ["--repeats", "2", "--threads", "1"]
    arguments += [part for kind, file in files.items() for part in (f"--{kind}", str(file))]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert done.stdout == files["markdown"].read_text(encoding="utf-8")
    assert "<svg" in files["html"].read_text(encoding="utf-8")
    (run,) = read_json(files["json"])
    assert run.name == tiny_bundle.name
    assert len(run.cells) == 3 * 2 * 2
    assert {"processor", "cores", "instruction_sets", "memory"} <= run.machine.keys()
    assert {"python", "onnxruntime", "numpy"} <= run.versions.keys()
    assert run.threads == 1
    assert run.floor is not None
    assert 1e8 < run.floor.bytes_per_second < 1e13
    assert 1e8 < run.floor.flops_per_second < 1e14
    assert run.fresh is not None
    assert 0 < run.fresh.loaded_bytes <= run.fresh.peak_bytes
    assert run.fresh.import_ms > 1.0
    for each in run.cells:
        assert each.work is not None
        assert each.reached is not None
        assert 0 < each.reached < 1.5
        assert 1 <= (each.work.experts_in_use or 0) <= 8


def test_a_quick_run_leaves_the_machine_alone(tiny_bundle: Path, tmp_path: Path) -> None:
    arguments = ["--quick", "--batch", "1", "--source", "8", "--new", "3", "--path", "fast"]
    arguments += ["--repeats", "1", "--tokens", "chosen", "--json", str(tmp_path / "a.json")]
    done = CliRunner().invoke(main, [str(tiny_bundle), *arguments])
    assert done.exit_code == 0, done.output
    (run,) = json.loads((tmp_path / "a.json").read_text())["runs"]
    assert run["floor"] is run["fresh"] is run["comparison"] is None
    assert run["settings"]["varied"] is False
    assert "random token" not in done.stdout


def test_engines_that_are_missing_or_left_out_do_not_stop_it(
    tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    arguments = ["--quick", "--batch", "1", "--source", "8", "--new", "3", "--repeats", "1"]
    arguments += ["--path", "full", "--checkpoint", str(tiny_checkpoint)]
    arguments += ["--peers", str(tmp_path), "--without", "CTranslate2", "--without", "compiled"]
    done = CliRunner().invoke(main, [str(tiny_bundle), *arguments])
    assert done.exit_code == 0, done.output
    assert f"| drl {tiny_bundle.name} 0.1.0 |" in done.stdout
    skipped = [line for line in done.stdout.splitlines() if line.startswith("Skipped: ")]
    assert len(skipped) == 4
    assert all("make bench-peers" in line for line in skipped)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "1,x"], "no list of positive numbers"),
        (["--batch", "0"], "no list of positive numbers"),
        (["--source", "1000"], "beyond the model's 48 tokens"),
        (["--path", "quick"], "there is no path 'quick'"),
        (["--json", "none/a.json"], "there is no folder none"),
        (["--calibrate", "--json", "a.json"], "give it without outputs"),
    ],
)
def test_a_mistake_is_one_line(tiny_bundle: Path, arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(main, [str(tiny_bundle), *arguments])
    assert done.exit_code in (1, 2)
    assert message in done.stderr.splitlines()[-1]


def test_bandwidth_and_products_are_measured() -> None:
    assert floor.read_bandwidth(2, 1 << 20, passes=2) > 1e7
    flops, who = floor.matmul_flops(1, (8, 32, 32))
    assert flops > 1e5
    assert who == "ONNX Runtime"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--beside", "{bundle}"], "give --checkpoint as well"),
        (["--beside", "{bundle}", "--checkpoint", "{bundle}"], "two bundles are called"),
        (["--first-token", "9999"], "--first-token is beyond the model's"),
        (["--calibrate", "--beside", "{bundle}"], "without outputs and comparison"),
        (["--batch", "1" * 5000], "is no list of positive numbers"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(
    arguments: list[str], message: str, tiny_bundle: Path
) -> None:
    given = [argument.format(bundle=tiny_bundle) for argument in arguments]
    done = CliRunner().invoke(main, [str(tiny_bundle), *given])
    assert done.exit_code != 0
    assert message in done.output
    assert "round" not in done.output


def test_a_device_is_measured_without_the_floor_of_the_processor(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    def open_fake(bundle: Bundle, device: str, threads: int) -> OrtDeviceBackend:
        opened.append((device, threads))
        return fake_backend(bundle)

    monkeypatch.setattr("drl.benchmarks.run.open_backend", open_fake)
    monkeypatch.setattr("drl.benchmarks.run.measure_floor", lambda threads: pytest.fail("a floor"))
    fresh = []
    monkeypatch.setattr("drl.benchmarks.run.measure_fresh", lambda *given: fresh.append(given))
    arguments = ["--device", "cuda:1", "--batch", "2", "--source", "8", "--new", "3"]
    arguments += ["--beams", "1,2", "--repeats", "1", "--json", str(tmp_path / "a.json")]
    done = CliRunner().invoke(main, [str(tiny_bundle), *arguments])
    assert done.exit_code == 0, done.output
    assert opened == [("cuda:1", 1)]
    assert [given[-1] for given in fresh] == ["cuda:1"]
    (run,) = json.loads((tmp_path / "a.json").read_text())["runs"]
    assert run["backend"].endswith("Fake GPU (cuda:0)")
    assert run["floor"] is None
    assert len(run["cells"]) == 6
    assert all(cell["step_ms"]["p50"] > 0 for cell in run["cells"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "tpu"], "there is no device 'tpu'"),
        (["--device", "cuda", "--checkpoint", "."], "compared on the CPU; leave out --device"),
    ],
)
def test_a_wrong_device_is_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(main, [str(tmp_path), *arguments])
    assert done.exit_code == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
