"""Compiles the kernels with NVIDIA's run-time compiler: to PTX, and to machine code with a report.

No GPU and no driver are needed, and no header of CUDA's: what the kernels use is in their own
files. The machine code comes from the linker that the driver would use on the PTX, so its report is
that of what runs.
"""

import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from drl.plugins.cuda.errors import CudaKernelError
from drl.plugins.cuda.kernels import KernelSource

ARCHITECTURES = (80, 89, 90, 120)
"""Compute capabilities that the kernels are checked for: A100, Ada, Hopper, consumer Blackwell."""

# The oldest PTX version that has the target and every instruction of the kernels. A driver takes
# PTX up to its own version, so the oldest runs on the most drivers.
_PTX_VERSIONS = {
    **{80: "7.4", 86: "7.4", 87: "7.4", 89: "7.8", 90: "7.8"},
    **{100: "8.6", 103: "8.8", 120: "8.7", 121: "8.8"},
}
_MISSING = (
    "the CUDA kernels are compiled with NVIDIA's run-time compiler, which does not load here; "
    "pip install 'drl[kernels]'"
)


@dataclass(frozen=True)
class CompilerReport:
    """What the assembler says of a kernel, per thread or per block.

    Attributes:
        registers: Registers of a thread.
        spill_stores: Bytes that a thread stores because registers ran out.
        spill_loads: Bytes that it loads back.
        stack: Bytes of a thread's stack.
        shared: Bytes of static shared memory of a block.
    """

    registers: int
    spill_stores: int
    spill_loads: int
    stack: int
    shared: int

    @property
    def blocks_per_multiprocessor(self) -> int:
        """How many blocks of 256 threads the 65,536 registers of a multiprocessor hold."""
        per_warp = -(-self.registers * 32 // 256) * 256  # registers are given out in 256s
        return 65_536 // (8 * per_warp)


def sources() -> dict[str, str]:
    """The text of every file of the kernels, by name."""
    folder = resources.files("drl.plugins.cuda") / "src"
    names = sorted(path.name for path in folder.iterdir())
    return {name: (folder / name).read_text(encoding="utf-8") for name in names}


@cache
def compile_ptx(source: KernelSource, architecture: int) -> str:
    """The kernel as PTX of the oldest version that will do.

    Args:
        source: The kernel.
        architecture: Compute capability without the point: 90 for 9.0.

    Raises:
        CudaKernelError: The compiler is missing, or does not know the architecture.
    """
    if architecture < 80:
        raise CudaKernelError(
            f"the CUDA kernels need compute capability 8.0 or later, not {_dotted(architecture)}; "
            "use the bodies of the operators there"
        )
    nvrtc = _import("nvrtc")
    files = sources()
    headers = {name: text for name, text in files.items() if name != source.file}
    program = _checked(
        nvrtc,
        nvrtc.nvrtcCreateProgram(
            files[source.file].encode(),
            source.file.encode(),
            len(headers),
            [text.encode() for text in headers.values()],
            [name.encode() for name in headers],
        ),
    )
    options = [
        f"--gpu-architecture=compute_{architecture}",
        "--std=c++17",
        *(f"--define-macro={name}={value}" for name, value in source.defines),
    ]
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), [o.encode() for o in options])
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        log = _text(nvrtc, program, "ProgramLog")
        raise CudaKernelError(
            f"NVRTC {version()} does not compile {source} for compute capability "
            f"{_dotted(architecture)}: {' '.join(log.split())}"
        )
    ptx = _text(nvrtc, program, "PTX")
    nvrtc.nvrtcDestroyProgram(program)
    return _of_version(ptx, architecture)


@cache
def compile_cubin(source: KernelSource, architecture: int) -> tuple[bytes, CompilerReport]:
    """The kernel as machine code, and the assembler's report.

    Args:
        source: The kernel.
        architecture: Compute capability without the point.

    Raises:
        CudaKernelError: A compiler is missing, or does not know the architecture.
    """
    ptx = compile_ptx(source, architecture).encode()
    linker = _import("nvjitlink")
    handle = linker.create(2, [f"-arch=sm_{architecture}", "-verbose"])
    try:
        linker.add_data(handle, linker.InputType.PTX, ptx, len(ptx), source.entry)
        linker.complete(handle)
        log = bytearray(linker.get_info_log_size(handle))
        linker.get_info_log(handle, log)
        cubin = bytearray(linker.get_linked_cubin_size(handle))
        linker.get_linked_cubin(handle, cubin)
    except linker.nvJitLinkError as error:
        log = bytearray(linker.get_error_log_size(handle))
        linker.get_error_log(handle, log)
        said = " ".join(log.decode().strip("\0").split()) or str(error)
        raise CudaKernelError(
            f"{source} does not assemble for compute capability {_dotted(architecture)}: {said}"
        ) from error
    finally:
        linker.destroy(handle)
    return bytes(cubin), _parse_report(log.decode())


def version() -> str:
    """The compiler's version, such as `13.5`.

    Raises:
        CudaKernelError: The compiler is missing.
    """
    nvrtc = _import("nvrtc")
    status, major, minor = nvrtc.nvrtcVersion()
    _checked(nvrtc, (status,))
    return f"{major}.{minor}"


def _of_version(ptx: str, architecture: int) -> str:
    """The same PTX, marked as what the architecture needs at least.

    For an architecture that this file does not know the compiler's own version stays.
    """
    oldest = _PTX_VERSIONS.get(architecture)
    if oldest is None:
        return ptx
    return re.sub(r"^\.version \d+\.\d+$", f".version {oldest}", ptx, count=1, flags=re.MULTILINE)


def _parse_report(log: str) -> CompilerReport:
    def number(pattern: str, otherwise: int | None = None) -> int:
        found = re.search(pattern, log)
        if found is None and otherwise is None:
            raise CudaKernelError(f"the assembler's report has no {pattern!r}: {log}")
        return otherwise if found is None else int(found[1])  # type: ignore[return-value]

    return CompilerReport(
        registers=number(r"Used (\d+) registers"),
        spill_stores=number(r"(\d+) bytes spill stores"),
        spill_loads=number(r"(\d+) bytes spill loads"),
        stack=number(r"(\d+) bytes stack frame"),
        shared=number(r"(\d+) bytes smem", 0),
    )


def _import(name: str) -> Any:
    try:
        if name == "nvrtc":
            from cuda.bindings import nvrtc as module

            module.nvrtcVersion()  # a library that is missing shows at the first call
        else:
            from cuda.bindings import nvjitlink as module

            module.version()
        return module
    except (ImportError, RuntimeError) as error:
        raise CudaKernelError(f"{_MISSING} ({' '.join(str(error).split())})") from error


def _checked(nvrtc: Any, results: tuple[Any, ...]) -> Any:
    status, *values = results
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise CudaKernelError(f"NVRTC: {nvrtc.nvrtcGetErrorString(status)[1].decode()}")
    return values[0] if values else None


def _text(nvrtc: Any, program: Any, what: str) -> str:
    """The log or the PTX of a program."""
    size = _checked(nvrtc, getattr(nvrtc, f"nvrtcGet{what}Size")(program))
    text = b" " * size
    _checked(nvrtc, getattr(nvrtc, f"nvrtcGet{what}")(program, text))
    read: str = text.decode().strip("\0").strip()
    return f"{read}\n"


def _dotted(architecture: int) -> str:
    return f"{architecture // 10}.{architecture % 10}"
