"""Generating for prompts one after the other, and printing the results."""

import sys
from dataclasses import dataclass

import click

from drl.runtime.commands.common import print_error
from drl.runtime.commands.jsonl import Defaults
from drl.runtime.commands.rendering import json_line, result_lines, result_note, result_record
from drl.runtime.engine import Engine
from drl.runtime.errors import RequestError
from drl.runtime.request import Request
from drl.runtime.results import GenerationResult


@dataclass(frozen=True)
class Prompt:
    """A text to generate for.

    Attributes:
        text: The text.
        label: What errors call it, such as `prompt 2: `; empty if it is the only one.
    """

    text: str
    label: str = ""


def decode_line(line: bytes, label: str = "") -> str:
    """A line of input without its end. Raises `RequestError` if it is not UTF-8."""
    try:
        return line.decode().strip("\r\n")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{label}not UTF-8 at byte {error.start + 1}; convert it, for example with iconv"
        ) from None


class Printer:
    """Generates for prompts and prints the results as the options say.

    In plain text a result is a line, or several if its text has line breaks, which JSON tells
    apart. With `num_return_sequences` a prompt has so many results, best first; where a beam search
    found fewer, the rest are empty, so that results can be counted. With notes they are numbered
    instead, and tell path, score and time.
    """

    def __init__(
        self, engine: Engine, defaults: Defaults, as_json: bool, stream: bool, notes: bool
    ) -> None:
        self._engine = engine
        self._defaults = defaults
        self._config = engine.configure(**defaults.options)
        self._as_json = as_json
        self._stream = stream
        self._notes = notes

    def print_all(self, prompts: list[Prompt]) -> None:
        """Print the results of each prompt, in their order, as soon as they and those before are.

        Raises:
            RequestError: A prompt is wrong; nothing has been printed then.
        """
        requests = [self._request(prompt) for prompt in prompts]
        if self._stream:
            for request in requests:
                self._print_stream(request)
            return
        ready: dict[int, GenerationResult] = {}
        given = 0
        for index, result in self._engine.run(requests):
            ready[index] = result
            while given in ready:
                self._print_result(prompts[given].text, ready.pop(given))
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
                prompt = decode_line(line)
                if prompt.strip():
                    self._print_stream(self._request(Prompt(prompt)))
            except RequestError as error:
                print_error(str(error))

    def _request(self, prompt: Prompt) -> Request:
        given = self._defaults
        try:
            return self._engine.request(
                prompt.text,
                self._config,
                path=given.path,
                budget=given.budget,
                budget_ms=given.budget_ms,
                return_experts=given.return_experts,
                prefix=given.prefix,
            )
        except RequestError as error:
            raise RequestError(f"{prompt.label}{error}") from None

    def _print_result(self, prompt: str, result: GenerationResult) -> None:
        if self._as_json:
            click.echo(json_line(result_record(prompt, result)))
        else:
            for line in result_lines(result, self._config.num_return_sequences, self._notes):
                click.echo(line)

    def _print_stream(self, request: Request) -> None:
        """Print the first result while it grows, and the others below it when they are complete."""
        count = self._config.num_return_sequences
        if self._notes and count > 1:
            click.echo("1. ", nl=False)
        for piece in self._engine.stream_request(request):
            if piece.index:
                continue
            click.echo(piece.text, nl=False)
            if piece.result and self._notes:
                click.echo(f"  {result_note(piece.result)}", nl=False)
            if piece.result:
                click.echo()
                for line in result_lines(piece.result, count, self._notes)[1:]:
                    click.echo(line)
