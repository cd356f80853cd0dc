"""Draws panels as SVG for a page whose style sheet gives the colours."""

from xml.sax.saxutils import escape

from drl.benchmarks.charts import Bar, Panel, ticks

# Pixels of a drawing that is as wide as a phone; a page scales it a little up or down.
_WIDTH, _LEFT, _RIGHT = 420, 2, 14
_HEADING, _LABEL, _THICK, _BETWEEN = 22, 17, 9, 7
_AXIS = 34


def draw(panel: Panel) -> str:
    """An `<svg>` element of a panel, without its title and legend, which are the page's."""
    marks = ticks(panel.longest)
    scale = (_WIDTH - _LEFT - _RIGHT) / marks[-1]
    parts: list[str] = []
    y = 0.0
    for group in panel.groups:
        y += _HEADING
        parts.append(_text(_LEFT, y - 6, group.label, "heading"))
        for bar in group.bars:
            parts += _bar(bar, y, scale)
            y += _LABEL + _THICK + _BETWEEN
        y += _BETWEEN
    grid = [_grid(_LEFT + value * scale, y, value) for value in marks]
    axis = _text((_WIDTH - _RIGHT + _LEFT) / 2, y + _AXIS - 3, panel.axis, "axis middle")
    height = y + _AXIS + 3
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img" '
        f'aria-label="{escape(panel.title, {chr(34): "&quot;"})}">'
        f"{''.join(grid)}{''.join(parts)}{axis}</svg>"
    )


def _bar(bar: Bar, y: float, scale: float) -> list[str]:
    end = _LEFT + bar.value * scale
    top = y + _LABEL
    parts = [
        _text(_LEFT, top - 5, bar.label, "label"),
        _text(_WIDTH - _RIGHT, top - 5, bar.note, "note end"),
        f'<rect class="bar c{bar.color % 4}" x="{_LEFT}" y="{top}" rx="2" '
        f'width="{max(1.0, end - _LEFT):.1f}" height="{_THICK}"/>',
    ]
    middle = top + _THICK / 2
    if bar.until is not None and bar.until > bar.value:
        until = _LEFT + bar.until * scale
        parts.append(_line(end, middle, until, middle, "spread"))
        parts.append(_line(until, middle - 3, until, middle + 3, "spread"))
    if bar.mark is not None:
        at = _LEFT + bar.mark * scale
        parts.append(_line(at, top - 2, at, top + _THICK + 2, "mark"))
    return parts


def _grid(x: float, bottom: float, value: float) -> str:
    line = _line(x, 4, x, bottom, "grid")
    side = "" if value == 0 else " middle"
    return line + _text(x, bottom + 14, f"{value:g}", f"axis{side}")


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'
