"""What TensorRT says of a failure: its functions return False or None, and log the reason."""

from collections import deque
from typing import Any

from drl.runtime.errors import BackendError

_KEPT_LINES = 4
_LONGEST = 400


class Messages:
    """Collects the lines that TensorRT logs as errors and warnings.

    Args:
        library: The module, of either flavour.
        title: What errors call the library.

    Attributes:
        logger: What the library's objects are made with. It must outlive them.
    """

    def __init__(self, library: Any, title: str) -> None:
        self._title = title
        self._errors: deque[str] = deque(maxlen=_KEPT_LINES)
        self._warnings: deque[str] = deque(maxlen=_KEPT_LINES)
        self.logger = _logger(library, self._errors, self._warnings)

    def failure(self, what: str, remedy: str = "") -> BackendError:
        """The error for something that TensorRT did not do, with what it logged since the last.

        Args:
            what: What failed, as `cannot run the engine of encoder`.
            remedy: What mends it.
        """
        reason = "; ".join(self._errors or self._warnings) or "it gave no reason"
        self._errors.clear()
        self._warnings.clear()
        if len(reason) > _LONGEST:
            reason = reason[: _LONGEST - 3] + "..."
        return BackendError(f"{self._title} {what}: {reason}{f'; {remedy}' if remedy else ''}")


def _logger(library: Any, errors: deque[str], warnings: deque[str]) -> Any:
    severity = library.ILogger.Severity

    class Collector(library.ILogger):  # type: ignore[misc]
        """Keeps the last lines. Called from the library's own threads as well."""

        def __init__(self) -> None:
            library.ILogger.__init__(self)

        def log(self, level: Any, message: str) -> None:
            if level in (severity.INTERNAL_ERROR, severity.ERROR):
                errors.append(" ".join(message.split()))
            elif level == severity.WARNING:
                warnings.append(" ".join(message.split()))

    return Collector()
