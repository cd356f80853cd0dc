"""The C interface under the sanitizers for memory, undefined behaviour and threads."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CHECKS = sorted(Path(__file__).parent.glob("*_checks.cpp"))
SOURCES = Path(__file__).parents[3] / "plugins" / "native" / "src"
FLAGS = (
    *("-std=c++17", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread"),
    *("-ffp-contract=off", "-fno-trapping-math"),
)


@pytest.fixture(scope="module")
def compiler() -> str:
    found = shutil.which(os.environ.get("CXX", "c++"))
    if found is None:
        pytest.skip("there is no C++ compiler; install g++ or clang")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
@pytest.mark.parametrize("checks", CHECKS, ids=lambda path: path.stem)
def test_the_kernels_hold_under_the_sanitizers(
    compiler: str, checks: Path, sanitizers: str, tmp_path: Path
) -> None:
    flags = (*FLAGS, f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all")
    empty = tmp_path / "empty.cpp"
    empty.write_text("int main() {}")
    probe = subprocess.run(
        [compiler, *flags, "-o", tmp_path / "probe", empty], capture_output=True, text=True
    )
    if probe.returncode:
        pytest.skip(f"the compiler has no sanitizer for {sanitizers}: {probe.stderr.strip()}")
    program = tmp_path / "checks"
    build = [compiler, *flags, "-o", program, checks, *sorted(SOURCES.glob("*.cpp"))]
    subprocess.run(build, check=True)
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
