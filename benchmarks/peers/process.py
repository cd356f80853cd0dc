"""One engine's process, as the driver sees it."""

import json
import os
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from drl.benchmarks.errors import BenchmarkError

_WORKER = Path(__file__).with_name("worker.py")
_LIMIT = 1800.0
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class PeerProcess:
    """A worker with an engine. A context manager, which ends the process.

    Args:
        python: The Python of the engine's environment.
        file: The engine's module.
        variant: What the module is told.
        threads: What BLAS and OpenMP libraries may use.
        environment: Environment variables to add.
        limit: Seconds that a call may take.
    """

    def __init__(
        self,
        python: Path,
        file: Path,
        variant: str,
        threads: int,
        environment: Mapping[str, str] | None = None,
        limit: float = _LIMIT,
    ) -> None:
        self._limit = limit
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `close`)
        limits = dict.fromkeys(_THREADS, str(threads))
        local = {"HF_HUB_OFFLINE": "1"}
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self._process = subprocess.Popen(
            [str(python), "-P", str(_WORKER), str(file), variant],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**inherited, **limits, **local, **(environment or {})},
            text=True,
        )

    def call(self, kind: str, **arguments: Any) -> dict[str, Any]:
        """Make a call and wait for its answer.

        Raises:
            BenchmarkError: The engine failed, ended, or took longer than the limit.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        overdue = threading.Event()

        def end() -> None:
            overdue.set()
            self._process.kill()

        watchdog = threading.Timer(self._limit, end)
        watchdog.start()
        try:
            self._process.stdin.write(json.dumps({"call": kind, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            watchdog.cancel()
        if overdue.is_set():
            raise BenchmarkError(f"{kind} took longer than {self._limit:g} seconds")
        if not line:
            raise BenchmarkError(f"its process ended: {self._last_words()}")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise BenchmarkError(str(reply["error"]))
        return reply

    def generate(
        self, sources: Sequence[Sequence[int]], new: int, beams: int
    ) -> tuple[float, list[list[int]]]:
        """Milliseconds of a generation, and its tokens. Raises as `call`."""
        reply = self.call("generate", sources=sources, new=new, beams=beams)
        return reply["ms"], reply["tokens"]

    def close(self) -> None:
        """End the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue  # it has ended already
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _last_words(self) -> str:
        self._process.wait()
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"status {self._process.returncode}, without a word"
