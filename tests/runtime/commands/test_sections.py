"""The help screen of `drl-generate`: every option in its section, within 80 columns."""

import re

import click
from click.testing import CliRunner

from drl.runtime.commands.generate import main


def test_options_are_listed_by_section_within_80_columns() -> None:
    result = CliRunner().invoke(main, ["--help"], terminal_width=80)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    titles = [line.rstrip(":") for line in lines if re.fullmatch(r"\S.*:", line)]
    assert titles == [
        "Input and output",
        "Generation",
        "Length",
        "Sampling",
        "Beam search",
        "Penalties and bars",
        "Forcing",
        "Constraints",
        "Stopping",
        "Reports (in JSON)",
        "Running",
    ]
    assert "BUNDLE" not in "\n".join(lines[10:])
    for parameter in main.params:
        if isinstance(parameter, click.Option):
            assert parameter.help
            assert any(parameter.opts[-1] in line.split() for line in lines)
    # Helps begin in the same column in all sections.
    helps = [match.end() for line in lines if (match := re.match(r"  -.*?  +(?=\S)", line))]
    assert set(helps) == {34}
