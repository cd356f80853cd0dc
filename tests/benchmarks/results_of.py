"""Made-up results, for tests of what is written of them."""

from drl.benchmarks.cells import Cell
from drl.benchmarks.findings import (
    CellResult,
    Comparison,
    Floor,
    FreshProcess,
    PeerCell,
    PeerInfo,
    Run,
    Spread,
    Work,
)

CELLS = tuple(
    Cell(batch, 64, 32, path, beams)
    for path in ("fast", "full")
    for beams in (1, 4)
    for batch in (1, 8)
)


def cell_result(cell: Cell, step_ms: float = 5.0) -> CellResult:
    work = Work(90e6, 6e6, 1e6, 2e6, flops=5e7, int8_ops=1e8, experts_in_use=2.5)
    return CellResult(
        cell=cell,
        first_token_ms=60.25,
        encoder_ms=50.5,
        bridge_ms=0.5,
        step_ms=Spread(step_ms, 1.5 * step_ms, 2 * step_ms),
        host_ms=0.4,
        forcing_ms=0.002,
        total_ms=cell.new * step_ms,
        tokens_per_second=1e3 * cell.batch / step_ms,
        work=work,
        floor_ms=2.5,
        reached=2.5 / step_ms,
    )


def comparison() -> Comparison:
    cells = CELLS[-4:]
    return Comparison(
        peers=(
            PeerInfo("drl", "0.1.0", "fp32", 300.0, 400_000_000, True),
            PeerInfo("Other <fp32>", "1.2", "fp32", 500.0, 600_000_000, False),
        ),
        cells=tuple(
            PeerCell(
                peer,
                cell,
                ms,
                (ms * cell.new,) * 3,
                ms / 4,
                0.9 * ms / 4,
                1.1 * ms / 4,
                agreed,
                agreed,
            )
            for peer, ms, agreed in (("drl", 4.0, None), ("Other <fp32>", 6.0, 0.75))
            for cell in cells
        ),
        skipped=("Third: not installed",),
        rounds=5,
    )


def made_up_run(name: str = "small", compared: bool = True) -> Run:
    return Run(
        name=name,
        date="2026-01-02T03:04:05+00:00",
        machine={
            "processor": "A & B <9>",
            "cores": 2,
            "hardware_threads": 4,
            "quota": None,
            "instruction_sets": ["avx2"],
            "memory": 8_000_000_000,
            "system": "Linux",
        },
        versions={"python": "3.12.1"},
        backend="ONNX Runtime 1.30, CPU, 2 threads",
        threads=2,
        bundle={
            "target": "ort-cpu",
            "precision": "fp32",
            "bytes": 242_000_000,
            "files": {"weights.bin": 40_000_000},
        },
        settings={"repeats": 5, "warm_up": 1, "varied": True, "seed": 0},
        floor=Floor(20e9, 150e9, 600e9, "somehow"),
        fresh=FreshProcess(80.0, 500.0, 300.0, 90.0, 250_000_000, 300_000_000, CELLS[0]),
        cells=tuple(cell_result(cell, 3.0 + cell.rows) for cell in CELLS),
        comparison=comparison() if compared else None,
    )
