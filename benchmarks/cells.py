"""What is measured: cells of a sweep over batch, source length, new tokens, path and beams."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from drl.benchmarks.errors import BenchmarkError
from drl.runtime.manifest import Manifest
from drl.runtime.paths import find_path


@dataclass(frozen=True)
class Cell:
    """One combination of a sweep.

    Attributes:
        batch: Sources decoded at a time.
        source: Tokens of every source.
        new: Tokens generated for every source, exactly.
        path: Name of the decoding path.
        beams: Hypotheses per source; 1 is greedy.
    """

    batch: int
    source: int
    new: int
    path: str
    beams: int = 1

    @property
    def rows(self) -> int:
        """Rows of the decoder's batch."""
        return self.batch * self.beams

    @property
    def search(self) -> str:
        """How tokens are chosen, for people: `greedy` or `beam 4`."""
        return "greedy" if self.beams == 1 else f"beam {self.beams}"


def sweep(
    manifest: Manifest,
    batches: Sequence[int],
    sources: Sequence[int],
    news: Sequence[int],
    paths: Sequence[str],
    beams: Sequence[int],
) -> list[Cell]:
    """All combinations, in the order of the arguments; no paths stand for all of the bundle's.

    Raises:
        BenchmarkError: The model cannot read or write so many tokens.
        RequestError: There is no such path.
    """
    limits, known = manifest.limits, manifest.paths
    for name, values, most in (
        ("--source", sources, limits.max_source_length),
        ("--new", news, limits.max_target_length),
    ):
        if max(values) > most:
            raise BenchmarkError(f"{name} {max(values)} is beyond the model's {most} tokens")
    indices = [find_path(known, path) for path in paths]
    if None in indices:
        raise BenchmarkError("--path auto would measure the router's choices; name the paths")
    names = [known[index].name for index in indices if index is not None]
    names = list(dict.fromkeys(names)) or [path.name for path in known]
    combinations = product(names, beams, batches, sources, news)
    return [Cell(batch, source, new, path, beam) for path, beam, batch, source, new in combinations]


def random_sources(cell: Cell, vocab_size: int, seed: int) -> list[list[int]]:
    """Random token ids for every source of a cell, the same for all paths and beams."""
    generator = np.random.default_rng((seed, cell.batch, cell.source))
    # Padding, end and unknown token are the first ids of most vocabularies.
    low = min(3, vocab_size - 1)
    drawn: list[list[int]] = generator.integers(low, vocab_size, (cell.batch, cell.source)).tolist()
    return drawn
