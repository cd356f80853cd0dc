"""What loading the runtime costs: modules that only some callers need come with their first use."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["asyncio", "ssl", "difflib", "numpy.random", "onnxruntime"])
def test_the_runtime_is_imported_without(module: str) -> None:
    code = f"import sys, drl.runtime; sys.exit({module!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
