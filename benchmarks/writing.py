"""Writes results to the files that were asked for."""

from collections.abc import Sequence
from pathlib import Path

from drl.benchmarks.errors import BenchmarkError
from drl.benchmarks.findings import Run, write_json
from drl.benchmarks.markdown import markdown
from drl.benchmarks.page import page
from drl.benchmarks.plot import check_matplotlib, plot


def check_outputs(paths: Sequence[Path | None], png: Path | None) -> None:
    """Find out before minutes of measuring whether the results can be written.

    Raises:
        BenchmarkError: A folder is missing, or matplotlib.
    """
    for path in (*paths, png):
        if path is not None and not path.absolute().parent.is_dir():
            raise BenchmarkError(f"there is no folder {path.parent}; make it first")
    if png is not None:
        check_matplotlib()


def write_outputs(
    runs: Sequence[Run],
    *,
    json: Path | None = None,
    text: Path | None = None,
    html: Path | None = None,
    png: Path | None = None,
    with_goals: bool = False,
) -> None:
    """Write runs as JSON, Markdown, HTML and PNG, each where it has a path."""
    if json is not None:
        write_json(runs, json)
    if text is not None:
        text.write_text(markdown(runs, with_goals), encoding="utf-8")
    if html is not None:
        html.write_text(page(runs, with_goals), encoding="utf-8")
    if png is not None:
        plot(runs, png)
