"""What NVIDIA's compilers make of the kernels, for each architecture, without a GPU."""

import builtins
import re
from typing import Any

import pytest

from drl.plugins.cuda import CudaKernelError
from drl.plugins.cuda.compile import (
    ARCHITECTURES,
    compile_cubin,
    compile_ptx,
    sources,
    version,
)
from drl.plugins.cuda.kernels import (
    CombineKernel,
    ExpertRouteKernel,
    InnerKernel,
    Kernel,
    KernelSource,
)
from drl.plugins.cuda.tiling import WIDE, Tiling

pytest.importorskip(
    "cuda.bindings.nvrtc", reason="NVIDIA's compilers are missing; pip install 'drl[kernels]'"
)
TILINGS = [*(Tiling(columns, tiles) for columns in (8, 4, 2) for tiles in (1, 2, 4)), WIDE]
SHARED = 48 * 1024  # of a block, without asking for more
# Registers of a thread at most, by tiles of rows. Sums over several experts may take all there are.
REGISTERS = {1: 200, 2: 248, 4: 255}
OLDEST_PTX = {80: (7, 4), 89: (7, 8), 90: (7, 8), 120: (8, 7)}


def _kernels(tiling: Tiling) -> list[Kernel]:
    """What runs with this tiling, in the types and forms that differ most."""
    chosen: list[Kernel] = [
        InnerKernel("fp16", "fp16", "silu_glu", tiling, biased=True),
        CombineKernel("bf16", "bf16", tiling, single=True, biased=True),
    ]
    if tiling.columns > 2:
        chosen.append(InnerKernel("bf16", "int8", "gelu", tiling, biased=True))
    if tiling.columns <= 4 or tiling.wide:
        chosen.append(CombineKernel("fp16", "fp16", tiling, single=False, biased=True))
    return chosen


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("tiling", TILINGS, ids=str)
def test_products_fit_the_registers_and_spill_nothing(tiling: Tiling, architecture: int) -> None:
    for kernel in _kernels(tiling):
        _, report = compile_cubin(kernel.source, architecture)
        assert (report.spill_stores, report.spill_loads, report.stack) == (0, 0, 0), kernel
        several = isinstance(kernel, CombineKernel) and not kernel.single
        assert 32 <= report.registers <= (255 if several else REGISTERS[tiling.tiles]), kernel
        assert 0 < report.shared <= SHARED, kernel


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_routing_is_small(dtype: Any, biased: bool, architecture: int) -> None:
    _, report = compile_cubin(ExpertRouteKernel(dtype, biased).source, architecture)
    assert (report.spill_stores, report.stack) == (0, 0)
    assert report.registers <= 72
    assert report.blocks_per_multiprocessor >= 3
    assert report.shared < 16 * 1024


KERNEL = InnerKernel("fp16", "fp16", "relu", Tiling(8, 1))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_ptx_is_for_the_architecture_and_no_newer_than_it_must_be(architecture: int) -> None:
    ptx = compile_ptx(KERNEL.source, architecture)
    assert f".target sm_{architecture}" in ptx
    assert f".entry {KERNEL.source.entry}(" in ptx
    (found,) = re.findall(r"^\.version (\d+)\.(\d+)$", ptx, re.MULTILINE)
    assert tuple(map(int, found)) == OLDEST_PTX[architecture]
    cubin, _ = compile_cubin(KERNEL.source, architecture)  # the assembler takes that version
    assert cubin.startswith(b"\x7fELF")


def test_weights_are_loaded_16_bytes_at_a_time_and_multiplied_on_the_tensor_cores() -> None:
    for architecture in ARCHITECTURES:
        ptx = compile_ptx(KERNEL.source, architecture)
        assert "ld.global.nc.L1::no_allocate.L2::128B.v4.u32" in ptx
        assert "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32" in ptx
        atomics = re.findall(r"\b(?:atom|red)\.[\w.:]+", ptx)
        assert all(name.endswith((".u32", ".s32")) for name in atomics), atomics  # no floats
        assert "ld.local" not in ptx


def test_the_same_source_gives_the_same_ptx() -> None:
    first = compile_ptx(KERNEL.source, 90)
    compile_ptx.cache_clear()
    assert compile_ptx(KERNEL.source, 90) == first


def test_sources_are_those_of_the_package() -> None:
    assert {"routed_ffn_inner.cu", "routed_ffn_combine.cu", "expert_route.cu"} <= set(sources())
    assert not any("#include <" in text for text in sources().values())  # nothing of CUDA's
    assert version().split(".")[0].isdigit()


def test_what_does_not_compile_says_where() -> None:
    source = KernelSource("expert_route.cu", "drl_expert_route", (("DRL_FLOAT", "Quarter"),))
    with pytest.raises(CudaKernelError, match=r"does not compile .*Quarter.*expert_route\.cu"):
        compile_ptx(source, 90)


def test_architectures_without_the_instructions_are_refused() -> None:
    with pytest.raises(CudaKernelError, match=r"compute capability 8\.0 or later, not 7\.5"):
        compile_ptx(KERNEL.source, 75)
    with pytest.raises(CudaKernelError, match=r"invalid value for --gpu-architecture"):
        compile_ptx(KERNEL.source, 999)


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def refuse(name: str, *rest: Any, **options: Any) -> Any:
        if name.startswith("cuda"):
            raise ImportError(name)
        return imported(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    compile_ptx.cache_clear()
    with pytest.raises(CudaKernelError, match=r"pip install 'drl\[kernels\]'"):
        compile_ptx(KERNEL.source, 90)


def test_a_compiler_without_its_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bindings may be there without the library that they load."""
    from cuda.bindings import nvrtc

    def refuse() -> None:
        raise RuntimeError("Failure finding libnvrtc.so")

    monkeypatch.setattr(nvrtc, "nvrtcVersion", refuse)
    compile_ptx.cache_clear()
    with pytest.raises(CudaKernelError, match=r"pip install 'drl\[kernels\]' \(Failure finding"):
        compile_ptx(KERNEL.source, 90)
