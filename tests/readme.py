"""Run what README.md shows, in a copy of the working tree.

    python -m tests.readme        writes the output of every command and example into README.md

A block's language says what becomes of it: `sh` and `python` are run, `console` is a transcript of
commands with their output. A mark above a block, `<!-- test: … -->`, says what else it is.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.documents import ROOT, Block, blocks

README = ROOT / "README.md"
PROMPT = "$ "
NOT_COPIED = (".git", ".venv", "build", "dist", "*.egg-info", "__pycache__", ".*_cache")
FILES_OF_A_VENV = Path(sys.executable).parent

# What differs from run to run and machine to machine: times, rounding errors, sizes of files that
# hold them, counts of choices that rounding decides.
VOLATILE = re.compile(r"\d+\.\d+(e[-+]?\d+)?|\d+ B\b|\d+ (?=clear|near)|\s+")


@dataclass(frozen=True)
class Outcome:
    """What running a command or an example gave: exit status, and both streams as one."""

    status: int
    output: str


@dataclass(frozen=True)
class Shown:
    """Something that README.md shows with its output: where, the command, and the output."""

    line_number: int
    command: str
    output: tuple[str, ...]


class Workspace:
    """A copy of the working tree where commands of the project are on the path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "drl"
        shutil.copytree(ROOT, self.folder, ignore=shutil.ignore_patterns(*NOT_COPIED))
        # An environment that `make` takes for installed.
        (self.folder / ".venv").mkdir()
        (self.folder / ".venv" / "bin").symlink_to(FILES_OF_A_VENV, target_is_directory=True)
        (self.folder / ".venv" / ".installed").touch()

    def shell(self, command: str) -> Outcome:
        """Run a command line, or several, up to the first that fails."""
        return self._run(["bash", "-e", "-o", "pipefail", "-c", command])

    def python(self, source: str) -> Outcome:
        """Run a Python program."""
        return self._run([sys.executable, "-c", source])

    def _run(self, command: list[str]) -> Outcome:
        path = f"{FILES_OF_A_VENV}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=os.environ | {"PATH": path, "PYTHONUTF8": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            check=False,
        )
        return Outcome(done.returncode, done.stdout)


def settled(line: str) -> str:
    """A line of output without what is volatile."""
    return VOLATILE.sub(" ", line).strip()


def transcript(block: Block) -> Iterator[Shown]:
    """The commands of a `console` block, each with the output shown below it."""
    places = [i for i, line in enumerate(block.lines) if line.startswith(PROMPT)]
    for place, end in zip(places, [*places[1:], len(block.lines)], strict=True):
        last = place
        while block.lines[last].endswith("\\"):
            last += 1
        command = "\n".join(block.lines[place : last + 1]).removeprefix(PROMPT)
        yield Shown(block.line_number + 1 + last, command, block.lines[last + 1 : end])


def run_all(workspace: Workspace) -> Iterator[tuple[Block, Shown, Outcome]]:
    """Run the blocks of README.md in order; what a block leaves behind, later ones find.

    A `console` block gives an item per command, any other block that is run gives one.
    """
    found = list(blocks(README))
    for block, following in zip(found, [*found[1:], None], strict=True):
        if block.language == "console":
            for shown in transcript(block):
                yield block, shown, workspace.shell(shown.command)
        elif block.language == "python" and not block.mark:
            output = following.lines if following and following.mark == "output" else ()
            shown = Shown(block.line_number, block.text, output)
            yield block, shown, workspace.python(block.text)
        elif block.language == "sh" and not block.mark:
            yield block, Shown(block.line_number, block.text, ()), workspace.shell(block.text)


def refreshed() -> str:
    """README.md with the output that its commands and examples give now."""
    lines = README.read_text(encoding="utf-8").splitlines()
    replaced: list[tuple[int, int, list[str]]] = []
    with tempfile.TemporaryDirectory() as folder:
        for block, shown, outcome in run_all(Workspace(Path(folder))):
            output = [line.rstrip() for line in outcome.output.rstrip("\n").split("\n")]
            start = shown.line_number
            if block.language == "python" and shown.output:
                start = lines.index("<!-- test: output -->", start) + 2
            if shown.output:
                replaced.append((start, start + len(shown.output), output))
    for start, end, output in reversed(replaced):
        lines[start:end] = output
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    README.write_text(refreshed(), encoding="utf-8")
