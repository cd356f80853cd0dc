"""Running build processes, and telling in one line why one failed."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, Any

from drl.export.tensorrt.job import Job
from drl.runtime.backends.tensorrt.library import title
from drl.runtime.errors import ExportError

COMMAND = (sys.executable, "-m", "drl.export.tensorrt.build_process")
_GRACE = 10.0  # seconds that a process may take to stop and to keep its timings
_MOST_LINES = 3  # of a log, in a message
_OUT_OF_DEVICE_MEMORY = (
    "out of memory",
    "OutOfMemory",
    "OUT_OF_MEMORY",
    "cudaErrorMemoryAllocation",
)

Listener = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Built:
    """What a build process tells of its engine.

    Attributes:
        inputs: Names, in the engine's order.
        outputs: Likewise.
        layers: Layers of the network before the library fused them.
        seconds: Taken by parsing and building.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    layers: int
    seconds: float


class BuildStoppedError(Exception):
    """A build ended because it was asked to."""


@dataclass
class EngineProcesses:
    """Starts build processes, and stops those that run.

    Attributes:
        command: What runs a job.
        time_limit: Seconds that one engine may take; None for any.
        grace: Seconds that a process may take to stop.
    """

    command: Sequence[str] = COMMAND
    time_limit: float | None = None
    grace: float = _GRACE
    _running: set["subprocess.Popen[str]"] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stopped: bool = False

    def build(self, job: Job, listener: Listener) -> Built:
        """Build an engine. May be called from several threads at once.

        Args:
            job: What to build.
            listener: Called with each event: `progress` and `warning`.

        Raises:
            ExportError: The library refused the graph, failed or crashed; the message has what
                it said.
            BuildStoppedError: `stop` was called.
        """
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as complaints:
            process = self._start(job, complaints)
            late = threading.Event()
            timer = self._limit(process, late)
            record = _Record(job)
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    record.hear(line, listener)
                process.wait()
            finally:
                if timer is not None:
                    timer.cancel()
                self._end(process)
            if self._stopped:
                raise BuildStoppedError
            if record.built is not None and process.returncode == 0:
                return record.built
            if late.is_set():
                raise ExportError(
                    f"building {job.name} took more than {self.time_limit:g} seconds; "
                    "give a longer --time-limit, or none"
                )
            complaints.seek(0)
            raise ExportError(record.explain(process.returncode, complaints.read()))

    def stop(self) -> None:
        """Ask all processes to stop, wait for it, and kill those that do not."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for process in running:
            _close_input(process)
        try:
            for process in running:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(self.grace)
        finally:  # a second Ctrl-C does not wait
            for process in running:
                process.kill()

    def _start(self, job: Job, complaints: IO[str]) -> "subprocess.Popen[str]":
        environment = dict(os.environ)
        environment["POLYGRAPHY_USE_TENSORRT_RTX"] = "1" if job.flavour == "tensorrt-rtx" else "0"
        with self._lock:
            if self._stopped:
                raise BuildStoppedError
            process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=complaints,
                text=True,
                encoding="utf-8",
                errors="replace",
                env=environment,
                start_new_session=True,  # Ctrl-C is for the command, which then stops this one
            )
            self._running.add(process)
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # it ended already; its standard error says why
            process.stdin.write(job.to_json() + "\n")
            process.stdin.flush()
        return process

    def _limit(
        self, process: "subprocess.Popen[str]", late: threading.Event
    ) -> threading.Timer | None:
        if self.time_limit is None:
            return None

        def give_up() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(self.time_limit, give_up)
        timer.daemon = True
        timer.start()
        return timer

    def _end(self, process: "subprocess.Popen[str]") -> None:
        """Leave no process behind, however its build ended."""
        if process.poll() is None:
            process.kill()
            process.wait()
        _close_input(process)
        assert process.stdout is not None
        process.stdout.close()
        with self._lock:
            self._running.discard(process)


class _Record:
    """What a process told so far."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.built: Built | None = None
        self.refused: list[dict[str, Any]] = []
        self.failed: str | None = None
        self.error = ""
        self.node = ""
        self.errors: list[str] = []
        self.warnings: list[str] = []

    def hear(self, line: str, listener: Listener) -> None:
        """Take in one line of a process."""
        try:
            content = json.loads(line)
        except ValueError:  # a crash cut it short
            self.warnings.append(line.strip())
            return
        kind = content.pop("event")
        if kind == "built":
            lists = {name: tuple(content[name]) for name in ("inputs", "outputs")}
            self.built = Built(layers=content["layers"], seconds=content["seconds"], **lists)
        elif kind == "log":
            severe = content["severity"] != "WARNING"
            (self.errors if severe else self.warnings).append(" ".join(content["message"].split()))
        elif kind == "node":
            self.node = content["node"]
        elif kind == "refused":
            self.refused = content["errors"]
        elif kind == "failed":
            self.failed = content["reason"]
        elif kind == "error":
            self.error = content["message"]
        elif kind != "stopped":
            listener({"event": kind, **content})

    def explain(self, status: int, complaints: str) -> str:
        """Say in one line why there is no engine."""
        name, library = self.job.name, title(self.job.flavour)
        if self.error:
            return self.error
        if self.refused:
            return f"{library} does not take the graph {name}: {self._refusals()}"
        if self.failed is not None:
            reason = self.failed or self._log(complaints) or "it says nothing of the reason"
            if any(phrase in reason for phrase in _OUT_OF_DEVICE_MEMORY):
                return (
                    f"there is too little memory to build {name}: {reason}; end what uses the GPU, "
                    "ask for smaller --batch, --source or --new-tokens, or give --weight-streaming"
                )
            return f"{library} cannot build {name}: {reason}"
        return f"{library} crashed while building {name} ({_death(status)}){self._last(complaints)}"

    def _refusals(self) -> str:
        found = [_refusal(error, self.node) for error in self.refused]
        return "; ".join(dict.fromkeys(found))

    def _last(self, complaints: str) -> str:
        """What was heard last before a crash."""
        where = f" at the node {self.node}" if self.node else ""
        log = self._log(complaints)
        return f"{where}: {log}" if log else f"{where}; it left no message"

    def _log(self, complaints: str) -> str:
        """The lines of the log that tell most."""
        tail = [line for line in complaints.splitlines() if line.strip()]
        return " | ".join((self.errors or tail or self.warnings)[-_MOST_LINES:])


def _refusal(error: dict[str, Any], last_node: str) -> str:
    """Name what the parser refused: operator, layer and reason."""
    node, operator = error["node"], error["operator"]
    if not node:  # the parser knows only which node it read last
        node, _, operator = last_node.partition(" ")
        operator = operator.strip("[]")
    outermost = error["callers"][0] if error["callers"] else node
    layer = outermost.rpartition("/")[0] or "the graph itself"
    calls = f", within {' > '.join(error['callers'])}" if error["callers"] else ""
    return f"operator {operator} in layer {layer} (node {node}{calls}): {error['reason']}"


def _death(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    if -status == signal.SIGKILL:
        name += ", as the system does where memory runs out"
    return name


def _close_input(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        process.stdin.close()
