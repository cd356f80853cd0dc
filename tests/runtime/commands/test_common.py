"""How commands end, and how they write numbers and tables."""

import click
import pytest
from click.testing import CliRunner

from drl.runtime import RequestError
from drl.runtime.commands.common import clean_errors, file_size, table


def run(error: BaseException | None) -> tuple[int, str, str]:
    @click.command()
    @clean_errors
    def command() -> None:
        """Say something."""
        if error is not None:
            raise error
        click.echo("fine")

    result = CliRunner().invoke(command)
    return result.exit_code, result.stdout, result.stderr


def test_success_is_left_alone() -> None:
    assert run(None) == (0, "fine\n", "")


def test_a_users_mistake_is_one_line_and_status_1() -> None:
    assert run(RequestError("it is\nwrong")) == (1, "", "error: it is wrong\n")


def test_an_interrupt_is_status_130() -> None:
    assert run(KeyboardInterrupt()) == (130, "", "interrupted\n")


def test_output_that_cannot_be_written_is_one_line_and_status_1() -> None:
    full = OSError(28, "No space left on device")
    assert run(full) == (1, "", "error: cannot write the output: No space left on device\n")


def test_a_bug_keeps_its_traceback() -> None:
    @click.command()
    @clean_errors
    def command() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        CliRunner().invoke(command, catch_exceptions=False)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (11_600_000, "11.6 MB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (2 * 10**9, "2.0 GB"),
        (5 * 10**12, "5.0 TB"),
        (5 * 10**15, "5000.0 TB"),
    ],
)
def test_file_size(count: int, text: str) -> None:
    assert file_size(count) == text


def test_tables_are_aligned() -> None:
    assert table([("a", "1", ""), ("long", "22", "x")], right=(1,)) == "a      1\nlong  22  x"
