"""Load time and memory of a bundle, in processes that do nothing else."""

import json
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

from drl.benchmarks.cells import Cell
from drl.benchmarks.findings import FreshProcess
from drl.benchmarks.subprocesses import run_module


def measure_fresh(
    folder: Path, cell: Cell, threads: int, device: str = "cpu", repeats: int = 3
) -> FreshProcess:
    """Start `repeats` processes that load a bundle with its hashes checked, and as many without.

    The files are in the system's cache from the second process on, as they are for a server that
    starts again; the medians leave the first one out of account.

    Raises:
        BenchmarkError: A process failed.
    """
    described = json.dumps(asdict(cell))
    found: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for _ in range(repeats):
        for verify, results in found.items():
            arguments = [folder, device, threads, int(verify), described]
            results.append(run_module("drl.benchmarks.cold_start", arguments, threads))

    def median(name: str, verify: bool = True) -> float:
        return statistics.median(float(result[name]) for result in found[verify])

    return FreshProcess(
        import_ms=median("import_ms"),
        load_ms=median("load_ms"),
        load_unverified_ms=median("load_ms", verify=False),
        first_result_ms=median("first_result_ms"),
        loaded_bytes=int(median("loaded_bytes")),
        peak_bytes=int(median("peak_bytes")),
        cell=cell,
    )
