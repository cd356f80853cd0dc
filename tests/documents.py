"""Read this project's Markdown: tables by heading, and fenced blocks with their marks."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
FENCE = re.compile(r"^(`{3,})(\w*)\s*$")
MARK = re.compile(r"^<!-- test: (.+) -->$")
HEADING = re.compile(r"^#+ (.+)$")


@dataclass(frozen=True)
class Table:
    """A table: the heading above it, its column names and its rows."""

    heading: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the text of the mark right above it (or ""), its lines."""

    language: str
    mark: str
    lines: tuple[str, ...]
    line_number: int

    @property
    def text(self) -> str:
        """The block's contents."""
        return "\n".join(self.lines) + "\n"


def tables(path: Path) -> list[Table]:
    """All tables of a document, in order."""
    found: list[Table] = []
    heading, rows = "", list[tuple[str, ...]]()
    for line in [*path.read_text(encoding="utf-8").splitlines(), ""]:
        if line.startswith("|"):
            rows.append(tuple(cell.strip() for cell in line.strip("|").split("|")))
            continue
        if rows:
            found.append(Table(heading, rows[0], tuple(rows[2:])))
            rows = []
        if match := HEADING.match(line):
            heading = match.group(1).strip("`")
    return found


def blocks(path: Path) -> Iterator[Block]:
    """All fenced blocks of a document, in order."""
    lines = iter(enumerate(path.read_text(encoding="utf-8").splitlines(), start=1))
    mark = ""
    for number, line in lines:
        if match := MARK.match(line):
            mark = match.group(1)
        elif match := FENCE.match(line):
            body = []
            for _, inner in lines:
                if inner.strip() == match.group(1):
                    break
                body.append(inner)
            yield Block(match.group(2), mark, tuple(body), number)
            mark = ""
        elif line:
            mark = ""


def code(cell: str) -> str:
    """The first `code` of a cell."""
    match = re.search(r"`([^`]*)`", cell)
    assert match, f"no code in {cell!r}"
    return match.group(1)
