"""Serves one engine to the driver: `python worker.py ENGINE.py VARIANT`, a JSON object per line.

Runs in the engine's own environment, where DRL is not installed, so it needs Python alone. It loads
the file ENGINE.py and calls the class `Peer` in it, which is to look like the one here. A line of
standard input is a call, such as {"call": "generate", "sources": [[3, 4]], "new": 2, "beams": 1},
and is answered by a line of standard output: {"tokens": [[5, 6]], "ms": 1.5}, or {"error": "..."}.
"""

import importlib.util
import json
import os
import re
import sys
import time
from typing import Any, Protocol


class Peer(Protocol):
    """An engine.

    Attributes:
        version: Of its library.
    """

    version: str

    def __init__(self, variant: str) -> None:
        """Import nothing heavy; `variant` is a precision or a mode."""

    def prepare(self, checkpoint: str, scratch: str) -> None:
        """Convert a Hugging Face folder; in a process before the one that generates."""

    def load(self, checkpoint: str, scratch: str, threads: int) -> None:
        """Import the library and load what `prepare` left in the folder `scratch`."""

    def generate(self, sources: list[list[int]], new: int, beams: int) -> list[list[int]]:
        """Generate exactly `new` tokens for each source; return them without the start token."""


def load_peer(file: str, variant: str) -> Peer:
    """The engine of a file."""
    spec = importlib.util.spec_from_file_location("engine", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    peer: Peer = module.Peer(variant)
    return peer


def answer(peer: Peer, call: dict[str, Any]) -> dict[str, Any]:
    """Do what a call says and return how long it took, in milliseconds, and what came of it."""
    kind = call.pop("call")
    began = time.perf_counter()
    result = getattr(peer, kind)(**call) if kind != "memory" else None
    found: dict[str, Any] = {"ms": 1e3 * (time.perf_counter() - began)}
    if kind == "generate":
        found["tokens"] = result
    if kind == "load":
        found["version"] = peer.version
    if kind == "memory":
        found["peak_bytes"] = _peak_bytes()
    return found


def main(file: str, variant: str) -> None:
    """Answer calls until standard input ends."""
    # Libraries print what they like: from here on that goes to standard error.
    replies = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    peer: Peer | None = None
    for line in sys.stdin:
        try:
            peer = peer or load_peer(file, variant)
            reply = answer(peer, json.loads(line))
        except Exception as error:  # whatever it is, the driver reports it and goes on
            words = " ".join(str(error).split())
            reply = {"error": f"{type(error).__name__}: {words}"}
        replies.write(json.dumps(reply) + "\n")


def _peak_bytes() -> int:
    try:
        with open("/proc/self/status", encoding="utf-8") as status:
            match = re.search(r"VmHWM:\s+(\d+) kB", status.read())
            return int(match.group(1)) * 1024 if match else 0
    except OSError:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
