"""Our declaration of ONNX Runtime's interface is that of its own header."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.documents import ROOT

ABI = ROOT / "plugins" / "native" / "src" / "ort" / "abi.h"
CHECKS = Path(__file__).with_name("ort_abi.cpp")
PROBE = """
#if __has_include(<onnxruntime_c_api.h>)
#include <onnxruntime_c_api.h>
#else
#include <onnxruntime/onnxruntime_c_api.h>
#endif
#if ORT_API_VERSION < {minimum}
#error older than ONNX Runtime 1.{minimum}
#endif
"""


def _compile(source: Path) -> subprocess.CompletedProcess[str]:
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("not tested: no C++ compiler here")
    folder = os.environ.get("DRL_ORT_INCLUDE")
    include = [f"-I{folder}"] if folder else []
    command = [compiler, "-std=c++17", "-fsyntax-only", *include, str(source)]
    return subprocess.run(command, capture_output=True, text=True)


def _minimum() -> str:
    (found,) = re.findall(r"kApiVersion = (\d+);", ABI.read_text())
    return str(found)


def test_it_is_that_of_the_header(tmp_path: Path) -> None:
    probe = tmp_path / "probe.cpp"
    probe.write_text(PROBE.format(minimum=_minimum()))
    found = _compile(probe)
    if found.returncode and "DRL_ORT_INCLUDE" not in os.environ:
        pytest.skip(
            f"not tested: no header of ONNX Runtime 1.{_minimum()} or newer here; "
            "name the folder of one in DRL_ORT_INCLUDE"
        )
    assert found.returncode == 0, found.stderr
    done = _compile(CHECKS)
    assert done.returncode == 0, done.stderr


def test_everything_that_is_declared_is_checked() -> None:
    declared, checks = ABI.read_text(), CHECKS.read_text()
    functions = re.findall(r"^using (\w+) =\s+Function<", declared, re.MULTILINE)
    assert len(functions) == declared.count("Function<") - 1  # the template
    assert functions == re.findall(r"^SAME_FUNCTION\((\w+)\)", checks, re.MULTILINE)
    for struct in ("ApiBase", "Allocator", "CustomOp"):
        (body,) = re.findall(rf"^struct {struct} {{\n(.*?)^}};", declared, re.M | re.S)
        fields = re.findall(r"(?:\(\*(\w+)\)\(|(?:uint32_t|AnyFunction) (\w+);)", body)
        names = [one or other for one, other in fields]
        assert names == re.findall(rf"^SAME_\w+\(\w+, {struct}, (\w+)\)", checks, re.M)
    numbers = re.findall(r"\b(k\w+) = \d+[,\n }]", declared.split("using AnyFunction")[0])
    assert numbers == re.findall(r"^SAME_NUMBER\(\w+, \w+, (\w+)\)", checks, re.M)
