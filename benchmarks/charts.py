"""The charts of a report: what they show, whoever draws them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from drl.benchmarks.cells import Cell
from drl.benchmarks.findings import CellResult, Comparison, Run
from drl.benchmarks.markdown import number

_FIRST, _OURS, _OTHERS = 0, 1, 3  # colours of engines
_Place = tuple[int, int, int]  # batch, source, new tokens


@dataclass(frozen=True)
class Bar:
    """A bar, with its label in front and its number behind.

    Attributes:
        label: What it is.
        value: How long it is.
        note: Its number, for people.
        color: Index of its colour.
        until: Where the thin line of its spread ends, or None.
        mark: Where a tick stands across the bar, or None.
    """

    label: str
    value: float
    note: str
    color: int = 0
    until: float | None = None
    mark: float | None = None


@dataclass(frozen=True)
class Group:
    """Bars under a common heading."""

    label: str
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class Panel:
    """A chart of horizontal bars over one axis.

    Attributes:
        title: What it shows.
        axis: What the axis measures, with its unit.
        legend: What the thin line and the tick mean, if there are any.
        groups: The bars.
    """

    title: str
    axis: str
    legend: str
    groups: tuple[Group, ...]

    @property
    def longest(self) -> float:
        """The largest number on the axis."""
        bars = [bar for group in self.groups for bar in group.bars]
        return max(max(bar.value, bar.until or 0.0, bar.mark or 0.0) for bar in bars)


_MakeBar = Callable[[CellResult, int], Bar]


def panels(run: Run) -> list[Panel]:
    """All charts of a run, one per search: peers, steps, throughput."""
    searches = _by_search(run.cells)
    made = _peers(run.comparison) if run.comparison is not None else []
    made += [_steps(search, cells) for search, cells in searches]
    made += [_throughput(search, cells) for search, cells in searches]
    return made


def ticks(longest: float, most: int = 5) -> list[float]:
    """Round numbers from 0 to the first that is not below `longest`, at most `most` steps."""
    if longest <= 0:
        return [0.0, 1.0]
    power = 1e-9
    while True:
        for factor in (1, 2, 2.5, 5):
            step = factor * power
            if longest / step <= most:
                count = -int(-longest // step)
                return [round(step * index, 10) for index in range(count + 1)]
        power *= 10


def _by_search(cells: Sequence[CellResult]) -> list[tuple[str, list[CellResult]]]:
    ordered = sorted(cells, key=lambda each: each.cell.beams)
    grouped = groupby(ordered, key=lambda each: each.cell.search)
    return [(search, list(found)) for search, found in grouped]


def _steps(search: str, cells: Sequence[CellResult]) -> Panel:
    def bar(each: CellResult, color: int) -> Bar:
        step = each.step_ms
        note = f"{number(step.p50)} ms"
        if each.reached is not None:
            note += f", {each.reached:.0%} of the limit"
        return Bar(each.cell.path, step.p50, note, color, step.p90, each.floor_ms)

    legend = "Bar: median. Thin line: to the 90th percentile."
    if any(each.floor_ms is not None for each in cells):
        legend += " Tick: the machine's limit."
    title = f"A decoder step, {search}"
    return Panel(title, "milliseconds, less is better", legend, _path_groups(cells, bar))


def _throughput(search: str, cells: Sequence[CellResult]) -> Panel:
    def bar(each: CellResult, color: int) -> Bar:
        rate = each.tokens_per_second
        return Bar(each.cell.path, rate, f"{number(rate)} tokens/s", color)

    title = f"Throughput, {search}"
    axis = "tokens per second with encoding, more is better"
    return Panel(title, axis, "", _path_groups(cells, bar))


def _path_groups(cells: Sequence[CellResult], bar: _MakeBar) -> tuple[Group, ...]:
    paths = list(dict.fromkeys(each.cell.path for each in cells))
    places = list(dict.fromkeys(_place(each.cell) for each in cells))
    labels = _labels(places)
    return tuple(
        Group(
            label,
            tuple(
                bar(each, paths.index(each.cell.path))
                for each in cells
                if _place(each.cell) == place
            ),
        )
        for place, label in zip(places, labels, strict=True)
    )


def _peers(comparison: Comparison) -> list[Panel]:
    ours = comparison.peers[0].name
    colors = {peer.name: _OURS if peer.is_ours else _OTHERS for peer in comparison.peers}
    colors[ours] = _FIRST
    made = []
    searches = list(dict.fromkeys(each.cell.search for each in comparison.cells))
    for search in searches:
        found = [each for each in comparison.cells if each.cell.search == search]
        places = list(dict.fromkeys(_place(each.cell) for each in found))
        groups = []
        for place, label in zip(places, _labels(places), strict=True):
            here = [each for each in found if _place(each.cell) == place]
            bars = []
            for each in sorted(here, key=lambda each: each.token_ms):
                note = f"{number(each.token_ms)} ms"
                if each.peer != ours:
                    note += f", {each.ratio:.2f}x"
                bars.append(Bar(each.peer, each.token_ms, note, colors[each.peer]))
            groups.append(Group(label, tuple(bars)))
        axis = "milliseconds per token with encoding, less is better"
        legend = f"Behind the time, its ratio to {ours}."
        made.append(Panel(f"Side by side, {search}", axis, legend, tuple(groups)))
    return made


def _place(cell: Cell) -> _Place:
    return cell.batch, cell.source, cell.new


def _labels(places: Sequence[_Place]) -> list[str]:
    """Names of places by what tells them apart."""
    varied = [len({place[index] for place in places}) > 1 for index in range(3)]
    names = ("batch {}", "source {}", "{} new")
    shown = [
        [
            name.format(value)
            for name, value, tells in zip(names, place, varied, strict=True)
            if tells
        ]
        for place in places
    ]
    return [
        ", ".join(parts) or f"batch {place[0]}" for parts, place in zip(shown, places, strict=True)
    ]
