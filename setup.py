"""Builds the native kernels where there is a C++ compiler. All else stands in pyproject.toml.

Without a compiler the installation succeeds and has no kernels; `find_library` of
`drl.plugins.native` then says what is missing.
"""

import os
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

SOURCES = Path("plugins/native/src")
LIBRARY = "libdrl_native"
SUFFIXES = {"win32": ".dll", "darwin": ".dylib"}
FLAGS = [
    "-std=c++17",
    "-O3",
    "-g0",
    "-fvisibility=hidden",
    "-fno-exceptions",
    # Contraction would let one instruction set round where another does not.
    "-ffp-contract=off",
    # Nobody reads the floating-point exception flags, and to keep them GCC vectorises no loop with
    # a choice between floats. Results are the same.
    "-fno-trapping-math",
]


class BuildLibrary(build_ext):
    """Builds a plain shared library, which knows nothing of Python."""

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


setup(
    ext_modules=[
        Extension(
            f"drl.plugins.native.{LIBRARY}",
            sorted(path.as_posix() for path in SOURCES.rglob("*.cpp")),
            depends=sorted(path.as_posix() for path in SOURCES.rglob("*.*")),
            extra_compile_args=FLAGS,
            language="c++",
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": PlatformWheel},
)
