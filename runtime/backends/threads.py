"""How many threads a backend uses, and whether they spin while they wait for each other."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from drl.runtime import machine
from drl.runtime.errors import BackendError, check_count

THREADS_VARIABLE = "DRL_THREADS"
SPIN_VARIABLE = "DRL_SPIN"
_MOST_THREADS = 1024
# A thread that gets less than this of a core shares it. On free cores it is 0.94 and more.
_FREE = 0.8


@dataclass(frozen=True)
class Threads:
    """Threads of one graph.

    Attributes:
        count: How many.
        spin: Whether they wait for the next part of a run in a loop, instead of going to sleep.
            Where the cores are free that makes small steps faster by a fifth to a quarter; where
            other processes want them, steps take twice as long. Between runs they sleep.
    """

    count: int
    spin: bool

    def __str__(self) -> str:
        count = f"{self.count} thread{'' if self.count == 1 else 's'}"
        return f"{count}, spinning" if self.spin else count


def count_threads(count: int | None = None, environ: Mapping[str, str] = os.environ) -> int:
    """`count`, or what `DRL_THREADS` says, or else `machine.default_threads()`.

    Raises:
        BackendError: The variable is no number, or the count is not possible.
    """
    if count is None:
        count = _count(environ.get(THREADS_VARIABLE, "")) or machine.default_threads()
    check_count("threads", count, _MOST_THREADS)
    return count


def choose_threads(count: int | None = None, environ: Mapping[str, str] = os.environ) -> Threads:
    """Decide on what the caller asks for, the environment says, or the machine has to give.

    Args:
        count: How many; None leaves it to `count_threads`.
        environ: The environment. `DRL_SPIN` is 1 or 0; without it the cores' share that this
            process gets is measured, for a hundredth of a second.

    Raises:
        BackendError: A variable has another kind of value, or the count is not possible.
    """
    count = count_threads(count, environ)
    said = environ.get(SPIN_VARIABLE, "")
    if said not in ("", "0", "1"):
        raise BackendError(f"{SPIN_VARIABLE}={said} must be 1 or 0, or not be set")
    if said or count == 1:
        return Threads(count, said == "1")
    return Threads(count, machine.share_of_cores(count) >= _FREE)


def _count(said: str) -> int | None:
    if not said:
        return None
    if not said.isdecimal() or len(said) > 4 or not 1 <= int(said) <= _MOST_THREADS:
        raise BackendError(f"{THREADS_VARIABLE}={said} must be a number from 1 to {_MOST_THREADS}")
    return int(said)
