"""Results as one self-contained HTML page, for large and small screens, in light and dark."""

from collections.abc import Sequence
from html import escape
from importlib import resources

from drl.benchmarks import svg
from drl.benchmarks.cells import Cell
from drl.benchmarks.charts import Panel, panels
from drl.benchmarks.findings import Run
from drl.benchmarks.markdown import (
    GOALS_TITLE,
    NOTES,
    PEERS_NOTE,
    Row,
    cell_rows,
    floor_line,
    fresh_rows,
    machine_line,
    number,
    peer_rows,
)
from drl.benchmarks.targets import target_rows
from drl.runtime.commands.common import file_size


def page(runs: Sequence[Run], with_goals: bool = False) -> str:
    """The page of all runs, which loads nothing from anywhere; see `markdown` for the goals."""
    style = resources.files("drl.benchmarks").joinpath("page.css").read_text(encoding="utf-8")
    title = "DRL benchmark"
    body = _goals(runs) if with_goals else ""
    body += "".join(_run(run) for run in runs)
    notes = "".join(f"<p>{_emphasis(note)}</p>" for note in _notes(runs))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark">'
        f"<title>{title}: {escape(', '.join(run.name for run in runs))}</title>"
        f"<style>{style}</style></head><body><main><h1>{title}</h1>"
        f"{_contents(runs)}{body}<section><h2>How to read this</h2>{notes}</section>"
        f"</main></body></html>\n"
    )


def _goals(runs: Sequence[Run]) -> str:
    return f"<section>{_table(GOALS_TITLE, target_rows(runs), right=2)}</section>"


def _contents(runs: Sequence[Run]) -> str:
    if len(runs) == 1:
        return ""
    links = "".join(f'<a href="#{escape(run.name)}">{escape(run.name)}</a>' for run in runs)
    return f"<nav>{links}</nav>"


def _run(run: Run) -> str:
    about = f"{run.bundle['target']}, {run.bundle['precision']}"
    parts = [
        f"<h2>{escape(run.name)} <small>{escape(about)}</small></h2>",
        f'<p class="machine">{escape(machine_line(run))}.</p>',
        f'<div class="cards">{"".join(_cards(run))}</div>',
        f'<div class="charts">{"".join(_figure(panel) for panel in panels(run))}</div>',
    ]
    if run.comparison is not None:
        rows = peer_rows(run.comparison)
        parts.append(_table("Peers", rows, right=2))
        parts += [f'<p class="machine">Skipped: {escape(x)}.</p>' for x in run.comparison.skipped]
    if run.cells:
        parts.append(_table("All cells", cell_rows(run.cells), right=2))
    if run.fresh is not None:
        rows = fresh_rows(run.fresh, run.bundle["bytes"])
        parts.append(_table("A fresh process", rows, right=0))
    if run.floor is not None:
        limit = escape(f"The machine's limit: {floor_line(run)}.")
        parts.append(f'<p class="machine">{limit}</p>')
    return f'<section id="{escape(run.name)}">{"".join(parts)}</section>'


def _cards(run: Run) -> list[str]:
    """The few numbers that most people look for."""
    cards = []
    greedy = [each for each in run.cells if each.cell.beams == 1]
    if greedy:
        quick = min(greedy, key=lambda each: each.step_ms.p50)
        busy = max(greedy, key=lambda each: each.tokens_per_second)
        first = min(greedy, key=lambda each: each.first_token_ms)
        cards += [
            _card(f"{number(first.first_token_ms)} ms", "first token", _place(first.cell)),
            _card(f"{number(quick.step_ms.p50)} ms", "decoder step", _place(quick.cell)),
            _card(f"{number(busy.tokens_per_second)}", "tokens per second", _place(busy.cell)),
        ]
    if run.fresh is not None:
        peak = file_size(run.fresh.peak_bytes)
        cards.append(_card(f"{number(run.fresh.load_ms)} ms", "load time", "hashes compared"))
        cards.append(_card(peak, "peak memory", _place(run.fresh.cell)))
    cards.append(_card(file_size(run.bundle["bytes"]), "on disk", run.bundle["precision"]))
    return cards


def _card(value: str, name: str, detail: str) -> str:
    return (
        f'<div class="card"><b>{escape(value)}</b><span>{escape(name)}</span>'
        f"<small>{escape(detail)}</small></div>"
    )


def _place(cell: Cell) -> str:
    return f"{cell.path}, batch {cell.batch}"


def _figure(panel: Panel) -> str:
    legend = f"<small>{escape(panel.legend)}</small>" if panel.legend else ""
    caption = f"<figcaption>{escape(panel.title)}{legend}</figcaption>"
    return f"<figure>{caption}{svg.draw(panel)}</figure>"


def _table(title: str, rows: Sequence[Row], right: int) -> str:
    """A table that scrolls by itself where it is wider than the screen."""
    head, *body = rows

    def cells(row: Row, tag: str) -> str:
        return "".join(
            f"<{tag}{' class=number' if index >= right else ''}>{escape(cell)}</{tag}>"
            for index, cell in enumerate(row)
        )

    lines = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in body)
    return (
        f'<h3>{escape(title)}</h3><div class="wide" tabindex="0"><table>'
        f"<thead><tr>{cells(head, 'th')}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def _notes(runs: Sequence[Run]) -> list[str]:
    varied = all(run.settings.get("varied", True) for run in runs)
    notes = list(NOTES if varied else NOTES[1:])
    if any(run.comparison is not None for run in runs):
        notes.append(PEERS_NOTE)
    return notes


def _emphasis(text: str) -> str:
    """HTML of a note, in which *words* stand out."""
    parts = escape(text).split("*")
    return "".join(f"<em>{part}</em>" if index % 2 else part for index, part in enumerate(parts))
