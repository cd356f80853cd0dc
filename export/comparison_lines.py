"""How a bundle compares, as lines for people."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # PyTorch takes seconds
    from drl.export.parity import ParityReport
    from drl.export.quantization_report import QuantizationReport


def describe_parity(parity: "ParityReport") -> list[str]:
    """Return how an fp32 bundle compares with PyTorch."""
    positions = sum(path.positions for path in parity.paths)
    lines = [f"  largest difference from PyTorch, over {positions} positions:"]
    for path in parity.paths:
        absolute = f" ({path.absolute:.1e} absolute)" if path.absolute > path.drift else ""
        lines.append(f"    path {path.path:<12} logits {path.drift:.1e}{absolute}")
    routes = parity.routes
    if routes.compared:
        lines.append(
            f"  expert choices: {routes.compared} clear ones, {routes.wrong} wrong; "
            f"{routes.near_ties} near ties, {routes.flips} flipped"
        )
    return lines


def describe_quantization(report: "QuantizationReport") -> list[str]:
    """Return how a quantised bundle compares with the fp32 model and with the rounded one."""
    share = 100 * report.bytes / report.fp32_bytes
    positions = sum(path.positions for path in report.paths)
    lines = [
        f"  weights: {share:.0f} % of fp32",
        f"  predictions against the fp32 model, over {positions} positions:",
    ]
    for path in report.paths:
        clear = f", {_percent(path.clear_same, path.clear)} of clear ones" if path.clear else ""
        lines.append(
            f"    path {path.path:<12} KL {path.kl_mean:.1e} (at most {path.kl_max:.1e}), "
            f"same token {_percent(path.same, path.positions)}{clear}"
        )
    for layer in report.layers:
        flipped = _percent(layer.flips, layer.choices)
        lines.append(f"  expert choices of {layer.layer}: {flipped} flipped")
    if report.path_choices:
        same = _percent(report.path_choices_same, report.path_choices)
        lines.append(f"  path choices: {same} the same")
    worst = max(report.paths, key=lambda path: path.distance)
    lines.append(f"  distance from PyTorch with the same rounding: {worst.distance:.1e}")
    if report.accuracy is not None:
        found = report.accuracy
        lines.append(
            f"  right answers of {found.pairs}: {_percent(found.quantized, found.pairs)}, "
            f"in fp32 {_percent(found.fp32, found.pairs)}"
        )
    return lines


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / max(whole, 1):.1f} %"
