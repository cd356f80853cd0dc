"""How a routed product is cut into blocks, and which cut suits how many rows."""

from dataclasses import dataclass

MAX_EXPERTS = 256
"""The most experts that the kernels take; `kMaxExperts` of `src/groups.cuh`."""
BLOCK = 256
"""Threads of a block, of every kernel; `kThreads` of `src/groups.cuh`."""
_FEW_BLOCKS = 64
_PREFILL = 64  # tokens of a sequence from which on rows are many


@dataclass(frozen=True)
class Tiling:
    """What one block computes of a product with the experts' matrices.

    Results are the same to the last bit for every tiling that is not wide: it decides how often
    weights are read and how many blocks there are, not the order of sums.

    Attributes:
        columns: Columns per lane: 8, 4 or 2. A warp's tile has 8 times as many.
        tiles: Tiles of 16 rows that a warp takes at most: 1, 2 or 4. With more rows of one expert
            its weights are read again.
        wide: Warps share rows and columns instead of the depth, for many rows per expert.
    """

    columns: int
    tiles: int
    wide: bool = False

    def __post_init__(self) -> None:
        if self.columns not in (8, 4, 2) or self.tiles not in (1, 2, 4):
            raise ValueError(f"there is no such tiling: {self}")
        if self.wide and self.tiles != 4:
            raise ValueError("a wide tiling has 4 tiles of rows")

    @property
    def rows(self) -> int:
        """Rows of a group: what one block takes of an expert's slots."""
        return 16 * self.tiles * (2 if self.wide else 1)

    def width(self, matrices: int = 1) -> int:
        """Columns of a block that multiplies with so many matrices at once."""
        return 8 * self.columns * (4 // matrices if self.wide else 1)


WIDE = Tiling(8, 4, wide=True)


def choose_tiling(
    slots: int, experts: int, columns: int, *, steps: int = 1, narrowest: int = 2
) -> Tiling:
    """A tiling for so many rows over so many experts, and products of so many columns.

    Few rows get narrow tiles where the columns alone would make too few blocks to read memory at
    full speed.

    Args:
        slots: Rows in all.
        experts: Experts that they may have chosen among.
        columns: Columns of the product.
        steps: Tokens of each sequence. They alone decide whether the tiling is wide, and with it
            the order of sums: a sequence must not depend on its batch-mates.
        narrowest: The least number of columns per lane that the kernel has.
    """
    if steps >= _PREFILL:
        return WIDE
    tiles = 1 if slots <= 16 else 2 if slots <= 32 else 4
    groups = min(slots, experts)
    per_lane = 8
    while per_lane > narrowest and groups * (columns // (8 * per_lane)) < _FEW_BLOCKS:
        per_lane //= 2
    return Tiling(per_lane, tiles)
