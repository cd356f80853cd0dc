"""Running `drl-generate`, and reading how it failed."""

import subprocess
import sys
from typing import Any

from click.testing import Result


def start_generate(*arguments: object, **options: Any) -> "subprocess.Popen[bytes]":
    code = "from drl.runtime.commands.generate import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )


def error_of(result: Result) -> str:
    """The only line on standard error of a command that failed."""
    assert result.exit_code == 1, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")
