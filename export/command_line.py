"""What the commands of the exporter share: stages with their times, and what must be installed."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import click

from drl.runtime.errors import ExportError

_EXTRA = ("torch", "onnx", "onnx_ir", "onnxscript", "safetensors")


class StageClock:
    """Prints each stage as it begins, and the seconds it took when the next one does.

    Args:
        stages: What each stage is, for people; one that is missing is called by its name.
    """

    def __init__(self, stages: Mapping[str, str]) -> None:
        self._stages = stages
        self._begun: float | None = None

    def __call__(self, stage: str) -> None:
        """Begin a stage, which ends the one under way."""
        self.finish()
        click.echo(f"{self._stages.get(stage, stage):<30}", nl=False, err=True)
        self._begun = time.perf_counter()

    def finish(self, note: str = "") -> None:
        """End the stage under way, if there is one."""
        if self._begun is not None:
            seconds = time.perf_counter() - self._begun
            click.echo(note or f"{seconds:6.1f} s", err=True)
            self._begun = None


@contextmanager
def extra_needed() -> Iterator[None]:
    """Say how to install a library of the extra `export` that the block fails to import."""
    try:
        yield
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library not in _EXTRA:
            raise
        raise ExportError(
            f'{library} is not installed, and exporting needs it; run `pip install ".[export]"`'
        ) from None
