"""The emulated machine catches what a GPU would answer with rubbish, a hang or an error."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from drl.plugins.cuda.calls import Call, Output
from drl.plugins.cuda.kernels import KernelSource
from tests.plugins.cuda.emulator import COMPILER, EmulationError, emulate
from tests.plugins.ops.case import Array

pytestmark = pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler; install g++")


@dataclass(frozen=True)
class Written:
    """A kernel of a test, with one input and one output of floats."""

    source: KernelSource
    dtype: str = "fp32"


def _run(folder: Path, body: str, size: int = 256, **options: Any) -> Array:
    file = folder / "written.cu"
    file.write_text(
        '#include "types.cuh"\nusing namespace drl;\n'
        'extern "C" __global__ void written(const float* x, int size, float* y) {\n'
        f"  const int t = threadIdx.x;\n{body}\n}}\n"
    )
    # A macro that names the text, so that another text is another kernel.
    kernel: Any = Written(
        KernelSource(str(file), "written", (("DRL_TEXT", str(hash(body) % 10**9)),))
    )
    x = np.arange(size, dtype=np.float32)
    (y,) = emulate(Call(kernel, (x,), (size,), (Output((size,)),), (1, 1)), **options)
    return np.asarray(y)


def test_threads_meet_at_barriers(tmp_path: Path) -> None:
    body = "__shared__ float s[256]; s[t] = x[t]; __syncthreads(); y[t] = s[255 - t]; (void)size;"
    np.testing.assert_array_equal(_run(tmp_path, body), np.arange(256)[::-1])


def test_a_missing_barrier_shows(tmp_path: Path) -> None:
    body = "__shared__ float s[256]; s[t] = x[t]; y[t] = s[255 - t]; (void)size;"
    assert np.isnan(_run(tmp_path, body)).any()


def test_lanes_exchange_values(tmp_path: Path) -> None:
    body = "float up = __shfl_up_sync(kFullWarp, x[t], 1); (void)size;"
    body += "y[t] = __shfl_xor_sync(kFullWarp, x[t], 5) + up;"
    lanes = np.arange(256)
    before = np.where(lanes % 32 == 0, lanes, lanes - 1)
    np.testing.assert_array_equal(_run(tmp_path, body), (lanes ^ 5) + before)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("if (t < 9) __syncthreads();\n y[t] = x[t]; (void)size;", "a barrier in a branch"),
        ("if (t != 3) y[t] = __shfl_xor_sync(kFullWarp, x[t], 1);\n (void)size;", "do not come"),
        ("y[t] = x[t + size];", "outside of all arrays"),
        ("y[t] = x[t]; if (t == 0) y[size] = 1;", "outside of all arrays"),
        ("unsigned w[2]; load_once(w, x + 1); y[t] = __uint_as_float(w[0] + size);", "unaligned"),
        ("y[t] = __shfl_xor_sync(1u, x[t], 1); (void)size;", "a part of a warp"),
    ],
    ids=["barrier", "shuffle", "read", "write", "unaligned", "part of a warp"],
)
def test_a_mistake_ends_the_launch(tmp_path: Path, body: str, message: str) -> None:
    with pytest.raises(EmulationError, match=message):
        _run(tmp_path, body)


def test_the_tensor_core_multiplies_matrices(tmp_path: Path) -> None:
    """A of 16 by 16 and B of 16 by 8, put into the lanes as the instruction's manual says."""
    random = np.random.default_rng(0)
    a = random.integers(-8, 8, (16, 16)).astype(np.float32)
    b = random.integers(-8, 8, (16, 8)).astype(np.float32)
    lines = "\n".join(
        f"  static const float {name}[] = {{{', '.join(map(str, array.ravel()))}}};"
        for name, array in (("a", a), ("b", b))
    )
    body = f"""{lines}
  const int g = t / 4, q = t % 4;
  const auto pair = [](float low, float high) {{
    return static_cast<unsigned>(float_to_half(high)) << 16 | float_to_half(low);
  }};
  unsigned left[4];
  for (int i = 0; i < 4; ++i) {{
    const int row = g + i % 2 * 8, k = 2 * q + i / 2 * 8;
    left[i] = t < 32 ? pair(a[16 * row + k], a[16 * row + k + 1]) : 0;
  }}
  unsigned right[2];
  for (int i = 0; i < 2; ++i) {{
    const int k = 2 * q + 8 * i;
    right[i] = t < 32 ? pair(b[8 * k + g], b[8 * k + 8 + g]) : 0;
  }}
  float c[4] = {{x[0], x[0], x[0], x[0]}};
  multiply_halves(c, left, right[0], right[1]);
  if (t >= 32) return;
  for (int i = 0; i < 4; ++i) y[8 * (g + i / 2 * 8) + 2 * q + i % 2] = c[i];
  (void)size;
"""
    result = _run(tmp_path, body)
    np.testing.assert_array_equal(result[:128].reshape(16, 8), a @ b)


@pytest.mark.parametrize("kind", ["half", "bfloat"])
def test_floats_are_rounded_as_the_types_are(tmp_path: Path, kind: str) -> None:
    dtype = np.dtype(np.float16) if kind == "half" else np.dtype(ml_dtypes.bfloat16)
    number = "x[t] * x[t] * x[t] * 0.00390625f - x[t] * 3.1e-6f"
    back = "half_to_float" if kind == "half" else "bfloat_bits"
    helper = "const auto bfloat_bits = [](unsigned short b) { return to_float(BFloat{b}); };"
    body = f"{helper} (void)bfloat_bits; y[t] = {back}(float_to_{kind}({number})); (void)size;"
    x = np.arange(256, dtype=np.float32)
    exact = x * x * x * np.float32(0.00390625) - x * np.float32(3.1e-6)
    with np.errstate(over="ignore"):
        expected = exact.astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(_run(tmp_path, body), expected)


@pytest.mark.parametrize("kind", ["Half", "BFloat"])
def test_every_int8_is_widened_exactly(tmp_path: Path, kind: str) -> None:
    body = f"""
  const unsigned byte = static_cast<unsigned>(t);
  unsigned first, second;
  widen({kind}{{}}, byte | byte << 8 | byte << 16 | byte << 24, first, second);
  const auto value = [](unsigned word) {{
    return to_float({kind}{{static_cast<unsigned short>(word)}});
  }};
  const float all[4] = {{value(first), value(first >> 16), value(second), value(second >> 16)}};
  y[t] = all[0] == all[1] && all[1] == all[2] && all[2] == all[3] ? all[0] : 999.0f;
  (void)x; (void)size;
"""
    expected = np.arange(256).astype(np.uint8).view(np.int8)
    np.testing.assert_array_equal(_run(tmp_path, body), expected)
