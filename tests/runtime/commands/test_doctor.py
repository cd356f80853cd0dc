"""`drl-doctor`."""

import json
import sys

import pytest
from click.testing import CliRunner

from drl.runtime import diagnosis
from drl.runtime.commands.doctor import main
from drl.runtime.gpu import Gpu, GpuReport


def test_this_machine_is_well() -> None:
    result = CliRunner().invoke(main)
    assert result.exit_code == 0, result.output
    for part in ("python", "processor", "memory", "numpy", "tokenizers", "torch", "tensorrt"):
        assert part in result.stdout
    assert "  native kernels: " in result.stdout
    assert "works  ONNX Runtime, CPU: ran a graph with onnxruntime" in result.stdout


def test_without_a_backend_the_status_is_1_and_the_remedy_is_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    result = CliRunner().invoke(main)
    assert result.exit_code == 1
    assert "no     ONNX Runtime, CPU: ONNX Runtime is not installed" in result.stdout
    assert 'pip install "drl[cpu]"' in result.stdout


def test_gpus_and_their_driver_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = GpuReport("13.0", (Gpu("NVIDIA L4", "8.9", 24_000_000_000),))
    monkeypatch.setattr(diagnosis, "find_gpus", lambda: gpus)
    lines = CliRunner().invoke(main).stdout.splitlines()
    at = lines.index("GPU")
    assert lines[at + 1].split() == ["driver", "CUDA", "13.0"]
    assert lines[at + 2].split("  ") == ["", "NVIDIA L4", "compute capability 8.9", "24.0 GB"]


def test_a_machine_without_a_gpu_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    fault = "there is no NVIDIA driver"
    monkeypatch.setattr(diagnosis, "find_gpus", lambda: GpuReport(None, (), fault))
    assert f"\nGPU\n  {fault}\n" in CliRunner().invoke(main).stdout


def test_json_holds_the_same() -> None:
    result = CliRunner().invoke(main, ["--json"])
    document = json.loads(result.stdout)
    assert document["backends"][0]["works"] is True
    assert document["processor"]["cores"] >= 1
