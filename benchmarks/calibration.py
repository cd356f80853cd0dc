"""The cost model of a bundle's paths: measured, fitted, and written beside its graphs."""

import datetime
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from drl.benchmarks.cells import Cell, sweep
from drl.benchmarks.findings import CellResult
from drl.benchmarks.markdown import Row, markdown_table, number
from drl.benchmarks.measure import Settings, measure
from drl.benchmarks.system import describe_machine, versions
from drl.runtime.backends import open_backend, parse_device
from drl.runtime.backends.threads import count_threads
from drl.runtime.bundle import Bundle
from drl.runtime.costs import COSTS_NAME, FORMAT, FORMAT_VERSION

_SOURCES = (4, 16, 64, 192)
_NEWS = (2, 8, 32)


@dataclass(frozen=True)
class Fit:
    """Milliseconds = alpha + beta * source tokens + gamma * new tokens, by least squares.

    Attributes:
        alpha_ms, beta_ms, gamma_ms: The coefficients.
        residual_ms: Root mean square of measured minus predicted times.
        worst: Largest such difference, relative to the measured time.
        cells: How many were measured.
    """

    alpha_ms: float
    beta_ms: float
    gamma_ms: float
    residual_ms: float
    worst: float
    cells: int


def fit(results: Sequence[CellResult]) -> Fit:
    """Fit the whole call's median time over cells of one path.

    Cells weigh by the inverse of their time: what matters is the relative error, and a long
    request's noise must not outweigh a short one's whole time.
    """
    rows = np.array([(1.0, each.cell.source, each.cell.new) for each in results])
    times = np.array([each.total_ms for each in results])
    weights = 1.0 / times
    found, *_ = np.linalg.lstsq(rows * weights[:, None], times * weights, rcond=None)
    missed = times - rows @ found
    alpha, beta, gamma = (float(value) for value in found)
    residual = float(np.sqrt(np.mean(missed**2)))
    return Fit(alpha, beta, gamma, residual, float(np.max(np.abs(missed) / times)), len(times))


def calibration_cells(bundle: Bundle) -> list[Cell]:
    """What is measured: single requests on every path, of lengths within the model's limits."""
    limits = bundle.manifest.limits
    sources = sorted({min(length, limits.max_source_length) for length in _SOURCES})
    news = sorted({min(length, limits.max_target_length) for length in _NEWS})
    return sweep(bundle.manifest, (1,), sources, news, (), (1,))


def calibrate(
    bundle: Bundle,
    threads: int | None = None,
    repeats: int = 5,
    device: str = "cpu",
    progress: Callable[[str], None] = lambda _: None,
) -> str:
    """Measure the paths of a bundle, write `costs.json` into it, and return a table of the fits.

    Args:
        bundle: The bundle, which is written to.
        threads: Threads of the backend; None leaves it to `count_threads`.
        repeats: Timed rounds.
        device: What the backend runs on.
        progress: Told of every round.
    """
    kind, _ = parse_device(device)
    threads = count_threads(threads if kind == "cpu" else threads or 1)
    backend = open_backend(bundle, device, threads)
    try:
        cells = calibration_cells(bundle)
        measured = measure(bundle, backend, cells, Settings(repeats=repeats), progress)
    finally:
        backend.close()
    fits = {
        path.name: fit([result for result, _ in measured if result.cell.path == path.name])
        for path in bundle.manifest.paths
    }
    document = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": kind,
        "threads": threads,
        "machine": describe_machine(),
        "versions": versions(),
        "batch": 1,
        "paths": {name: vars(each) for name, each in fits.items()},
    }
    target = bundle.folder / COSTS_NAME
    partial = target.with_suffix(".partial")
    partial.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, target)
    return f"{describe(fits)}\n\n{target}"


def describe(fits: dict[str, Fit]) -> str:
    """A table of fits."""
    head = ["path", "alpha ms", "beta ms per source token", "gamma ms per new token"]
    rows: list[Row] = [[*head, "residual ms", "worst", "cells"]]
    for name, each in fits.items():
        values = (each.alpha_ms, each.beta_ms, each.gamma_ms, each.residual_ms)
        shown = [number(value) if value >= 0 else f"{value:.2f}" for value in values]
        rows.append([name, *shown, f"{each.worst:.0%}", str(each.cells)])
    return markdown_table(rows, right=range(1, 7))
