"""Results as Markdown tables, which also read well on a terminal."""

from collections.abc import Sequence
from typing import Any

from drl.benchmarks.findings import CellResult, Comparison, FreshProcess, PeerCell, Run
from drl.benchmarks.targets import target_rows
from drl.runtime.commands.common import file_size

Row = Sequence[str]

GOALS_TITLE = "Goals: source 64, 64 new tokens"

NOTES = (
    "Every source is random tokens, and every row of every decoder step reads a random token, so "
    "that routed models use their experts as varied text makes them. Cells take turns in an order "
    "that changes from round to round.",
    "*first token*: from the call to the end of the first decoder step. *step*: from the end of "
    "one decoder step to the end of the next, the host's work included; percentiles over all steps "
    "of all rounds. *host*: what of a step is spent outside the decoder's graph.",
    "*reads*: weights that the path's layers and the head read whatever the tokens, weights of the "
    "experts that were in use (counted in an untimed generation), keys and values of the tokens "
    "before and of the encoder states that the path keeps. *limit*: the time for reading that at "
    "the machine's bandwidth, or for the products with weights at its peak, whichever is longer.",
)
"""How numbers are to be read: a paragraph each."""

PEERS_NOTE = (
    "Each engine runs in a process of its own and all take turns on the same sources, greedy or "
    "with beams as they choose tokens themselves. A turn is one call that is not counted and as "
    "many more as half a second takes, at least one, of which the median counts. *ms per token*: "
    "the whole call, encoder included, over the new tokens of a source. In brackets its ratio to "
    "the first: the median of the rounds' ratios, and their 10th to 90th percentile. *same "
    "tokens*: share of the greedy results that equal the first's token for token; in brackets the "
    "mean share of tokens before the first difference."
)


def markdown(runs: Sequence[Run], with_goals: bool = False) -> str:
    """A document of all runs; with this project's goals where they are of the bundles for that."""
    parts = [_run(run) for run in runs]
    if with_goals:
        parts.insert(0, f"## {GOALS_TITLE}\n\n" + markdown_table(target_rows(runs), right=(2, 3)))
    varied = all(run.settings.get("varied", True) for run in runs)
    notes = NOTES if varied else NOTES[1:]
    parts.append("## How to read this\n\n" + "\n\n".join(notes))
    return "\n\n".join(parts) + "\n"


def markdown_table(rows: Sequence[Row], right: Sequence[int]) -> str:
    """A table whose first row is its head, aligned so that its text can be read as it is."""
    widths = [max(3, *(len(cell) for cell in column)) for column in zip(*rows, strict=True)]

    def line(row: Row) -> str:
        cells = [
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return f"| {' | '.join(cells)} |"

    rule = [
        "-" * (width - 1) + ":" if index in right else "-" * width
        for index, width in enumerate(widths)
    ]
    head, *body = rows
    return "\n".join([line(head), f"| {' | '.join(rule)} |", *(line(row) for row in body)])


def machine_line(run: Run) -> str:
    """Date, processor, libraries and threads, in one sentence."""
    machine: Any = run.machine
    cores = f"{machine['cores']} core{'' if machine['cores'] == 1 else 's'}"
    sets = " ".join(machine["instruction_sets"]) or "unknown instruction sets"
    day = run.date.replace("T", " ").split("+")[0]
    return f"{day} UTC; {machine['processor']}, {cores} ({sets}); {run.backend}"


def floor_line(run: Run) -> str:
    """What the machine does at best."""
    if run.floor is None:
        return ""
    floor = run.floor
    rates = (floor.bytes_per_second, floor.flops_per_second, floor.int8_ops_per_second)
    read, flops, ops = (rate / 1e9 for rate in rates)
    return f"{read:.1f} GB/s read, {flops:.0f} GFLOP/s, {ops:.0f} int8 GOP/s ({floor.how})"


def cell_rows(cells: Sequence[CellResult]) -> list[Row]:
    """The sweep, with a head."""
    head = ["path", "search", "batch", "source", "new", "first token ms", "encoder ms"]
    head += ["step ms p50", "p90", "p99", "host ms", "tokens/s", "reads MB", "limit ms"]
    rows: list[Row] = [[*head, "of limit"]]
    for each in cells:
        cell, step = each.cell, each.step_ms
        row = [cell.path, cell.search, str(cell.batch), str(cell.source), str(cell.new)]
        row += [number(each.first_token_ms), number(each.encoder_ms), number(step.p50)]
        row += [number(step.p90), number(step.p99), f"{each.host_ms:.2f}"]
        row += [number(each.tokens_per_second)]
        if each.work is None or each.floor_ms is None or each.reached is None:
            row += ["", "", ""]
        else:
            row += [number(each.work.bytes / 1e6), number(each.floor_ms), f"{each.reached:.0%}"]
        rows.append(row)
    return rows


def fresh_rows(fresh: FreshProcess, size: int) -> list[Row]:
    """Load time, memory and size, with a head."""
    head = ["import ms", "load ms", "load without hashing ms", "first result ms", "resident"]
    loads = (fresh.import_ms, fresh.load_ms, fresh.load_unverified_ms, fresh.first_result_ms)
    sizes = (fresh.loaded_bytes, fresh.peak_bytes, size)
    return [
        [*head, "at its peak", "on disk"],
        [*(number(value) for value in loads), *(file_size(value) for value in sizes)],
    ]


def peer_rows(comparison: Comparison) -> list[Row]:
    """Peers against cells, with a head."""
    cells = list(dict.fromkeys(each.cell for each in comparison.cells))
    places = [f"{cell.search}, batch {cell.batch}" for cell in cells]
    if len(set(places)) < len(places):
        pairs = zip(places, cells, strict=True)
        places = [f"{place}, {cell.source} to {cell.new}" for place, cell in pairs]
    head = ["", "precision", *(f"{place}, ms per token" for place in places)]
    rows: list[Row] = [[*head, "same tokens", "load ms", "peak memory"]]
    first = comparison.peers[0].name
    for peer in comparison.peers:
        found = {each.cell: each for each in comparison.cells if each.peer == peer.name}
        row = [f"{peer.name} {peer.version}", peer.precision]
        for cell in cells:
            each = found.get(cell)
            row.append("" if each is None else f"{number(each.token_ms)}{_ratio(each, first)}")
        shares = [(e.agreement, e.common) for e in found.values() if e.agreement is not None]
        equal = [share for share, _ in shares]
        common = [share for _, share in shares if share is not None]
        agreed = f"{_mean(equal):.0%} ({_mean(common):.0%})" if shares else ""
        rows.append([*row, agreed, number(peer.load_ms), file_size(peer.peak_bytes)])
    return rows


def number(value: float) -> str:
    """Three significant digits, and all digits before the point."""
    if value >= 100 or value == 0:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _run(run: Run) -> str:
    about = f"{run.bundle['target']}, {run.bundle['precision']}"
    parts = [f"## {run.name} ({about})", f"{machine_line(run)}."]
    if run.floor is not None:
        parts.append(f"The machine's limit: {floor_line(run)}.")
    if run.fresh is not None:
        rows = fresh_rows(run.fresh, run.bundle["bytes"])
        parts.append(markdown_table(rows, right=range(7)))
    if run.cells:
        parts.append(markdown_table(cell_rows(run.cells), right=range(2, 15)))
    if run.comparison is not None:
        parts.append("### Peers")
        parts.append(PEERS_NOTE)
        rows = peer_rows(run.comparison)
        parts.append(markdown_table(rows, right=range(2, len(rows[0]))))
        parts += [f"Skipped: {line}." for line in run.comparison.skipped]
    return "\n\n".join(parts)


def _ratio(each: PeerCell, first: str) -> str:
    """The ratio to the first engine in brackets; nothing for that one."""
    if each.peer == first:
        return ""
    low, high = each.ratio_p10, each.ratio_p90
    return f" ({each.ratio:.2f}x, {low:.2f}-{high:.2f})"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
