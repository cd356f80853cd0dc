"""The wheel as users install it: without torch and onnx it generates from a bundle."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from drl.plugins.native.library import LIBRARY

ROOT = Path(__file__).parent.parent
PACKAGES = ("benchmarks", "export", "plugins", "runtime")
NATIVE_LIBRARY = f"drl/plugins/native/{LIBRARY.name}"

GENERATE = """
import importlib.util, sys
from drl.runtime import Engine, GenerationConfig
for absent in ("torch", "onnx", "onnxscript", "drl.examples"):
    assert absent not in sys.modules, absent
assert importlib.util.find_spec("torch") is None
assert importlib.util.find_spec("onnx") is None
engine = Engine.from_bundle(sys.argv[1], device="cpu", threads=1)
(result,) = engine.generate([[17, 4, 9]], GenerationConfig(max_new_tokens=8), path="full")
print(result.tokens)
"""


def _run(*command: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=check, env=clean, cwd="/"
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a wheel is made of, so that nothing left in the tree gets into it."""
    source = tmp_path_factory.mktemp("source")
    skipped = shutil.ignore_patterns("__pycache__", "libdrl_native.*")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=skipped)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    return source


def build_wheel(source: Path, folder: Path) -> Path:
    shutil.rmtree(source / "build", ignore_errors=True)
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps")
    _run(*pip, "--wheel-dir", folder, source)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(source, tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_every_module(wheel: Path) -> None:
    """A folder that is missing from `packages` would be missing here."""
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("drl/")}
    modules = {
        f"drl/{path.relative_to(ROOT)}" for name in PACKAGES for path in (ROOT / name).rglob("*.py")
    }
    assert modules <= packed
    assert {f"drl/{name}/py.typed" for name in PACKAGES} <= packed


@pytest.mark.skipif(shutil.which("c++") is None, reason="not tested: no C++ compiler here")
def test_the_wheel_brings_the_native_kernels_for_every_python_of_its_platform(wheel: Path) -> None:
    assert "-py3-none-" in wheel.name
    assert not wheel.name.endswith("-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert [name for name in names if "libdrl_native" in name] == [NATIVE_LIBRARY]
    assert not [name for name in names if name.endswith((".cpp", ".h"))]


def test_without_a_compiler_the_wheel_is_built_without_kernels(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "/nowhere/cc")
    monkeypatch.setenv("CXX", "/nowhere/c++")
    built = build_wheel(source, tmp_path)
    assert built.name.endswith("-py3-none-any.whl")
    assert not [name for name in zipfile.ZipFile(built).namelist() if "libdrl" in name]


@pytest.mark.slow
def test_the_wheel_generates_without_torch(wheel: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    _run(sys.executable, "-m", "venv", environment)
    python = environment / "bin" / "python"
    _run(python, "-m", "pip", "install", "--quiet", f"{wheel}[cpu]")
    done = _run(python, "-c", GENERATE, tiny_bundle)
    assert done.stdout.startswith("[")
    generated = _run(environment / "bin" / "drl-generate", tiny_bundle, "--help")
    assert "Usage: drl-generate" in generated.stdout

    _run(python, "-m", "pip", "uninstall", "--quiet", "--yes", "onnxruntime")
    failed = _run(python, "-c", GENERATE, tiny_bundle, check=False)
    assert failed.returncode != 0
    assert 'pip install "drl[cpu]"' in failed.stderr.splitlines()[-1]
    doctor = _run(environment / "bin" / "drl-doctor", check=False)
    assert doctor.returncode == 1
    assert "Traceback" not in doctor.stderr
