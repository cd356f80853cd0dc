"""`drl-generate`: text from a bundle, for prompts given as arguments, lines or a file."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import click

from drl.runtime.commands.common import clean_errors, print_error
from drl.runtime.commands.jsonl import STANDARD_INPUT, Defaults, Job, count_lines, run_file
from drl.runtime.commands.rendering import json_line, result_note, result_record
from drl.runtime.engine import Engine
from drl.runtime.errors import RequestError
from drl.runtime.generation import GenerationConfig
from drl.runtime.request import Request
from drl.runtime.results import GenerationResult

_SAMPLING = (
    click.option("--max-new-tokens", type=int, help="Most tokens to generate [default: all]."),
    click.option("--min-new-tokens", type=int, help="Do not end before so many tokens."),
    click.option("--do-sample", flag_value=True, default=None, help="Draw tokens at random."),
    click.option("--temperature", type=float, help="Sample at this temperature; 0 is greedy."),
    click.option("--top-k", type=int, help="Sample among the K likeliest tokens."),
    click.option("--top-p", type=float, help="Sample among the likeliest tokens that reach P."),
    click.option("--min-p", type=float, help="Bar tokens below P times the likeliest."),
    click.option("--forced-bos", "forced_bos_token_id", help="First token: its text or its id."),
    click.option("--repetition-penalty", type=float, help="Above 1 discourages repetition."),
    click.option("--seed", type=int, help="Make sampling reproducible."),
    click.option(
        "--stop", "stop_strings", multiple=True, help="End before this text (repeatable)."
    ),
    click.option("--stop-token-id", "stop_token_ids", type=int, multiple=True, help="End there."),
    click.option("--logprobs", is_flag=True, help="Report log-probabilities (in JSON)."),
    click.option("--top-logprobs", type=int, default=0, help="Report so many alternatives."),
)


def _sampling_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_SAMPLING):
        command = option(command)
    return command


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("text", nargs=-1)
@click.option(
    "--input",
    "source",
    type=click.Path(path_type=Path),
    help="JSON Lines of requests; - for standard input.",
)
@click.option("--output", "target", type=click.Path(path_type=Path), help="JSON Lines of results.")
@click.option("--json", "as_json", is_flag=True, help="Print each result as a JSON object.")
@click.option("--stream", is_flag=True, help="Print text while it is generated.")
@click.option("--path", default="auto", help="auto, or the name or index of a path.")
@click.option("--budget", type=float, default=1.0, help="Largest path cost for auto, 0 to 1.")
@_sampling_options
@click.option("--experts", is_flag=True, help="Report the experts of each token (in JSON).")
@click.option("--threads", type=int, help="Threads [default: one per core].")
@click.option("--batch-size", type=int, default=32, help="Most sequences at a time.")
@click.option("--no-hash-check", is_flag=True, help="Trust the bundle's files to be unaltered.")
@click.option("-v", "--verbose", is_flag=True, help="Show the path and the time of each result.")
@clean_errors
def main(
    bundle: Path,
    text: tuple[str, ...],
    source: Path | None,
    target: Path | None,
    as_json: bool,
    stream: bool,
    path: str,
    budget: float,
    experts: bool,
    threads: int | None,
    batch_size: int,
    no_hash_check: bool,
    verbose: bool,
    **sampling: Any,
) -> None:
    """Generate text from BUNDLE for each TEXT, or for each line of standard input.

    With --input, requests are read from a file of JSON objects, one a line, such as
    {"prompt": "what is 12 plus 30?", "path": "fast", "max_new_tokens": 8}.
    """
    _check_usage(text, source, target, as_json, stream)
    _check_reports(source, as_json, experts, verbose, sampling)
    options = _config_options(sampling)
    language = options.pop("forced_bos_token_id", None)
    GenerationConfig.from_options(options)  # a mistake is found before the bundle is read
    interactive = not text and source is None and _is_terminal(sys.stdin)
    if interactive and as_json:
        raise click.UsageError("--json needs TEXT; a terminal is answered in plain text")
    prompts = [] if source or interactive else _labelled(text) or list(_standard_input())
    with Engine.from_bundle(
        bundle, threads=threads, max_batch_size=batch_size, verify_hashes=not no_hash_check
    ) as engine:
        if language is not None:
            options["forced_bos_token_id"] = engine.token_id(language)
        defaults = Defaults(options, path, budget, experts)
        printer = _Printer(engine, defaults, as_json, stream, verbose or _is_terminal(sys.stdout))
        if source:
            _run_file(engine, defaults, source, target)
        elif interactive:
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
    source: Path | None, as_json: bool, experts: bool, verbose: bool, sampling: dict[str, Any]
) -> None:
    reports = {
        "--experts": experts,
        "--logprobs": sampling["logprobs"],
        "--top-logprobs": sampling["top_logprobs"],
    }
    for option, given in reports.items():
        if given and not (as_json or source):
            raise click.UsageError(f"{option} is reported in JSON only; add --json")
    if verbose and source:
        raise click.UsageError("--verbose is for plain text; the lines of --input tell it all")


def _is_terminal(stream: IO[Any] | None) -> bool:
    """Whether one of the standard streams, None if closed, is a terminal."""
    return stream is not None and stream.isatty()


def _config_options(sampling: dict[str, Any]) -> dict[str, Any]:
    """The fields of `GenerationConfig` that were given on the command line."""
    options = {name: value for name, value in sampling.items() if value not in (None, ())}
    options["logprobs"] = bool(options["logprobs"] or options["top_logprobs"])
    return options


def _labelled(text: tuple[str, ...]) -> list[tuple[str, str]]:
    if len(text) == 1:
        return [("", text[0])]
    return [(f"prompt {number}: ", prompt) for number, prompt in enumerate(text, 1)]


def _standard_input() -> Iterator[tuple[str, str]]:
    """The lines of standard input that are not blank, with what errors call them."""
    if sys.stdin is None:
        raise RequestError("standard input is closed; give TEXT or --input")
    found = False
    for number, line in enumerate(sys.stdin.buffer, 1):
        label = f"standard input, line {number}: "
        prompt = _decode_line(line, label)
        if prompt.strip():
            found = True
            yield label, prompt
    if not found:
        raise RequestError("standard input holds no prompt; give TEXT or lines of text")


def _decode_line(line: bytes, label: str = "") -> str:
    try:
        return line.decode().strip("\r\n")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{label}not UTF-8 at byte {error.start + 1}; convert it, for example with iconv"
        ) from None


class _Printer:
    """Generates for prompts and prints the results as the options say."""

    def __init__(
        self, engine: Engine, defaults: Defaults, as_json: bool, stream: bool, notes: bool
    ) -> None:
        self._engine = engine
        self._defaults = defaults
        self._config = engine.configure(**defaults.options)
        self._as_json = as_json
        self._stream = stream
        self._notes = notes

    def print_all(self, prompts: list[tuple[str, str]]) -> None:
        """Print a result per prompt, in their order, each as soon as it and those before are."""
        requests = [self._request(label, prompt) for label, prompt in prompts]
        if self._stream:
            for request in requests:
                self._print_stream(request)
            return
        ready: dict[int, GenerationResult] = {}
        given = 0
        for index, result in self._engine.run(requests):
            ready[index] = result
            while given in ready:
                self._print_result(prompts[given][1], ready.pop(given))
                given += 1

    def converse(self) -> None:
        """Answer line after line of a terminal, until it ends."""
        click.echo("One prompt a line; Ctrl-D ends.", err=True)
        while True:
            click.echo("> ", err=True, nl=False)
            line = sys.stdin.buffer.readline()
            if not line:
                click.echo(err=True)
                return
            try:
                prompt = _decode_line(line)
                if prompt.strip():
                    self._print_stream(self._request("", prompt))
            except RequestError as error:
                print_error(str(error))

    def _request(self, label: str, prompt: str) -> Request:
        given = self._defaults
        try:
            return self._engine.request(
                prompt,
                self._config,
                path=given.path,
                budget=given.budget,
                return_experts=given.return_experts,
            )
        except RequestError as error:
            raise RequestError(f"{label}{error}") from None

    def _print_result(self, prompt: str, result: GenerationResult) -> None:
        if self._as_json:
            click.echo(json_line(result_record(prompt, result)))
        else:
            click.echo(f"{result.text}  {result_note(result)}" if self._notes else result.text)

    def _print_stream(self, request: Request) -> None:
        for piece in self._engine.stream_request(request):
            click.echo(piece.text, nl=False)
            if piece.result and self._notes:
                click.echo(f"  {result_note(piece.result)}", nl=False)
        click.echo()


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
