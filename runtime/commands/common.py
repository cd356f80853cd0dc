"""What DRL's commands share: one line and an exit status for every mistake, and plain tables."""

import errno
import functools
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import NoReturn, ParamSpec, TypeVar

import click

from drl.runtime.errors import DrlError

P = ParamSpec("P")
R = TypeVar("R")

INTERRUPTED = 130  # what shells give for a process that Ctrl-C ended


def clean_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Make a command end with one line and status 1 for a `DrlError`, and 130 for Ctrl-C.

    Output that cannot be written, as on a full disk, ends it in the same way. Warnings are lines on
    standard error, too.

    Goes between the `click` decorators and the function. Other exceptions are bugs and pass.
    """
    return clean_errors_with(1)(command)


def clean_errors_with(status: int) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make `clean_errors` for a command to which status 1 means something else."""

    def decorate(command: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(command)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                try:
                    return command(*args, **kwargs)
                except DrlError as error:
                    _end(str(error), status)
                except OSError as error:
                    if error.errno == errno.EPIPE or error.filename is not None:
                        raise  # a reader that has had enough, which click ends quietly, or a bug
                    _end(f"cannot write the output: {error.strerror or error}", status)
                except KeyboardInterrupt:
                    click.echo("interrupted", err=True)
                    sys.exit(INTERRUPTED)

        return run

    return decorate


def _end(message: str, status: int) -> NoReturn:
    print_error(message)
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:  # what is left cannot be written either, and Python would try at its exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)


def print_error(message: str) -> None:
    """Write `error: …` to standard error, on one line whatever the message holds."""
    click.echo(f"{click.style('error', fg='red')}: {' '.join(message.split())}", err=True)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Write `warning: …` in the place of Python's two lines with a file's name."""
    text = " ".join(str(message).split())
    click.echo(f"{click.style('warning', fg='yellow')}: {text}", err=True)


def file_size(count: int) -> str:
    """A number of bytes for people, in decimal units as disks are sold: `11.6 MB`."""
    if count < 1000:
        return f"{count} B"
    size = float(count)
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 999.95:
            return f"{size:.1f} {unit}"
    return f"{size / 1000:.1f} TB"


def table(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Lines of aligned columns, two spaces apart; the columns in `right` are aligned right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
