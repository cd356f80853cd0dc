"""TensorRT for RTX parses and builds every lowered graph, for GPUs that this machine lacks."""

import subprocess
import sys
from pathlib import Path

import pytest

from drl.export import ExportOptions, export
from drl.export.tensorrt.lowering import LoweringOptions, lower_bundle
from drl.runtime.bundle import Bundle
from tests.export.tensorrt.subjects import FOREIGN, NUMBERS, make_subject

pytest.importorskip("tensorrt_rtx")
pytestmark = pytest.mark.slow

KINDS = [
    "every feature",
    "relative bias, gated GELU",
    "attention head",
    "one path, keeping some states",
    "post-norm, biases, learned positions",
    "sinusoids, final norms after all",
    "a bias per layer",
    "capacity, router bias",
    "normalised gates, biased experts",
    *FOREIGN,
]
"""Together they have every operator and every form of one."""

PROGRAM = Path(__file__).with_name("build_all.py")


def _build(bundle: Bundle, folder: Path, target: str, precision: str = "fp16") -> None:
    """Build the engines of all graphs of a bundle."""
    folder.mkdir()
    graphs = lower_bundle(bundle, LoweringOptions(precision, capacity=16), folder)
    files = [str(folder / f"{graph.name}.onnx") for graph in graphs]
    done = subprocess.run(
        [sys.executable, str(PROGRAM), target, *files],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    built = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())
    assert built.keys() == set(files)
    assert min(map(int, built.values())) > 1000


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_model_builds(name: str, tmp_path: Path) -> None:
    _build(make_subject(name, tmp_path).bundle, tmp_path / "graphs", "SM89")


@pytest.mark.parametrize("name", ["every feature", "a bias per layer", *FOREIGN])
def test_bf16_builds(name: str, tmp_path: Path) -> None:
    _build(make_subject(name, tmp_path).bundle, tmp_path / "graphs", "SM80", "bf16")


@pytest.mark.parametrize("name", ["every feature", *FOREIGN])
def test_fp8_builds_where_gpus_have_it(name: str, tmp_path: Path) -> None:
    _build(make_subject(name, tmp_path).bundle, tmp_path / "graphs", "SM120", "fp8")


@pytest.mark.parametrize("target", ["SM80", "SM89", "SM120"])
def test_the_shipped_model_builds_for_three_generations(target: str, tmp_path: Path) -> None:
    export(NUMBERS, tmp_path / "bundle", ExportOptions(verify=False))
    _build(Bundle.load(tmp_path / "bundle"), tmp_path / "graphs", target)
