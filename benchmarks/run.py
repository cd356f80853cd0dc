"""Everything that is measured of one bundle, put together."""

import datetime
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from drl.benchmarks.cells import Cell
from drl.benchmarks.findings import CellResult, Floor, Run
from drl.benchmarks.floor import measure_floor
from drl.benchmarks.fresh_process import measure_fresh
from drl.benchmarks.measure import Settings, measure
from drl.benchmarks.system import describe_machine, versions
from drl.benchmarks.work import Weight, count_work, read_weights
from drl.runtime.backends import open_backend, parse_device
from drl.runtime.backends.threads import count_threads
from drl.runtime.bundle import Bundle


def run(
    bundle: Bundle,
    cells: Sequence[Cell],
    settings: Settings,
    *,
    threads: int | None = None,
    device: str = "cpu",
    surroundings: bool = True,
    progress: Callable[[str], None] = lambda _: None,
) -> Run:
    """Measure a bundle.

    Args:
        bundle: What to measure.
        cells: From `sweep`.
        settings: How.
        threads: Threads of the backend; None leaves it to `count_threads`.
        device: What the backend runs on.
        surroundings: Whether to measure the machine's floor, load time and memory as well, in
            processes of their own. The floor is the processor's, so only the CPU has one.
        progress: Told of every stage.

    Raises:
        BenchmarkError: A process failed, or `onnx` is missing to count a step's work.
        BackendError: The backend does not load the bundle.
    """
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    kind, _ = parse_device(device)
    # On a GPU the host has little to do, and threads that wait for each other hold it up.
    threads = count_threads(threads if kind == "cpu" else threads or 1)
    floor = fresh = None
    weights: list[Weight] = []
    backend = open_backend(bundle, device, threads)  # first, as it may refuse the bundle
    try:
        name = backend.name
        if surroundings and kind == "cpu":
            weights = read_weights(bundle)
            progress("the machine's floor")
            floor = measure_floor(threads)
        if surroundings:
            progress("load time and memory")
            fresh = measure_fresh(bundle.folder, cells[0], threads, device)
        found = measure(bundle, backend, cells, settings, progress)
    finally:
        backend.close()
    if floor is None:
        results = [result for result, _ in found]
    else:
        results = [_against(floor, bundle, weights, *each) for each in found]
    return Run(
        name=bundle.folder.resolve().name,
        date=date,
        machine=describe_machine(),
        versions=versions(),
        backend=name,
        threads=threads,
        bundle=_describe(bundle),
        settings=vars(settings).copy(),
        floor=floor,
        fresh=fresh,
        cells=tuple(results),
    )


def _against(
    floor: Floor,
    bundle: Bundle,
    weights: list[Weight],
    result: CellResult,
    experts_in_use: float | None,
) -> CellResult:
    work = count_work(bundle, weights, result.cell, experts_in_use)
    least = floor.milliseconds(work)
    return replace(result, work=work, floor_ms=least, reached=least / result.step_ms.p50)


def _describe(bundle: Bundle) -> dict[str, Any]:
    manifest = bundle.manifest
    return {
        "target": manifest.target,
        "precision": manifest.precision,
        "bytes": bundle.size,
        "files": {name: info.bytes for name, info in manifest.files.items()},
        "paths": [{**vars(path), "layers": list(path.layers)} for path in manifest.paths],
    }
