"""Results as a PNG, drawn by matplotlib."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from drl.benchmarks.charts import Group, Panel, panels
from drl.benchmarks.errors import BenchmarkError
from drl.benchmarks.findings import Run

_COLORS = ("#2463b4", "#1f8a70", "#b3671c", "#a9b1bd")
_INK, _FAINT, _LINE, _MARK = "#1d2128", "#646b76", "#e2e3e0", "#c4255a"
_COLUMN, _PER_BAR, _PER_GROUP, _FRAME = 6.0, 0.42, 0.34, 1.35  # inches
_BARS_HEIGHT = 0.36  # of the distance between two bars


def check_matplotlib() -> None:
    """Raise `BenchmarkError` unless matplotlib is there, before anything is measured for it."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError:
        raise BenchmarkError(
            'drawing a PNG takes matplotlib; install it with `pip install "drl[bench]"`, '
            "or use --html, which needs nothing"
        ) from None


def plot(runs: Sequence[Run], path: Path) -> None:
    """Draw all charts of all runs.

    Raises:
        BenchmarkError: matplotlib is not installed.
    """
    _draw_all(
        [[(f"{run.name}: {panel.title}", panel) for panel in panels(run)] for run in runs], path
    )


def plot_peers(run: Run, path: Path) -> None:
    """Draw a compared run's whole generations, a chart for each, as they are far apart.

    Raises:
        BenchmarkError: matplotlib is not installed.
    """
    assert run.comparison is not None
    found = run.comparison.cells
    longest = max(each.cell.new for each in found)
    whole = tuple(each for each in found if each.cell.new == longest)
    apart = panels(replace(run, cells=(), comparison=replace(run.comparison, cells=whole)))
    charts = [
        (f"{panel.title.rpartition(', ')[2]}, {group.label}", _alone(panel, group))
        for panel in apart
        for group in panel.groups
    ]
    _draw_all([charts], path, columns=3)


def _alone(panel: Panel, group: Group) -> Panel:
    """A chart of one group, without the heading that told it from others."""
    return replace(panel, groups=(replace(group, label=""),))


def _draw_all(charts: Sequence[Sequence[tuple[str, Panel]]], path: Path, columns: int = 2) -> None:
    """Draw titled charts, those of a run from the left of a new row on."""
    check_matplotlib()
    from matplotlib.figure import Figure

    rows = [
        found[first : first + columns]
        for found in charts
        for first in range(0, len(found), columns)
    ]
    heights = [max(_height(panel) for _, panel in found) for found in rows]
    figure = Figure(figsize=(columns * _COLUMN, sum(heights)), dpi=110, layout="constrained")
    grid = figure.add_gridspec(len(rows), columns, height_ratios=heights)
    for row, found in enumerate(rows):
        for column, (title, panel) in enumerate(found):
            _draw(figure.add_subplot(grid[row, column]), panel, title)
    figure.savefig(path)


def _height(panel: Panel) -> float:
    bars = sum(len(group.bars) for group in panel.groups)
    return _FRAME + _PER_BAR * bars + _PER_GROUP * len(panel.groups)


def _draw(axes: Any, panel: Panel, title: str) -> None:
    y = 0.0
    for group in panel.groups:
        axes.text(0, y, group.label, color=_FAINT, fontsize=9, fontweight="bold", va="center")
        y += 1.0
        for bar in group.bars:
            axes.barh(y, bar.value, height=_BARS_HEIGHT, color=_COLORS[bar.color % len(_COLORS)])
            if bar.until is not None and bar.until > bar.value:
                axes.plot([bar.value, bar.until], [y, y], color=_INK, linewidth=1)
            if bar.mark is not None:
                half = 0.7 * _BARS_HEIGHT
                axes.plot([bar.mark, bar.mark], [y - half, y + half], color=_MARK, linewidth=2)
            above = y - 0.45
            axes.text(0, above, bar.label, color=_INK, fontsize=8, va="center")
            right = {"transform": axes.get_yaxis_transform(), "ha": "right", "va": "center"}
            axes.text(1, above, bar.note, color=_INK, fontsize=8, **right)
            y += 1.0
        y += 0.2
    axes.set_ylim(y - 0.3, -0.6)
    axes.set_xlim(0, 1.02 * panel.longest)
    axes.set_yticks([])
    axes.set_title(title, loc="left", fontsize=11, color=_INK, fontweight="bold")
    axes.set_xlabel(f"{panel.axis}\n{panel.legend}".strip(), fontsize=8, color=_FAINT)
    axes.tick_params(colors=_FAINT, labelsize=8)
    axes.grid(axis="x", color=_LINE, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_LINE)
