"""Files of requests, one JSON object a line, to files of results, line for line.

A line is `{"prompt": "text"}` or `{"prompt": [ids]}`; it may set `path`, `budget`, `budget_ms`,
`prefix` (a text or ids) and any field of `GenerationConfig` for itself, and an `id` that is passed
on. A line that is wrong, or fails on the way, becomes `{"line": n, "error": "…"}` in the output and
does not stop the others.
"""

import json
import os
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from drl.runtime.commands.rendering import json_line, result_record
from drl.runtime.engine import Engine
from drl.runtime.errors import DrlError, RequestError
from drl.runtime.options.defaults import merge
from drl.runtime.request import Request


@dataclass(frozen=True)
class Defaults:
    """What a line that does not say otherwise gets; `options` are fields of `GenerationConfig`."""

    options: Mapping[str, Any]
    path: str | int
    budget: float
    return_experts: bool
    prefix: str | list[int] | None = None
    budget_ms: float | None = None


@dataclass
class Job:
    """The lines of one file on their way through an engine; what is written is forgotten.

    Attributes:
        report: Told the number of each line that is wrong, and why.
        total: Lines read that were not blank.
        failed: How many of them were wrong.
    """

    engine: Engine
    defaults: Defaults
    report: Callable[[int, str], None]
    total: int = 0
    failed: int = 0
    _documents: dict[int, tuple[int, dict[str, Any]]] = field(default_factory=dict)

    def run(self, lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
        """Serve the lines; yield a record per line that is not blank, in the order of the lines."""
        numbers: deque[int] = deque()  # of the lines that were read and not yielded
        ready: dict[int, dict[str, Any]] = {}

        def fail(index: int, failure: DrlError) -> None:
            number, _ = self._documents.pop(index)
            ready[number] = self._failed(number, failure)

        requests = self._requests(lines, numbers, ready)
        for index, result in self.engine.run(requests, on_error=fail):
            number, document = self._documents.pop(index)
            record = result_record(document["prompt"], result)
            ready[number] = {"id": document["id"], **record} if "id" in document else record
            while numbers and numbers[0] in ready:
                yield ready.pop(numbers.popleft())
        for number in numbers:
            yield ready.pop(number)

    def _requests(
        self, lines: Iterable[bytes], numbers: deque[int], ready: dict[int, dict[str, Any]]
    ) -> Iterator[Request]:
        served = 0
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            self.total += 1
            numbers.append(number)
            try:
                document = _parse(line)
                request = self._request(document)
            except RequestError as error:
                ready[number] = self._failed(number, error)
                continue
            self._documents[served] = number, document
            served += 1
            yield request

    def _failed(self, number: int, error: DrlError) -> dict[str, Any]:
        """Report a line that gives no result; return its record."""
        self.failed += 1
        self.report(number, str(error))
        return {"line": number, "error": str(error)}

    def _request(self, document: dict[str, Any]) -> Request:
        options = {key: value for key, value in document.items() if key not in _OWN_FIELDS}
        config = self.engine.configure(**merge(self.defaults.options, options))
        return self.engine.request(
            document["prompt"],
            config,
            path=document.get("path", self.defaults.path),
            budget=document.get("budget", self.defaults.budget),
            budget_ms=document.get("budget_ms", self.defaults.budget_ms),
            return_experts=self.defaults.return_experts,
            prefix=document.get("prefix", self.defaults.prefix),
        )


_OWN_FIELDS = ("id", "prompt", "path", "budget", "budget_ms", "prefix")
STANDARD_INPUT = Path("-")


def run_file(job: Job, source: Path, target: Path | None, done: Callable[[], None]) -> None:
    """Serve a file of requests into a file of results, or onto standard output.

    The output appears when it is complete: it is written beside its place and moved there, so that
    an interruption leaves nothing half-written. A device or a pipe is written to as it is. `done`
    is called after each line.

    Raises:
        DrlError: A file cannot be read or written.
    """
    try:
        with _open_source(source) as lines, _open_target(target) as output:
            for record in job.run(lines):
                output.write(json_line(record) + "\n")
                done()
    except BrokenPipeError:
        raise  # the reader has had enough, which is no mistake; click ends the command quietly
    except OSError as error:
        place = error.filename or target or "standard output"
        raise DrlError(f"{place}: {error.strerror or error}") from error


def count_lines(source: Path) -> int:
    """How many lines of a file are not blank. Raises `DrlError` if it cannot be read."""
    try:
        with source.open("rb") as lines:
            return sum(1 for line in lines if line.strip())
    except OSError as error:
        raise DrlError(f"{source}: {error.strerror or error}") from error


def _parse(line: bytes) -> dict[str, Any]:
    try:
        document = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise RequestError(f"the line is not UTF-8 at byte {error.start + 1}") from None
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the line is not JSON: {error}") from None
    if not isinstance(document, dict) or "prompt" not in document:
        raise RequestError('the line must be an object with a "prompt"')
    return document


@contextmanager
def _open_source(source: Path) -> Iterator[IO[bytes]]:
    if source != STANDARD_INPUT:
        with source.open("rb") as lines:
            yield lines
    elif sys.stdin is None:
        raise DrlError("standard input is closed; name a file as --input")
    else:
        yield sys.stdin.buffer


@contextmanager
def _open_target(target: Path | None) -> Iterator[IO[str]]:
    if target is None:
        if sys.stdout is None:
            raise DrlError("standard output is closed; name a file as --output")
        yield sys.stdout
        sys.stdout.flush()
    elif target.is_dir():
        raise DrlError(f"{target} is a folder; --output names a file")
    elif target.exists() and not target.is_file():
        with target.open("w", encoding="utf-8") as output:
            yield output
    else:
        with _complete_file(Path(os.path.realpath(target))) as output:
            yield output


@contextmanager
def _complete_file(target: Path) -> Iterator[IO[str]]:
    if not target.parent.is_dir():
        raise DrlError(f"{target.parent} is no folder; make it, or name another file as --output")
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as output:
            yield output
        # mkstemp makes files that only their owner reads; results are ordinary files.
        mask = os.umask(0)
        os.umask(mask)
        Path(name).chmod(0o666 & ~mask)
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
