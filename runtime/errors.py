"""The exceptions of DRL: one root, and one class per kind of mistake a caller may want to catch.

A message is one line. It says what failed, why, and the change or command that mends it. Commands
print it after `error: ` and exit with status 1; everything that is not a `DrlError` is a bug and
keeps its traceback.
"""

from collections.abc import Collection


class DrlError(Exception):
    """Root of every error that DRL raises on purpose."""


class BundleError(DrlError):
    """A bundle is missing, damaged, of a newer format, or not a bundle at all."""


class RequestError(DrlError):
    """A request cannot be served: its text, token ids, path, limits or options are wrong."""


class BackendError(DrlError):
    """An inference library is missing, too old, or failed to load or run a graph."""


class CheckpointError(DrlError):
    """A checkpoint cannot be read, or does not hold the tensors that its configuration names."""


class ConfigError(CheckpointError):
    """A checkpoint's configuration has unknown fields or contradicts itself."""


class ExportError(DrlError):
    """A bundle cannot be written, or does not reproduce the checkpoint."""


def shorten(value: object) -> str:
    """A wrong value as messages show it, whatever its length."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to write integers of thousands of digits
        text = "a number of thousands of digits"
    return text if len(text) <= 40 else text[:37] + "..."


def nearest_name(name: str, known: Collection[str]) -> str | None:
    """The known name that was probably meant, if one is near."""
    import difflib  # only now: it takes longer to import than most of this package

    return next(iter(difflib.get_close_matches(name, known, 1)), None)


def check_count(name: str, value: object, most: int | None = None) -> None:
    """Raise `BackendError` unless `value` is an integer of at least 1 and at most `most`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise BackendError(f"{name} must be at least 1, an integer, not {shorten(value)}")
    if most is not None and value > most:
        raise BackendError(f"{name} must be at most {most}, not {shorten(value)}")
