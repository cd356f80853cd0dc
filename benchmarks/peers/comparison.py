"""Lets engines take turns on the same cells, and compares times and tokens with ours."""

import os
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from drl.benchmarks.cells import Cell, random_sources
from drl.benchmarks.errors import BenchmarkError
from drl.benchmarks.findings import Comparison, PeerCell, PeerInfo
from drl.benchmarks.measure import Settings
from drl.benchmarks.peers.process import PeerProcess
from drl.benchmarks.peers.registry import PEERS, PeerSpec
from drl.runtime.bundle import Bundle

# Seconds between turns. Engines are left as they come, and the threads of some spin for 0.2 seconds
# after their work, on the cores of the engine whose turn is next.
_PAUSE = 0.3
# Seconds for which an engine is timed in a turn, in as many calls as that takes.
_TURN = 0.5
_LONGEST = 240  # characters of a line about an engine that was left out
_Tokens = list[list[int]]


@dataclass
class _Entrant:
    """An engine that has loaded the model."""

    spec: PeerSpec
    process: PeerProcess
    version: str
    load_ms: float
    times: list[list[float]] = field(default_factory=list)
    tokens: list[_Tokens] = field(default_factory=list)


def compare(
    checkpoint: Path,
    bundles: Sequence[Bundle],
    environments: Path,
    cells: Sequence[Cell],
    settings: Settings,
    threads: int,
    *,
    peers: Sequence[PeerSpec] = PEERS,
    pause: float = _PAUSE,
    turn: float = _TURN,
    progress: Callable[[str], None] = lambda _: None,
) -> Comparison:
    """Run every engine that is installed side by side with ours.

    Args:
        checkpoint: The Hugging Face folder that the peers load.
        bundles: Ours: first the one that all are held against, then others; see
            `check_comparable`. They go by the names of their folders: `drl t5-small`.
        environments: Folder of the engines' environments.
        cells: What to generate; those that differ in nothing but their path are taken once.
        settings: Rounds to warm up and to time, and the seed.
        threads: Threads of every engine.
        peers: Which engines.
        pause: Seconds between turns.
        turn: Seconds for which a call is repeated in a turn.
        progress: Told of every stage.

    Raises:
        BenchmarkError: Ours failed. A peer that fails is left out, with a line that says why.
    """
    check_comparable(bundles, cells)
    path = cells[-1].path
    unique = [cell for cell in cells if cell.path == path]
    vocab_size = bundles[0].manifest.limits.vocab_size
    skipped: list[str] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        entrants = []
        for bundle in bundles:
            progress(f"loading {_name(bundle)}")
            taken = path if bundle is bundles[0] else bundle.manifest.paths[-1].name
            entrants.append(_enter_ours(stack, bundle, taken, threads))
        for spec in peers:
            progress(f"converting and loading {spec.name}")
            try:
                entrants.append(_enter(stack, spec, environments, checkpoint, folder, threads))
            except BenchmarkError as error:
                skipped.append(_reason(spec, error))
        race = _Race(entrants, unique, settings, vocab_size, pause, turn, skipped)
        race.run(progress)
        return Comparison(
            peers=tuple(_info(each) for each in race.entrants),
            cells=tuple(_results(race, each, index) for each in race.entrants for index in race),
            skipped=tuple(skipped),
            rounds=settings.repeats,
        )


def check_comparable(bundles: Sequence[Bundle], cells: Sequence[Cell]) -> None:
    """Find out before minutes of measuring whether bundles can take turns on the same sources.

    Raises:
        BenchmarkError: They differ in their vocabulary, are called the same, or one cannot read or
            write as many tokens as a cell has.
    """
    first, *others = bundles
    size = first.manifest.limits.vocab_size
    source, new = max(cell.source for cell in cells), max(cell.new for cell in cells)
    names = {_name(first)}
    for other in others:
        limits = other.manifest.limits
        if limits.vocab_size != size:
            raise BenchmarkError(
                f"{other.folder} has a vocabulary of {limits.vocab_size} and {first.folder} one of "
                f"{size}: they cannot read the same sources"
            )
        if source > limits.max_source_length or new > limits.max_target_length:
            raise BenchmarkError(
                f"{other.folder} reads at most {limits.max_source_length} tokens and writes "
                f"{limits.max_target_length}: give smaller --source and --new"
            )
        if _name(other) in names:
            raise BenchmarkError(
                f"two bundles are called {other.folder.resolve().name}, which is how results are "
                "told apart; rename a folder"
            )
        names.add(_name(other))


def _name(bundle: Bundle) -> str:
    return f"drl {bundle.folder.resolve().name}"


def _enter_ours(stack: ExitStack, bundle: Bundle, path: str, threads: int) -> _Entrant:
    file = Path(__file__).with_name("with_drl.py")
    spec = PeerSpec(_name(bundle), file, path, bundle.manifest.precision, "", ())
    found = os.pathsep.join(entry for entry in sys.path if entry)
    environment = {"PYTHONPATH": found}
    process = PeerProcess(Path(sys.executable), file, path, threads, environment)
    stack.enter_context(process)
    loaded = process.call("load", checkpoint=str(bundle.folder), scratch="", threads=threads)
    return _Entrant(spec, process, loaded["version"], loaded["ms"])


def _enter(
    stack: ExitStack,
    spec: PeerSpec,
    environments: Path,
    checkpoint: Path,
    folder: Path,
    threads: int,
) -> _Entrant:
    """Convert the model in one process and load it in another, whose memory tells of no more."""
    python = spec.python(environments).absolute()
    if not python.exists():
        raise BenchmarkError(
            f"not installed in {environments / spec.environment}; `make bench-peers` installs it, "
            f"or `pip install torch {' '.join(spec.requirements)}` in an environment there"
        )
    scratch = folder / f"{spec.environment}-{spec.variant}"
    scratch.mkdir()
    places = {"checkpoint": str(checkpoint.absolute()), "scratch": str(scratch)}
    with PeerProcess(python, spec.file, spec.variant, threads) as converter:
        converter.call("prepare", **places)
    process = PeerProcess(python, spec.file, spec.variant, threads)
    stack.enter_context(process)
    loaded = process.call("load", **places, threads=threads)
    return _Entrant(spec, process, loaded["version"], loaded["ms"])


class _Race:
    """The rounds. Iterating gives the cells' indices."""

    def __init__(
        self,
        entrants: list[_Entrant],
        cells: Sequence[Cell],
        settings: Settings,
        vocab_size: int,
        pause: float,
        turn: float,
        skipped: list[str],
    ) -> None:
        self.entrants = entrants
        self.cells = cells
        self._settings = settings
        self._sources = [random_sources(cell, vocab_size, settings.seed) for cell in cells]
        self._pause = pause
        self._turn = turn
        self._skipped = skipped
        for each in entrants:
            each.times = [[] for _ in cells]
            each.tokens = [[] for _ in cells]

    def __iter__(self) -> Any:
        return iter(range(len(self.cells)))

    def run(self, progress: Callable[[str], None]) -> None:
        """Let all take their turns; in every round a cell is served by all before the next."""
        order = np.random.default_rng(self._settings.seed)
        # The first call of a shape compiles or allocates, so there is always one to warm up.
        for number in range(-max(1, self._settings.warm_up), self._settings.repeats):
            total = self._settings.repeats
            name = "warming up peers" if number < 0 else f"peers: round {number + 1} of {total}"
            progress(name)
            for index in self:
                for turn in order.permutation(len(self.entrants)).tolist():
                    self._take_turn(self.entrants[turn], index, timed=number >= 0)
                self._drop_failed()

    def _take_turn(self, entrant: _Entrant, index: int, timed: bool) -> None:
        """Generate once, and when it counts, time more calls.

        The first finds caches full of what others read, and memory that a virtual machine's host
        has taken back meanwhile. An engine at work does not.
        """
        cell = self.cells[index]
        times: list[float] = []
        time.sleep(self._pause)
        try:
            _, tokens = entrant.process.generate(self._sources[index], cell.new, cell.beams)
            while timed and sum(times) < 1000 * self._turn:
                ms, _ = entrant.process.generate(self._sources[index], cell.new, cell.beams)
                times.append(ms)
        except BenchmarkError as error:
            if entrant.spec.is_ours:
                raise BenchmarkError(f"{entrant.spec.name} failed: {error}") from None
            self._skipped.append(_reason(entrant.spec, error))
            entrant.times = []
            return
        entrant.tokens[index] = tokens
        if timed:
            entrant.times[index].append(float(np.median(times)))

    def _drop_failed(self) -> None:
        self.entrants = [each for each in self.entrants if each.times]


def _reason(spec: PeerSpec, error: BenchmarkError) -> str:
    """A line of reasonable length; some libraries explain themselves in paragraphs."""
    return f"{spec.name}: {textwrap.shorten(str(error), _LONGEST, placeholder=' …').rstrip('.')}"


def _info(entrant: _Entrant) -> PeerInfo:
    peak = entrant.process.call("memory")["peak_bytes"]
    spec = entrant.spec
    return PeerInfo(spec.name, entrant.version, spec.precision, entrant.load_ms, peak, spec.is_ours)


def _results(race: _Race, entrant: _Entrant, index: int) -> PeerCell:
    ours, cell = race.entrants[0], race.cells[index]
    times = np.array(entrant.times[index])
    ratios = np.percentile(times / np.array(ours.times[index]), (10, 50, 90)).tolist()
    agreement = common = None
    exact = entrant.spec.precision == ours.spec.precision == "fp32"
    if exact and cell.beams == 1 and entrant is not ours:
        agreement, common = agree(entrant.tokens[index], ours.tokens[index])
    return PeerCell(
        peer=entrant.spec.name,
        cell=cell,
        token_ms=float(np.median(times)) / cell.new,
        rounds_ms=tuple(entrant.times[index]),
        ratio=ratios[1],
        ratio_p10=ratios[0],
        ratio_p90=ratios[2],
        agreement=agreement,
        common=common,
    )


def agree(found: _Tokens, expected: _Tokens) -> tuple[float, float]:
    """Share of equal results, and mean share of tokens before the first difference."""
    shares = []
    for left, right in zip(found, expected, strict=True):
        pairs = zip(left, right, strict=False)
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))
        shares.append(same / max(len(left), len(right), 1))
    return sum(share == 1.0 for share in shares) / len(shares), sum(shares) / len(shares)
