"""The kernels that there are: which source makes each one, and what the compiler is told."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from drl.plugins.cuda.errors import CudaKernelError
from drl.plugins.cuda.tiling import Tiling
from drl.plugins.ops.activations import GATED

FloatType = Literal["fp32", "fp16", "bf16"]
WeightType = Literal["fp16", "bf16", "int8"]

_TYPES = {"fp32": "float", "fp16": "Half", "bf16": "BFloat", "int8": "Int8"}
_ACTIVATIONS = {
    "relu": "kRelu",
    "silu": "kSilu",
    "silu_glu": "kSilu",
    "gelu": "kGelu",
    "gelu_tanh": "kGeluTanh",
    "gelu_glu": "kGeluTanh",
}
_MOST_COLUMNS = 4  # per lane, where sums over several experts lie in shared memory
Defines = tuple[tuple[str, str], ...]
Minimum = Callable[[Any, Any], Any]
"""The lesser of two sizes; sizes are numbers, or TensorRT's expressions of dimensions."""


@dataclass(frozen=True)
class KernelSource:
    """One kernel for the compiler.

    Attributes:
        file: Its file in the folder `src`.
        entry: Name of the function.
        defines: Macros, by name and value.
    """

    file: str
    entry: str
    defines: Defines

    def __str__(self) -> str:
        told = ", ".join(f"{name.removeprefix('DRL_')}={value}" for name, value in self.defines)
        return f"{self.entry}({told})"


@dataclass(frozen=True)
class ExpertRouteKernel:
    """`ExpertRoute`. Router weights have the type of the states."""

    dtype: FloatType
    biased: bool = False

    @property
    def source(self) -> KernelSource:
        """What to compile."""
        defines = (("DRL_FLOAT", _TYPES[self.dtype]), _flag("DRL_BIASED", self.biased))
        return KernelSource("expert_route.cu", "drl_expert_route", defines)

    def grid(self, tokens: Any) -> tuple[Any, Any]:
        """Blocks along x and y."""
        return tokens, 1


@dataclass(frozen=True)
class InnerKernel:
    """`RoutedFFNInner`."""

    dtype: FloatType
    weight: WeightType
    activation: str
    tiling: Tiling
    biased: bool = False

    def __post_init__(self) -> None:
        _check_types("RoutedFFNInner", self.dtype, self.weight, self.tiling)

    @property
    def gated(self) -> bool:
        """Whether it takes a gate."""
        return GATED[self.activation]

    @property
    def source(self) -> KernelSource:
        """What to compile."""
        defines = (
            *_product_defines(self.dtype, self.weight, self.tiling),
            ("DRL_ACTIVATION", _ACTIVATIONS[self.activation]),
            _flag("DRL_GATED", self.gated),
            _flag("DRL_BIASED", self.biased),
        )
        return KernelSource("routed_ffn_inner.cu", "drl_routed_ffn_inner", defines)

    def grid(self, slots: Any, experts: Any, inner: Any, minimum: Minimum = min) -> tuple[Any, Any]:
        """Blocks along x and y for so many slots, experts and inner columns."""
        matrices = 2 if self.gated else 1
        return _group_grid(self.tiling, matrices, slots, experts, inner, minimum)


@dataclass(frozen=True)
class CombineKernel:
    """`RoutedFFNCombine`, for one expert per token (`single`) or any number."""

    dtype: FloatType
    weight: WeightType
    tiling: Tiling
    single: bool
    biased: bool = False

    def __post_init__(self) -> None:
        _check_types("RoutedFFNCombine", self.dtype, self.weight, self.tiling)
        if not self.single and self.tiling.columns > _MOST_COLUMNS and not self.tiling.wide:
            raise CudaKernelError(
                "RoutedFFNCombine over several experts keeps its sums in shared memory, which has "
                "room for 4 columns per lane at most; choose a narrower tiling"
            )

    @property
    def tokens(self) -> int:
        """Tokens of a block, where a token has several experts."""
        return 128 if self.tiling.wide else 64

    @property
    def source(self) -> KernelSource:
        """What to compile."""
        tiling = self.tiling
        if not self.single:
            # All of a token's experts meet in a block: wide means more tokens. The sums beside the
            # products leave registers for 32 rows at a time.
            tiling = Tiling(min(tiling.columns, _MOST_COLUMNS), min(tiling.tiles, 2))
        defines = (
            *_product_defines(self.dtype, self.weight, tiling),
            _flag("DRL_BIASED", self.biased),
            _flag("DRL_SINGLE", self.single),
            ("DRL_TOKENS", str(self.tokens)),
        )
        return KernelSource("routed_ffn_combine.cu", "drl_routed_ffn_combine", defines)

    def grid(
        self, tokens: Any, experts: Any, width: Any, minimum: Minimum = min
    ) -> tuple[Any, Any]:
        """Blocks along x and y for so many tokens, experts and output columns."""
        if self.single:
            return _group_grid(self.tiling, 1, tokens, experts, width, minimum)
        columns = 8 * min(self.tiling.columns, _MOST_COLUMNS)
        return _quotient(width, columns), _quotient(tokens, self.tokens)


Kernel = ExpertRouteKernel | InnerKernel | CombineKernel


def _group_grid(
    tiling: Tiling, matrices: int, slots: Any, experts: Any, columns: Any, minimum: Minimum
) -> tuple[Any, Any]:
    """Blocks for every group that there can be; those without one return at once.

    Slots without an expert make groups too. At most one group of each is not full.
    """
    groups = slots // tiling.rows + minimum(slots, experts + 1)
    return _quotient(columns, tiling.width(matrices)), groups


def _quotient(size: Any, divisor: int) -> Any:
    """Rounded up."""
    return (size + (divisor - 1)) // divisor


def _flag(name: str, value: bool) -> tuple[str, str]:
    return name, str(int(value))


def _product_defines(dtype: FloatType, weight: WeightType, tiling: Tiling) -> Defines:
    return (
        ("DRL_FLOAT", _TYPES[dtype]),
        ("DRL_WEIGHT", _TYPES[weight]),
        _flag("DRL_SCALED", weight == "int8"),
        ("DRL_COLUMNS", str(tiling.columns)),
        ("DRL_TILES", str(tiling.tiles)),
        _flag("DRL_WIDE", tiling.wide),
    )


def _check_types(operator: str, dtype: str, weight: str, tiling: Tiling) -> None:
    if dtype not in ("fp16", "bf16"):
        raise CudaKernelError(
            f"{operator} runs on the tensor cores in fp16 or bf16, not in {dtype}; "
            "convert states and weights"
        )
    if weight not in (dtype, "int8"):
        raise CudaKernelError(
            f"{operator} takes weights in the type of its states ({dtype}) or in int8, "
            f"not in {weight}; convert the weights"
        )
    if weight == "int8" and tiling.columns == 2:
        raise CudaKernelError(f"{operator} has no tiling of 2 columns per lane for int8 weights")
