"""`drl-generate`: text from a bundle, for prompts given as arguments, lines or a file."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import click

from drl.runtime.commands.common import clean_errors, print_error
from drl.runtime.commands.generate_options import generate_options
from drl.runtime.commands.given import Given, prefix_of
from drl.runtime.commands.jsonl import STANDARD_INPUT, Defaults, Job, count_lines, run_file
from drl.runtime.commands.printing import Printer, Prompt, decode_line
from drl.runtime.commands.sections import SectionedCommand
from drl.runtime.engine import Engine
from drl.runtime.errors import RequestError


@click.command(cls=SectionedCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("text", nargs=-1)
@generate_options
@clean_errors
def main(
    bundle: Path,
    text: tuple[str, ...],
    source: Path | None,
    target: Path | None,
    as_json: bool,
    stream: bool,
    verbose: bool,
    prefix: str | None,
    experts: bool,
    path: str,
    budget: float,
    budget_ms: float | None,
    device: str,
    threads: int | None,
    batch_size: int,
    no_hash_check: bool,
    **generation: Any,
) -> None:
    """Generate text from BUNDLE for each TEXT, or for each line of standard input.

    With --input, requests are read from a file of JSON objects, one a line:

    \b
      {"prompt": "what is 12 plus 30?", "path": "fast", "max_new_tokens": 8}

    What is not given is as the bundle says. A TOKEN is given by its text or its id, and a TEXT* may
    be token ids: ids:3,4. Words to bar or favour are meant at the beginning and after a space.
    """
    _check_usage(text, source, target, as_json, stream)
    _check_reports(source, as_json, experts, verbose, generation)
    given = Given.read(generation)  # a mistake is found before the bundle is read
    interactive = not text and source is None and _is_terminal(sys.stdin)
    if interactive and as_json:
        raise click.UsageError("--json needs TEXT; a terminal is answered in plain text")
    prompts = [] if source or interactive else _labelled(text) or list(_standard_input())
    verify = not no_hash_check
    with Engine.from_bundle(bundle, device, threads, batch_size, verify_hashes=verify) as engine:
        defaults = Defaults(
            given.options(engine), path, budget, experts, prefix_of(prefix), budget_ms
        )
        if source:
            _run_file(engine, defaults, source, target)
            return
        notes = verbose or _is_terminal(sys.stdout)
        printer = Printer(engine, defaults, as_json, stream, notes)
        if interactive:
            printer.converse()
        else:
            printer.print_all(prompts)


def _check_usage(
    text: tuple[str, ...], source: Path | None, target: Path | None, as_json: bool, stream: bool
) -> None:
    if source and text:
        raise click.UsageError("give prompts either as TEXT or with --input")
    if target and not source:
        raise click.UsageError("--output needs --input; redirect standard output instead")
    if stream and (as_json or source):
        raise click.UsageError("--stream prints plain text, so it excludes --json and --input")


def _check_reports(
    source: Path | None, as_json: bool, experts: bool, verbose: bool, generation: dict[str, Any]
) -> None:
    reports = {
        "--experts": experts,
        "--logprobs": generation["logprobs"],
        "--top-logprobs": generation["top_logprobs"],
    }
    for option, given in reports.items():
        if given and not (as_json or source):
            raise click.UsageError(f"{option} is reported in JSON only; add --json")
    if verbose and source:
        raise click.UsageError("--verbose is for plain text; the lines of --input tell it all")


def _is_terminal(stream: IO[Any] | None) -> bool:
    """Whether one of the standard streams, None if closed, is a terminal."""
    return stream is not None and stream.isatty()


def _labelled(text: tuple[str, ...]) -> list[Prompt]:
    if len(text) == 1:
        return [Prompt(text[0])]
    return [Prompt(prompt, f"prompt {number}: ") for number, prompt in enumerate(text, 1)]


def _standard_input() -> Iterator[Prompt]:
    """The lines of standard input that are not blank, with what errors call them."""
    if sys.stdin is None:
        raise RequestError("standard input is closed; give TEXT or --input")
    found = False
    for number, line in enumerate(sys.stdin.buffer, 1):
        label = f"standard input, line {number}: "
        prompt = decode_line(line, label)
        if prompt.strip():
            found = True
            yield Prompt(prompt, label)
    if not found:
        raise RequestError("standard input holds no prompt; give TEXT or lines of text")


def _run_file(engine: Engine, defaults: Defaults, source: Path, target: Path | None) -> None:
    name = "standard input" if source == STANDARD_INPUT else str(source)

    def report(number: int, message: str) -> None:
        print_error(f"{name}, line {number}: {message}")

    job = Job(engine, defaults, report)
    with _progress(source) as done:
        run_file(job, source, target, done)
    if job.failed:
        click.echo(f"{job.failed} of {job.total} lines failed", err=True)
        sys.exit(1)


@contextmanager
def _progress(source: Path) -> Iterator[Callable[[], None]]:
    """A progress bar on standard error, if that is a terminal and the file can be read twice."""
    if not (_is_terminal(sys.stderr) and source.is_file()):
        yield lambda: None
        return
    total = count_lines(source)
    with click.progressbar(length=total, label="generating", file=sys.stderr) as bar:
        yield lambda: bar.update(1)
