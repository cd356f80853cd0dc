"""What a build process tells while it runs, as lines of JSON on its standard output."""

import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TextIO

_NODE = re.compile(r"[Pp]arsing node: (.*)")
_INTERVAL = 0.1  # seconds between two lines of progress


@dataclass
class Events:
    """Writes events, from any thread.

    Attributes:
        stream: Where the lines go.
    """

    stream: TextIO
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def send(self, event: str, **content: Any) -> None:
        """Write one event at once: what follows may end the process."""
        line = json.dumps({"event": event} | content)
        with self._lock:
            self.stream.write(line + "\n")
            self.stream.flush()


def open_logger(library: Any, events: Events) -> Any:
    """A logger of the library that passes on errors, warnings, and which node is being parsed."""
    base: type = library.ILogger

    class EventLogger(base):  # type: ignore[misc]  # known only once the library is imported
        def __init__(self) -> None:
            super().__init__()

        def log(self, severity: Any, message: str) -> None:
            if severity in (base.ERROR, base.INTERNAL_ERROR, base.WARNING):  # type: ignore[attr-defined]
                events.send("log", severity=severity.name, message=message)
            elif match := _NODE.search(message):
                events.send("node", node=match[1])

    return EventLogger()


def open_monitor(library: Any, events: Events, stopping: Callable[[], bool]) -> Any:
    """A progress monitor of the library: tells how far the build is, and ends it if asked to."""
    base: type = library.IProgressMonitor

    class EventMonitor(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.phases = Phases()
            self.told = 0.0

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.phases.start(phase, steps)
            self.tell()

        def step_complete(self, phase: str, step: int) -> bool:
            self.phases.step(phase, step)
            self.tell()
            return not stopping()

        def phase_finish(self, phase: str) -> None:
            self.phases.finish(phase)

        def tell(self) -> None:
            now = time.monotonic()
            if now - self.told >= _INTERVAL:
                self.told = now
                events.send("progress", phase=self.phases.current, share=self.phases.share)

    return EventMonitor()


@dataclass
class _Phase:
    steps: int
    done: int = 0


class Phases:
    """The nested phases of a build, as the library tells of them, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[str, _Phase] = {}
        self._share = 0.0

    def start(self, phase: str, steps: int) -> None:
        """A phase of so many steps begins, as a part of one step of the one under way."""
        with self._lock:
            self._open[phase] = _Phase(max(steps, 1))

    def step(self, phase: str, step: int) -> None:
        """A step of a phase is done."""
        with self._lock:
            if phase in self._open:
                self._open[phase].done = step + 1

    def finish(self, phase: str) -> None:
        """A phase is over."""
        with self._lock:
            self._open.pop(phase, None)

    @property
    def current(self) -> str:
        """The innermost phase under way."""
        with self._lock:
            return next(reversed(self._open), "")

    @property
    def share(self) -> float:
        """How much of the outermost phase is done, 0 to 1. It never goes back."""
        with self._lock:
            share = 0.0
            for phase in reversed(self._open.values()):
                share = min(1.0, (phase.done + share) / phase.steps)
            self._share = max(self._share, share)
            return self._share
