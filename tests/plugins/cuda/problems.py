"""Random layers of experts for the kernels, and what their references say."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from drl.plugins.cuda.calls import Call, routed_ffn_combine_call, routed_ffn_inner_call
from drl.plugins.cuda.tiling import WIDE, Tiling
from drl.plugins.ops import ROUTED_FFN_COMBINE, ROUTED_FFN_INNER
from drl.plugins.ops.activations import GATED
from tests.plugins.ops.case import TOLERANCES, Array, Maker

NARROW = Tiling(4, 1)


@dataclass(frozen=True)
class Problem:
    """One layer of experts and the tokens that it gets.

    Attributes:
        width: d; `inner` is f.
        choose: How tokens choose: `mixed`, `one` (all the same), `few` (two of them), `none`,
            `holes` (some slots are -1), `twice` (a token may choose an expert again).
        int8: Weights are int8 with a scale per column.
    """

    tokens: int = 5
    k: int = 1
    experts: int = 4
    width: int = 16
    inner: int = 24
    precision: str = "fp16"
    activation: str = "relu"
    biased: bool = False
    int8: bool = False
    choose: str = "mixed"
    tiling: Tiling = NARROW

    def __str__(self) -> str:
        """What differs from the defaults."""
        default = Problem()
        named = {name: value for name, value in vars(self).items() if name != "tiling"}
        parts = [f"{n}={v}" for n, v in named.items() if v != getattr(default, n)]
        wide = "-wide" if self.tiling.wide else ""
        return ",".join([*parts, f"{self.tiling.columns}x{self.tiling.tiles}{wide}"])

    def ids(self) -> Array:
        """Expert ids `[1, tokens, k]`."""
        random = np.random.default_rng(list(str(self).encode()))
        order = np.argsort(random.random((1, self.tokens, self.experts)), axis=-1)
        ids = np.resize(order[..., : self.k], (1, self.tokens, self.k)).astype(np.int32)
        if self.choose == "one":
            ids = np.full_like(ids, self.experts - 1)
        elif self.choose == "few":
            ids = ids % 2 * (self.experts - 1)
        elif self.choose == "none":
            ids = np.full_like(ids, -1)
        elif self.choose == "holes":
            ids[random.random(ids.shape) < 0.4] = -1
        elif self.choose == "twice":
            ids = random.integers(0, self.experts, ids.shape).astype(np.int32)
        return ids

    def inner_arrays(self) -> dict[str, Array]:
        """What `routed_ffn_inner_call` takes."""
        make = Maker(str(self), self.precision)
        arrays = {"hidden": make.ft(1, self.tokens, self.width), "expert_ids": self.ids()}
        gated = GATED[self.activation]
        for name in ("up", "gate") if gated else ("up",):
            arrays |= self._weight(make, name, self.width, self.inner)
        return arrays

    def combine_arrays(self) -> dict[str, Array]:
        """What `routed_ffn_combine_call` takes."""
        make = Maker(str(self), self.precision)
        ids = self.ids()
        rows = make.ft(1, self.tokens, self.k, self.inner)
        rows[ids < 0] = np.nan  # nobody may look there
        gates = make.random.random(ids.shape).astype(np.float32)
        weight = self._weight(make, "down", self.inner, self.width)
        return {"inner": rows, "expert_ids": ids, "gates": gates, **weight}

    def inner_call(self, arrays: dict[str, Array] | None = None) -> Call:
        """`RoutedFFNInner` over these arrays."""
        given = self.inner_arrays() if arrays is None else arrays
        return routed_ffn_inner_call(**given, activation=self.activation, tiling=self.tiling)

    def combine_call(self, arrays: dict[str, Array] | None = None) -> Call:
        """`RoutedFFNCombine` over these arrays."""
        given = self.combine_arrays() if arrays is None else arrays
        return routed_ffn_combine_call(**given, tiling=self.tiling)

    def inner_expected(self, arrays: dict[str, Array]) -> Array:
        """What the reference makes of them."""
        given = _dequantized(arrays)
        with np.errstate(all="ignore"):
            return np.asarray(ROUTED_FFN_INNER.reference(**given, activation=self.activation))

    def combine_expected(self, arrays: dict[str, Array]) -> Array:
        """What the reference makes of them."""
        with np.errstate(all="ignore"):
            return np.asarray(ROUTED_FFN_COMBINE.reference(**_dequantized(arrays)))

    @property
    def tolerance(self) -> float:
        """How far a result may be from the reference's, absolutely and relatively."""
        return TOLERANCES[self.precision]

    def _weight(self, make: Maker, name: str, depth: int, columns: int) -> dict[str, Array]:
        arrays: dict[str, Array] = {}
        if self.int8:
            values = make.random.integers(-128, 128, (self.experts, depth, columns))
            arrays[name] = values.astype(np.int8)
            scale = make.random.random((self.experts, columns)) + 0.5
            arrays[f"{name}_scale"] = (scale * depth**-0.5 / 64).astype(np.float32)
        else:
            arrays[name] = make.ft(self.experts, depth, columns, scale=depth**-0.5)
        if self.biased:
            arrays[f"{name}_bias"] = make.ft(self.experts, columns)
        return arrays


def _dequantized(arrays: dict[str, Array]) -> dict[str, Array]:
    given = {name: array for name, array in arrays.items() if not name.endswith("_scale")}
    for name in arrays:
        if name.endswith("_scale"):
            weight = name.removesuffix("_scale")
            given[weight] = arrays[weight].astype(np.float32) * arrays[name][:, None]
    return given


def assert_close(actual: Array, expected: Array, tolerance: float) -> None:
    """Compare in fp32; NaN and infinity must be in the same places."""
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    np.testing.assert_allclose(
        actual.astype(np.float32), expected.astype(np.float32), rtol=tolerance, atol=tolerance
    )


def _variants(base: Problem, **changes: list[Any]) -> list[Problem]:
    return [replace(base, **{name: v}) for name, values in changes.items() for v in values]


_COMMON = [
    # sizes whose rows are not 16 aligned bytes, tails of tiles and of steps
    *(replace(Problem(), width=w, inner=f) for w, f in ((1, 1), (37, 45), (40, 72), (129, 8))),
    replace(Problem(), width=200, inner=136, precision="bf16"),
    # how tokens choose
    *_variants(Problem(tokens=9, k=2), choose=["one", "few", "none", "holes", "twice"]),
    *_variants(Problem(k=1), choose=["one", "none", "holes"]),
    *(Problem(k=k, experts=8) for k in (1, 2, 3, 4, 8)),
    Problem(experts=256, tokens=7, k=2),
    Problem(experts=1, tokens=3),
    # more rows than a group has
    *(Problem(tokens=t, choose="one") for t in (16, 17, 33)),
    *(Problem(tokens=t, choose="one", tiling=Tiling(4, 2)) for t in (31, 33)),
    *(Problem(tokens=t, choose="one", tiling=Tiling(4, 4)) for t in (33, 70)),
    Problem(tokens=300, k=1, experts=3, tiling=Tiling(4, 4)),
    Problem(biased=True, choose="holes"),
    Problem(biased=True, precision="bf16", int8=True, tokens=20),
    Problem(int8=True, width=48, inner=80, tokens=7, k=2),
    Problem(int8=True, width=37, inner=45, tokens=7, k=2),
]

INNER_PROBLEMS = [
    *_COMMON,
    *(Problem(activation=name, biased=True, width=24) for name in GATED),
    Problem(int8=True, width=70, inner=144, activation="silu_glu", tiling=Tiling(8, 1)),
    *(
        Problem(width=70, inner=144, tokens=6, activation="silu_glu", tiling=Tiling(c, 1))
        for c in (8, 2)
    ),
    Problem(tokens=70, choose="one", activation="silu_glu", tiling=Tiling(8, 4)),
    *(Problem(tokens=t, choose="few", k=2, inner=300, tiling=WIDE) for t in (9, 150)),
    Problem(tokens=140, choose="one", inner=140, activation="gelu_glu", tiling=WIDE, int8=True),
]

COMBINE_PROBLEMS = [
    *_COMMON,
    *(Problem(width=150, inner=70, tokens=6, k=k, tiling=Tiling(2, 1)) for k in (1, 2)),
    Problem(width=150, inner=70, tokens=70, choose="one", tiling=Tiling(8, 4)),
    # several blocks of tokens
    Problem(tokens=150, k=2, experts=3, choose="twice", tiling=Tiling(4, 4)),
    Problem(tokens=150, k=2, experts=3, choose="holes", tiling=WIDE),
    Problem(tokens=150, k=1, experts=2, width=280, tiling=WIDE, biased=True),
]
