"""`drl-export` as a person meets it: what it prints, what it leaves, how it fails."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from drl.runtime.bundle import Bundle

COMMAND = [sys.executable, "-c", "from drl.export.cli import main; main()"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def _run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)


def test_an_export_shows_its_stages_and_ends_with_a_table(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    done = _run(tiny_checkpoint, tmp_path / "bundle", "--target", "portable")
    assert done.returncode == 0
    for stage in ("reading the checkpoint", "emitting the graphs", "comparing with eager PyTorch"):
        assert re.search(rf"^{stage} +\d+\.\d s$", done.stderr, re.MULTILINE)
    assert "(portable, fp32)" in done.stdout
    assert re.search(r"decoder\.onnx +[\d.]+ kB +\d+ nodes", done.stdout)
    assert re.search(r"path balanced +logits \d\.\de-0\d", done.stdout)
    assert re.search(r"\d+ clear ones, 0 wrong", done.stdout)
    assert Bundle.load(tmp_path / "bundle").manifest.target == "portable"


def test_an_unverified_bundle_says_so(tiny_checkpoint: Path, tmp_path: Path) -> None:
    done = _run(tiny_checkpoint, tmp_path / "bundle", "--no-verify")
    assert done.returncode == 0
    assert "not compared with PyTorch (--no-verify)" in done.stdout
    assert Bundle.load(tmp_path / "bundle").manifest.parity is None


def test_a_quantised_export_says_what_rounding_costs(tiny_checkpoint: Path, tmp_path: Path) -> None:
    done = _run(tiny_checkpoint, tmp_path / "bundle", "--precision", "int8")
    assert done.returncode == 0
    assert "(ort-cpu, int8)" in done.stdout
    assert re.search(r"weights: \d\d % of fp32", done.stdout)
    assert re.search(r"path fast +KL \d\.\de-0\d \(at most .*\), same token [\d.]+ %", done.stdout)
    assert re.search(r"expert choices of decoder\.layers\.3: [\d.]+ % flipped", done.stdout)
    assert re.search(r"path choices: [\d.]+ % the same", done.stdout)
    assert re.search(r"distance from PyTorch with the same rounding: \d\.\de-0\d", done.stdout)
    assert Bundle.load(tmp_path / "bundle").manifest.precision == "int8"


def test_keys_and_values_may_be_int8(tiny_checkpoint: Path, tmp_path: Path) -> None:
    arguments = ("--precision", "int8", "--kv-cache", "int8", "--no-verify")
    done = _run(tiny_checkpoint, tmp_path / "bundle", *arguments)
    assert done.returncode == 0
    assert "(ort-cpu, int8, int8 keys and values)" in done.stdout
    cache = Bundle.load(tmp_path / "bundle").manifest.cache
    assert (cache.dtype, cache.scale_bytes) == ("int8", 2)
    done = _run(tiny_checkpoint, tmp_path / "other", "--kv-cache", "int8")
    assert done.returncode == 1
    assert done.stderr.startswith("error: --kv-cache int8 is for quantised bundles")


def test_a_quantised_bundle_is_not_portable(tmp_path: Path) -> None:
    done = _run(tmp_path, tmp_path / "out", "--precision", "int4", "--target", "portable")
    assert done.returncode == 1
    assert done.stderr.startswith("error: a portable bundle has no precision int4: ")
    assert "--precision fp32" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_mistake_is_one_line_and_leaves_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(tiny_checkpoint, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"")
    existing = tmp_path / "existing"
    (existing / "sub").mkdir(parents=True)
    file = tmp_path / "file"
    file.write_text("x")
    cases = {
        "no checkpoint at": (tmp_path / "missing", tmp_path / "out"),
        "damaged or incomplete": (broken, tmp_path / "out"),
        "give --force": (tiny_checkpoint, existing),
        "is no checkpoint": (file, tmp_path / "out"),
        "cannot write": (tiny_checkpoint, file / "out"),
    }
    before = sorted(path.name for path in tmp_path.iterdir())
    for fragment, arguments in cases.items():
        done = _run(*arguments, "--no-verify")
        assert done.returncode == 1
        assert done.stdout == ""
        *stages, error = done.stderr.splitlines()
        assert error.startswith("error: ")
        assert fragment in error
        assert all("Traceback" not in line for line in stages)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_an_interrupted_export_leaves_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, str(tiny_checkpoint), str(tmp_path / "bundle")],
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    assert process.stderr is not None
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".bundle.partial-*/weights.bin")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.splitlines()[-1] == "interrupted"
    assert "Traceback" not in stderr
    assert list(tmp_path.iterdir()) == []


def _run_without(module: str, prelude: str) -> subprocess.CompletedProcess[str]:
    """Run the command where `prelude` spoils the import of `module`."""
    code = f"import sys; {prelude.format(module)}\nfrom drl.export.cli import main; main()"
    command = [sys.executable, "-c", code, "checkpoint", "bundle"]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)


@pytest.mark.parametrize("module", ["torch", "onnx", "onnx_ir", "onnxscript", "safetensors"])
def test_a_missing_library_is_one_line_that_says_how_to_install_it(module: str) -> None:
    done = _run_without(module, "sys.modules[{!r}] = None")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {module} is not installed")
    assert 'pip install ".[export]"' in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_interrupt_while_pytorch_is_imported_is_one_line() -> None:
    finder = """
class Finder:
    def find_spec(self, name, *_):
        if name == {!r}:
            raise KeyboardInterrupt
sys.meta_path.insert(0, Finder())"""
    done = _run_without("torch", finder)
    assert done.returncode == 130
    assert done.stderr == "interrupted\n"


@pytest.mark.parametrize("option", ["--target=tpu", "--precision=int3"])
def test_an_unknown_choice_names_the_known_ones(option: str, tmp_path: Path) -> None:
    done = _run(tmp_path, tmp_path / "out", option)
    assert done.returncode == 2
    assert "is not" in done.stderr
