"""Loads a bundle and generates once, as `python -m` with BUNDLE DEVICE THREADS 0|1 CELL.

Nothing is imported here before the clock runs but what Python has itself.
"""

import json
import sys
import time
from typing import Any


def main(folder: str, device: str, threads: int, verify: bool, described: dict[str, Any]) -> None:
    """Print times in milliseconds and sizes in bytes as JSON.

    Args:
        folder: The bundle.
        device: What to run on.
        threads: Threads of the backend.
        verify: Whether to compare every file's SHA-256.
        described: Fields of the `Cell` to generate.
    """
    began = time.perf_counter()
    from drl.runtime import Engine

    imported = time.perf_counter()
    # Its rows are known before `Cell` is imported, which is no part of loading.
    rows = described["batch"] * described["beams"]
    engine = Engine.from_bundle(folder, device, threads, rows, verify_hashes=verify)
    loaded = time.perf_counter()
    from drl.benchmarks.cells import Cell, random_sources
    from drl.benchmarks.measure import config_of
    from drl.benchmarks.subprocesses import resident_bytes

    loaded_bytes, _ = resident_bytes()
    cell = Cell(**described)
    sources = random_sources(cell, engine.bundle.manifest.limits.vocab_size, seed=0)
    prepared = time.perf_counter()
    engine.generate(sources, config_of(cell), path=cell.path)
    done = time.perf_counter()
    result = {
        "import_ms": 1e3 * (imported - began),
        "load_ms": 1e3 * (loaded - imported),
        "first_result_ms": 1e3 * (done - prepared),
        "loaded_bytes": loaded_bytes,
        "peak_bytes": resident_bytes()[1],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    bundle, device, threads, verify, cell = sys.argv[1:]
    main(bundle, device, int(threads), verify == "1", json.loads(cell))
