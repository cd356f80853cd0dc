"""What this project means to reach on a CPU, held against the results of `make bench`.

The runs are told apart by their bundles' names. Ratios come from engines that took turns in one
run: the median of the rounds' ratios.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

from drl.benchmarks.cells import Cell
from drl.benchmarks.findings import CellResult, Comparison, Run

Runs = Mapping[str, Run]
_INT8, _INT4, _FP32 = "t5-small-int8", "t5-small-int4", "t5-small"
_SWITCH, _SWITCH_INT8, _ROUTED = "switch-small", "switch-small-int8", "drl-small"
_LENGTH = 64  # of sources and results
_BESIDE = 80  # megabytes that Python, NumPy and ONNX Runtime may take beside the weights


@dataclass(frozen=True)
class Goal:
    """A number to reach.

    Attributes:
        what: What is measured, against what.
        place: Where: search and batch, or the source's length.
        limit: The number.
        unit: Behind the number: `x`, `%` or a unit.
        at_most: Whether less is better.
        measure: Finds the number in the runs; None where they do not tell.
    """

    what: str
    place: str
    limit: float
    unit: str
    at_most: bool
    measure: Callable[[Runs], float | None]

    @property
    def wanted(self) -> str:
        """The limit, for people."""
        return f"{'≤' if self.at_most else '≥'} {self.limit:g}{self.unit}"


@dataclass(frozen=True)
class Verdict:
    """A goal and what was measured; None where nothing was."""

    goal: Goal
    found: float | None

    @property
    def met(self) -> bool | None:
        """Whether the goal was reached; None where nothing was measured."""
        if self.found is None:
            return None
        return self.found <= self.goal.limit if self.goal.at_most else self.found >= self.goal.limit


def judge(runs: Sequence[Run]) -> list[Verdict]:
    """Hold the runs against all goals."""
    named = {run.name: run for run in runs}
    return [Verdict(goal, goal.measure(named)) for goal in GOALS]


def target_rows(runs: Sequence[Run]) -> list[list[str]]:
    """The table of goals, with a head."""
    rows = [["", "at", "goal", "measured", "reached"]]
    answers = {True: "yes", False: "no", None: ""}
    for verdict in judge(runs):
        goal, found = verdict.goal, verdict.found
        shown = "not measured" if found is None else f"{found:.3g}{goal.unit}"
        rows.append([goal.what, goal.place, goal.wanted, shown, answers[verdict.met]])
    return rows


_Cell = tuple[int, int, int, int]  # beams, batch, source, new tokens


def _speedup(ours: str, others: Sequence[str], cell: _Cell, runs: Runs) -> float | None:
    """How many times our time the fastest of the others takes."""
    for run in runs.values():
        found = {} if run.comparison is None else _rounds(run.comparison, cell)
        rivals = [found[other] for other in others if other in found]
        if ours in found and rivals:
            rival = min(rivals, key=median)
            return median(theirs / own for theirs, own in zip(rival, found[ours], strict=True))
    return None


def _slowdown(ours: str, other: str, cell: _Cell, runs: Runs) -> float | None:
    """How many times the other's time ours takes."""
    return _speedup(other, [ours], cell, runs)


def _rounds(comparison: Comparison, cell: _Cell) -> dict[str, tuple[float, ...]]:
    """Engine to its times on a cell."""
    return {each.peer: each.rounds_ms for each in comparison.cells if _key(each.cell) == cell}


def _key(cell: Cell) -> _Cell:
    return cell.beams, cell.batch, cell.source, cell.new


def _cell(runs: Runs, name: str, path: str | None = None) -> CellResult | None:
    """The run's greedy cell of batch 1, on a path."""
    if name not in runs:
        return None
    found = (
        each
        for each in runs[name].cells
        if _key(each.cell) == (1, 1, _LENGTH, _LENGTH) and path in (None, each.cell.path)
    )
    return next(found, None)


def _of_bandwidth(runs: Runs) -> float | None:
    """Bytes that a step must read, at the machine's bandwidth, over the step's time, in percent."""
    each = _cell(runs, _INT8)
    floor = None if each is None else runs[_INT8].floor
    if each is None or each.work is None or floor is None:
        return None
    return 1e5 * each.work.bytes / floor.bytes_per_second / each.step_ms.p50


def _path_gain(runs: Runs) -> float | None:
    fast, full = _cell(runs, _ROUTED, "fast"), _cell(runs, _ROUTED, "full")
    return full.step_ms.p50 / fast.step_ms.p50 if fast and full else None


def _load_seconds(runs: Runs) -> float | None:
    fresh = runs[_INT8].fresh if _INT8 in runs else None
    return None if fresh is None else (fresh.import_ms + fresh.load_ms) / 1e3


def _resident(runs: Runs) -> float | None:
    """Resident megabytes beside the weights."""
    fresh = runs[_INT8].fresh if _INT8 in runs else None
    if fresh is None:
        return None
    weights: int = runs[_INT8].bundle["files"]["weights.bin"]
    return (fresh.loaded_bytes - weights) / 1e6


def _ratio_goals(
    what: str,
    ours: str,
    others: Sequence[str],
    limits: Mapping[tuple[int, int], float],
    *,
    at_most: bool = False,
) -> list[Goal]:
    """Goals of a pair of engines at several (beams, batch)."""
    goals = []
    for (beams, batch), limit in limits.items():
        cell = (beams, batch, _LENGTH, _LENGTH)
        place = f"{'greedy' if beams == 1 else f'beam {beams}'}, batch {batch}"
        measure = (
            partial(_slowdown, ours, others[0], cell)
            if at_most
            else partial(_speedup, ours, others, cell)
        )
        goals.append(Goal(what, place, limit, "x", at_most, measure))
    return goals


def _encoder_goal(source: int) -> Goal:
    measure = partial(_speedup, f"drl {_INT8}", ["CTranslate2 int8"], (1, 1, source, 1))
    what = "t5-small int8 against CTranslate2 int8, encoder and first token"
    return Goal(what, f"source {source}", 1.5, "x", False, measure)


GOALS = (
    *_ratio_goals(
        "t5-small int8 against CTranslate2 int8",
        f"drl {_INT8}",
        ["CTranslate2 int8"],
        {(1, 1): 2.5, (1, 8): 3.0, (1, 32): 2.5, (4, 1): 2.5, (4, 8): 2.5},
    ),
    *_ratio_goals(
        "t5-small fp32 against the fastest other engine in fp32",
        f"drl {_FP32}",
        ["CTranslate2 fp32", "ONNX Runtime BeamSearch", "Optimum ONNX fp32"],
        {(1, 1): 1.1, (1, 8): 1.3, (1, 32): 1.5},
    ),
    Goal("t5-small int8, of the bandwidth", "greedy, batch 1", 80, " %", False, _of_bandwidth),
    *_ratio_goals("t5-small int4 against int8", f"drl {_INT4}", [f"drl {_INT8}"], {(1, 1): 1.4}),
    *_ratio_goals(
        "switch-small int8, times t5-small int8",
        f"drl {_SWITCH_INT8}",
        [f"drl {_INT8}"],
        {(1, 1): 1.15, (1, 8): 1.6, (1, 32): 2.0},
        at_most=True,
    ),
    *_ratio_goals(
        "switch-small fp32 against transformers, eager or compiled",
        f"drl {_SWITCH}",
        ["transformers", "transformers compiled"],
        {(1, 1): 3.0},
    ),
    *_ratio_goals(
        "switch-small int8 against transformers, eager or compiled",
        f"drl {_SWITCH_INT8}",
        ["transformers", "transformers compiled"],
        {(1, 1): 10.0},
    ),
    Goal("drl-small, fast path against full", "greedy, batch 1", 2.0, "x", False, _path_gain),
    _encoder_goal(64),
    _encoder_goal(512),
    Goal("t5-small int8, import and load", "", 0.5, " s", True, _load_seconds),
    Goal("t5-small int8, resident beside its weights", "", _BESIDE, " MB", True, _resident),
)
"""What is to be reached with 2 threads, source 64 and 64 new tokens where nothing else is said."""
