"""What a benchmark finds, and its JSON. Times are milliseconds, sizes bytes."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from drl.benchmarks.cells import Cell
from drl.benchmarks.errors import BenchmarkError

FORMAT = "drl-bench"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Spread:
    """Percentiles of something measured several times."""

    p50: float
    p90: float
    p99: float


@dataclass(frozen=True)
class Work:
    """What a decoder step must do at the least, on average over the steps of a generation.

    Attributes:
        weight_bytes: Weights that every step on the path reads, whatever the tokens.
        expert_bytes: Weights of the experts that are in use.
        cache_bytes: Keys and values of the tokens before, of all rows.
        cross_bytes: Keys and values of the encoder states that the path keeps, once per source.
        flops: Floating-point operations of matrix products with weights; attention is not counted.
        int8_ops: The same of products with quantised weights, which are made of int8 products.
        experts_in_use: Different experts that a sparse layer used in a step; None without any.
    """

    weight_bytes: float
    expert_bytes: float
    cache_bytes: float
    cross_bytes: float
    flops: float
    int8_ops: float
    experts_in_use: float | None

    @property
    def bytes(self) -> float:
        """All that a step must read."""
        return self.weight_bytes + self.expert_bytes + self.cache_bytes + self.cross_bytes


@dataclass(frozen=True)
class Floor:
    """What the machine can do at best, with all threads used.

    Attributes:
        bytes_per_second: Read from memory.
        flops_per_second: In a large fp32 matrix product.
        int8_ops_per_second: In a large product of int8 matrices; 0 if it could not be measured.
        how: How the two were measured.
    """

    bytes_per_second: float
    flops_per_second: float
    int8_ops_per_second: float
    how: str

    def milliseconds(self, work: Work) -> float:
        """The time below which a step cannot be: reading or computing, whichever is longer."""
        reading = work.bytes / self.bytes_per_second
        computing = work.flops / self.flops_per_second
        if self.int8_ops_per_second:
            computing += work.int8_ops / self.int8_ops_per_second
        return 1e3 * max(reading, computing)


@dataclass(frozen=True)
class CellResult:
    """One cell, over all its repeats.

    Attributes:
        cell: What was measured.
        first_token_ms: Median time from the call to the end of the first decoder step.
        encoder_ms: Median time of the encoder's graph.
        bridge_ms: Median time of the bridge's graph.
        step_ms: Every decoder step but the first, from the end of the one before: host included.
        host_ms: Median over the repeats of what a step takes outside the decoder's graph.
        forcing_ms: Median of what drawing random tokens took per step; it is part of `step_ms`.
        total_ms: Median time of the whole call.
        tokens_per_second: Median; of the results' tokens, not of beams that lost.
        work: What a step must do, or None if the graph could not be read.
        floor_ms: The machine's best time for that work.
        reached: `floor_ms` over the median step, at best 1.
    """

    cell: Cell
    first_token_ms: float
    encoder_ms: float
    bridge_ms: float
    step_ms: Spread
    host_ms: float
    forcing_ms: float
    total_ms: float
    tokens_per_second: float
    work: Work | None = None
    floor_ms: float | None = None
    reached: float | None = None


@dataclass(frozen=True)
class FreshProcess:
    """What a process that does nothing else needs; medians over several processes.

    Attributes:
        import_ms: Importing the runtime.
        load_ms: Opening an engine, as by default with every file's SHA-256 compared.
        load_unverified_ms: The same without that.
        first_result_ms: The first generation after that, of `cell`.
        loaded_bytes: Resident memory after loading.
        peak_bytes: Largest resident memory, after the generation.
        cell: What it generated.
    """

    import_ms: float
    load_ms: float
    load_unverified_ms: float
    first_result_ms: float
    loaded_bytes: int
    peak_bytes: int
    cell: Cell


@dataclass(frozen=True)
class PeerInfo:
    """An engine that took part in the comparison; the first one is ours, others may be too."""

    name: str
    version: str
    precision: str
    load_ms: float
    peak_bytes: int
    is_ours: bool


@dataclass(frozen=True)
class PeerCell:
    """A peer on one cell, interleaved with all others.

    Attributes:
        peer: The peer's name.
        cell: What it generated; the path is the one that ours took.
        token_ms: Median time of the whole call, encoder included, over the new tokens.
        rounds_ms: Time of the whole call in every round, in the rounds' order; the median where a
            round has room for several.
        ratio: How many times its time is that of the first engine: median of the rounds' ratios.
        ratio_p10, ratio_p90: Spread of the rounds' ratios.
        agreement: Share of the results that are ours token for token; None unless fp32 and greedy.
        common: Mean share of a result's tokens before the first that differs from ours.
    """

    peer: str
    cell: Cell
    token_ms: float
    rounds_ms: tuple[float, ...]
    ratio: float
    ratio_p10: float
    ratio_p90: float
    agreement: float | None
    common: float | None


@dataclass(frozen=True)
class Comparison:
    """Peers side by side.

    Attributes:
        peers: Those that ran.
        cells: Per peer and cell.
        skipped: A line for each that did not run: why, and how to get it.
        rounds: Timed rounds.
    """

    peers: tuple[PeerInfo, ...]
    cells: tuple[PeerCell, ...]
    skipped: tuple[str, ...]
    rounds: int


@dataclass(frozen=True)
class Run:
    """Everything about one bundle on one machine.

    Attributes:
        name: The bundle's name.
        date: When it began, ISO 8601 in UTC.
        machine: Processor, cores, instruction sets, memory, system.
        versions: Of Python and the libraries.
        backend: Library, device and threads, for people.
        threads: Threads of the backend.
        bundle: Target, precision, bytes in all and per file.
        settings: Repeats, seed, kind of tokens.
        floor: The machine's best; None if it was not measured.
        fresh: Load time and memory; None if they were not measured.
        cells: The sweep.
        comparison: Peers; None without any.
    """

    name: str
    date: str
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    backend: str
    threads: int
    bundle: Mapping[str, Any]
    settings: Mapping[str, Any]
    floor: Floor | None
    fresh: FreshProcess | None
    cells: tuple[CellResult, ...]
    comparison: Comparison | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what `dataclasses.asdict` made of a run."""
        given = dict(values)
        floor, fresh, compared = given["floor"], given["fresh"], given["comparison"]
        given["floor"] = floor and Floor(**floor)
        given["fresh"] = fresh and FreshProcess(**{**fresh, "cell": Cell(**fresh["cell"])})
        given["cells"] = tuple(_cell_result(item) for item in given["cells"])
        given["comparison"] = compared and _comparison(compared)
        return cls(**given)


def write_json(runs: Sequence[Run], path: Path) -> None:
    """Write runs as one JSON document."""
    document = {"format": FORMAT, "format_version": FORMAT_VERSION}
    document |= {"runs": [dataclasses.asdict(run) for run in runs]}
    text = json.dumps(document, indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> list[Run]:
    """Read the runs that `write_json` wrote.

    Raises:
        BenchmarkError: The file is missing or no such document.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != FORMAT or document["format_version"] != FORMAT_VERSION:
            raise BenchmarkError(f"{path} is of another format; run `drl-bench` again")
        return [Run.from_dict(run) for run in document["runs"]]
    except OSError as error:
        raise BenchmarkError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise BenchmarkError(f"{path} is no result of `drl-bench` ({error})") from None


def _cell_result(values: Mapping[str, Any]) -> CellResult:
    given = dict(values)
    given["cell"], given["step_ms"] = Cell(**given["cell"]), Spread(**given["step_ms"])
    given["work"] = given["work"] and Work(**given["work"])
    return CellResult(**given)


def _comparison(values: Mapping[str, Any]) -> Comparison:
    return Comparison(
        peers=tuple(PeerInfo(**peer) for peer in values["peers"]),
        cells=tuple(_peer_cell(item) for item in values["cells"]),
        skipped=tuple(values["skipped"]),
        rounds=values["rounds"],
    )


def _peer_cell(values: Mapping[str, Any]) -> PeerCell:
    given = {"cell": Cell(**values["cell"]), "rounds_ms": tuple(values["rounds_ms"])}
    return PeerCell(**{**values, **given})
