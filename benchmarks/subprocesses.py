"""Runs a module of the benchmarks in a process of its own and reads its answer."""

import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drl.benchmarks.errors import BenchmarkError

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def run_module(module: str, arguments: Sequence[object], threads: int) -> Any:
    """Run `python -m module arguments` and return the JSON that it prints.

    Args:
        module: The module's name.
        arguments: Of its command line.
        threads: What BLAS and OpenMP libraries may use there.

    Raises:
        BenchmarkError: The process failed; the message has its last line.
    """
    command = [sys.executable, "-m", module, *(str(argument) for argument in arguments)]
    # The child must find the packages that this process found, however they were given to it.
    path = os.pathsep.join(entry for entry in sys.path if entry)
    limits = dict.fromkeys(_THREADS, str(threads))
    environment = {**os.environ, **limits, "PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise BenchmarkError(f"{module} failed: {last.removeprefix('error: ')}")
    return json.loads(done.stdout.splitlines()[-1])


def resident_bytes() -> tuple[int, int]:
    """Resident memory of this process now, and the largest so far.

    On Linux the largest is counted from the start of the program, not of the process that became
    it. Elsewhere both are the largest.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return peak, peak
    sizes = dict(re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB", status, re.MULTILINE))
    return int(sizes["VmRSS"]) * 1024, int(sizes["VmHWM"]) * 1024
