"""Running `drl-generate` on a bundle that reads and writes text."""

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from drl.runtime.commands.generate import main


@pytest.fixture
def run(text_bundle: Path) -> Callable[..., Result]:
    def run(*arguments: str, stdin: str | bytes = b"") -> Result:
        return CliRunner().invoke(
            main, [str(text_bundle), *arguments, "--threads", "1"], input=stdin
        )

    return run
