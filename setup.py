"""Builds the native kernels where there is a C++ compiler. All else stands in pyproject.toml.

Without a compiler the installation succeeds and has no kernels; without ONNX Runtime's C headers
they are built without its operators. `drl.plugins.native.find_library` then says what is missing.
"""

import os
import sys
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

SOURCES = Path("plugins/native/src")
LIBRARY = "libdrl_native"
SUFFIXES = {"win32": ".dll", "darwin": ".dylib"}
# Contraction would let one instruction set round where another does not.
FLAGS = ["-std=c++17", "-O3", "-g0", "-ffp-contract=off", "-fvisibility=hidden", "-fno-exceptions"]
HEADERS = ("onnxruntime_c_api.h", "onnxruntime/onnxruntime_c_api.h")


class BuildLibrary(build_ext):
    """Builds a plain shared library, which knows nothing of Python."""

    def build_extension(self, ext: Extension) -> None:
        """Add the operators for ONNX Runtime where its headers are found, then build."""
        if folder := os.environ.get("DRL_ORT_INCLUDE"):
            ext.include_dirs.append(folder)
        if any(self._compiles(f"#include <{header}>", ext) for header in HEADERS):
            ext.sources += _sources("ort")
        elif folder:
            raise SystemExit(f"DRL_ORT_INCLUDE={folder} holds no {HEADERS[0]} that compiles")
        super().build_extension(ext)

    def _compiles(self, code: str, ext: Extension) -> bool:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "probe.cpp"
            source.write_text(code)
            try:
                self.compiler.compile(
                    [str(source)], output_dir=folder, include_dirs=ext.include_dirs
                )
            except CompileError:
                return False
        return True

    def get_ext_filename(self, fullname: str) -> str:
        """The library's own name, without the version of the interpreter."""
        *folders, name = fullname.split(".")
        return os.path.join(*folders, name + SUFFIXES.get(sys.platform, ".so"))

    def get_export_symbols(self, ext: Extension) -> list[str]:
        """None beside those that the sources mark: there is no module to initialise."""
        return []


class PlatformWheel(bdist_wheel):
    """A wheel for every Python on this platform, or on every platform if no library was built."""

    def get_tag(self) -> tuple[str, str, str]:
        """The wheel's tag."""
        folder = Path(self.get_finalized_command("build").build_lib)
        built = any(folder.rglob(f"{LIBRARY}*"))
        return "py3", "none", super().get_tag()[2] if built else "any"


def _sources(folder: str = "") -> list[str]:
    return sorted(path.as_posix() for path in (SOURCES / folder).glob("*.cpp"))


setup(
    ext_modules=[
        Extension(
            f"drl.plugins.native.{LIBRARY}",
            _sources(),
            depends=sorted(path.as_posix() for path in SOURCES.rglob("*.*")),
            extra_compile_args=FLAGS,
            language="c++",
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": PlatformWheel},
)
