"""Showing how far a build is: a line that changes on a terminal, else a line per event."""

import shutil
import threading
import time
from typing import Protocol

import click

_SILENCE = 0.1  # seconds between two changes of the line
_BAR = 20


class Progress(Protocol):
    """Is told what a build does. Engines may be told of from several threads."""

    def stage(self, text: str) -> None:
        """A stage that is no engine begins."""

    def engine(self, name: str, reason: str) -> None:
        """An engine begins."""

    def share(self, name: str, phase: str, share: float) -> None:
        """So much of an engine is done, 0 to 1."""

    def built(self, name: str, seconds: float) -> None:
        """An engine is done."""

    def note(self, text: str) -> None:
        """Something is worth knowing."""


class Silence:
    """Shows nothing."""

    def stage(self, text: str) -> None:
        """Show nothing."""

    def engine(self, name: str, reason: str) -> None:
        """Show nothing."""

    def share(self, name: str, phase: str, share: float) -> None:
        """Show nothing."""

    def built(self, name: str, seconds: float) -> None:
        """Show nothing."""

    def note(self, text: str) -> None:
        """Show nothing."""


class Lines:
    """Writes to standard error.

    Attributes:
        moving: Whether a line may be overwritten, as on a terminal.
    """

    def __init__(self, moving: bool) -> None:
        self.moving = moving
        self._lock = threading.Lock()
        self._stage: tuple[str, float] | None = None
        self._reasons: dict[str, str] = {}
        self._changed = 0.0

    def stage(self, text: str) -> None:
        """Begin a stage; the one before is over."""
        with self._lock:
            self._end_stage()
            if text:
                self._stage = text, time.perf_counter()
                self._show(f"{text} …")

    def engine(self, name: str, reason: str) -> None:
        """Begin an engine."""
        with self._lock:
            self._end_stage()
            self._reasons[name] = reason
            self._show(f"{name} …")

    def share(self, name: str, phase: str, share: float) -> None:
        """Move the line of an engine."""
        now = time.monotonic()
        with self._lock:
            if now - self._changed >= _SILENCE:
                self._changed = now
                bar = ("█" * round(share * _BAR)).ljust(_BAR, "·")
                self._show(f"{name}  {bar} {share:4.0%}  {phase}")

    def built(self, name: str, seconds: float) -> None:
        """Write the line of an engine that is done."""
        with self._lock:
            self._write(f"{name:<30}{seconds:6.1f} s   {self._reasons.pop(name, '')}")

    def note(self, text: str) -> None:
        """Write a warning."""
        with self._lock:
            self._write(f"{click.style('warning', fg='yellow')}: {text}")

    def finish(self, failed: bool = False) -> None:
        """End whatever is under way."""
        with self._lock:
            if failed and self._stage is not None:
                self._write(f"{self._stage[0]:<30}failed")
                self._stage = None
            self._end_stage()
            self._show("")

    def _end_stage(self) -> None:
        if self._stage is not None:
            text, began = self._stage
            self._stage = None
            self._write(f"{text:<30}{time.perf_counter() - began:6.1f} s")

    def _show(self, text: str) -> None:
        """Change the moving line."""
        if self.moving:
            width = shutil.get_terminal_size().columns - 1
            click.echo(f"\r\x1b[K{text[:width]}", nl=False, err=True, color=True)

    def _write(self, text: str) -> None:
        """Write a line that stays."""
        self._show("")
        click.echo(text, err=True)
