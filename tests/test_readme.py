"""Every command and every example of README.md runs, and prints what README.md shows."""

import dataclasses
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from itertools import pairwise

import pytest

from drl.runtime import GenerationConfig, GenerationResult
from tests.documents import ROOT, Block, blocks, code, tables
from tests.readme import README, Outcome, Shown, Workspace, run_all, settled

pytestmark = pytest.mark.slow

Run = tuple[Block, Shown, Outcome]
MARKS = (
    "illustration",
    "make",
    "what make demo does",
    "what make test does",
    "setup",
    "long",
    "output",
    "formula",
)
QUIET_OPTIONS = {"--quiet"}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("readme"))


@pytest.fixture(scope="module")
def runs(workspace: Workspace) -> list[Run]:
    return list(run_all(workspace))


def marked(mark: str) -> list[Block]:
    return [block for block in blocks(README) if block.mark == mark]


def test_no_placeholder_is_left() -> None:
    assert re.findall(r"@@.*?@@", README.read_text(encoding="utf-8")) == []


def test_every_block_is_run_or_marked() -> None:
    for block in blocks(README):
        run = block.language in ("sh", "python", "console") and not block.mark
        assert run or block.mark in MARKS, f"README.md:{block.line_number}"


def test_commands_and_examples_succeed(runs: list[Run]) -> None:
    for _, shown, outcome in runs:
        expected = 1 if any(line.startswith("error: ") for line in shown.output) else 0
        assert outcome.status == expected, (
            f"README.md:{shown.line_number}: {shown.command}\n{outcome.output}"
        )


def test_output_is_what_is_shown(runs: list[Run]) -> None:
    for block, shown, outcome in runs:
        if block.language == "console" or shown.output:
            found = [settled(line) for line in outcome.output.rstrip("\n").split("\n")]
            assert found == [settled(line) for line in shown.output], (
                f"README.md:{shown.line_number}; `python -m tests.readme` writes it anew"
            )


def test_an_output_block_follows_an_example() -> None:
    found = list(blocks(README))
    for before, block in pairwise(found):
        if block.mark == "output":
            assert (before.language, before.mark) == ("python", "")


def test_two_commands_do_everything() -> None:
    (block,) = marked("make")
    assert block.lines == ("make demo", "make test")


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_demo_generates_samples_of_every_task(workspace: Workspace) -> None:
    outcome = workspace.shell("make demo")
    assert outcome.status == 0, outcome.output
    samples = (ROOT / "examples" / "numbers" / "samples.txt").read_text(encoding="utf-8")
    printed = [line for line in outcome.output.splitlines() if line.endswith(" ms]")]
    assert len(printed) == len(samples.split("\n")) - samples.endswith("\n")


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("target", ["demo", "test"])
def test_the_plain_commands_are_those_of_make(target: str) -> None:
    dry = subprocess.run(
        ["make", "--no-print-directory", "--dry-run", "--always-make", target],
        cwd=ROOT,
        # the tests may run below `make` themselves, which tells its children so
        env={name: value for name, value in os.environ.items() if not name.startswith("MAKE")},
        stdout=subprocess.PIPE,
        encoding="utf-8",
        check=True,
    )
    (setup,) = marked("what make demo does")
    (block,) = marked(f"what make {target} does")
    installs = setup.lines[:4]
    lines = block.lines if target == "demo" else (*installs, *block.lines)
    assert [essence(line) for line in lines] == [
        essence(line) for line in dry.stdout.splitlines() if is_work(line)
    ]


def is_work(recipe_line: str) -> bool:
    return shlex.split(recipe_line)[0] not in ("echo", "touch")


def essence(command: str) -> list[str]:
    """The words of a command, without options that only make it quieter."""
    return [word for word in shlex.split(command) if word not in QUIET_OPTIONS]


def test_installing_brings_extras_that_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = set(project["optional-dependencies"])
    lines = [line for block in marked("setup") for line in block.lines]
    assert lines
    for line in lines:
        match = re.fullmatch(r'pip install "\.\[([\w,]+)\]"', line)
        assert match, f"only installations belong in a block marked `setup`, not {line!r}"
        assert set(match.group(1).split(",")) <= extras
    table = re.findall(r"^\| `(\w+)` \| `", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(table) >= extras


def test_long_commands_exist(workspace: Workspace) -> None:
    commands = [line for block in marked("long") for line in block.lines]
    assert commands
    for command in commands:
        outcome = workspace.shell(f"{command} --help")
        assert outcome.status == 0, outcome.output


def test_the_readme_lists_every_command() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (table,) = [table for table in tables(README) if table.heading == "Commands"]
    assert [code(row[0]).split()[0] for row in table.rows] == list(project["scripts"])


def test_the_readme_lists_every_option() -> None:
    (table,) = [t for t in tables(README) if t.heading == "Generation"]
    documented = {name for row in table.rows for name in re.findall(r"`(\w+)`", row[0])}
    assert {field.name for field in dataclasses.fields(GenerationConfig)} <= documented


def test_the_readme_lists_every_field_of_a_result() -> None:
    (table,) = [t for t in tables(README) if t.heading == "Results"]
    documented = [name for row in table.rows for name in re.findall(r"`(\w+)`", row[0])]
    assert sorted(documented) == sorted(f.name for f in dataclasses.fields(GenerationResult))
