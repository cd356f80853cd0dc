"""A verification as people read it: tables, and a verdict for each backend."""

from collections.abc import Iterator

from drl.export.comparison_lines import describe_quantization
from drl.export.quantization_report import QuantizationReport
from drl.export.routes import LayerRoutes
from drl.export.verification.report import (
    BackendReport,
    Comparison,
    LayerReport,
    PathComparison,
    PlaceError,
)
from drl.export.verification.verifier import Verification
from drl.runtime.commands.common import table

_INDENT = "  "


def describe(found: Verification) -> str:
    """Return everything that is to be told, as lines."""
    lines = [_sample_line(found)]
    for report in found.backends:
        lines += ["", *_backend(report)]
    if found.quantization is not None:
        lines += ["", *_quantization(found.quantization)]
    if found.left_out:
        lines += ["", "not available here:"]
        lines += [f"{_INDENT}{name}: {reason}" for name, reason in found.left_out]
    return "\n".join(lines)


def _sample_line(found: Verification) -> str:
    sample = found.sample
    count, longest = len(sample.source_lengths), max(sample.source_lengths)
    tokens = f"1 to {longest} tokens" if count > 1 else f"{longest} tokens"
    return (
        f"reference: eager PyTorch with {found.origin}; {count} sources of {tokens}, "
        f"{sample.steps} cached steps, seed {sample.seed}"
    )


def _quantization(report: QuantizationReport) -> Iterator[str]:
    yield "ort-cpu  (rounded weights)"
    yield from describe_quantization(report)
    failures = [path.failure for path in report.paths if path.failure]
    for failure in failures:
        yield f"{_INDENT}FAILED: {failure}"
    if not failures:
        yield f"{_INDENT}passed"


def _backend(report: BackendReport) -> Iterator[str]:
    yield f"{report.backend}  ({report.description}; {report.precision})"
    yield from _comparison(report.free)
    if report.forced is not None:
        yield f"{_INDENT}with the reference's routes:"
        yield from _comparison(report.forced)
        if report.flips_alone:
            yield f"{_INDENT}with the reference's routes the logits agree: only routes differ"
    if report.layers is not None:
        yield from _layers(report, report.layers)
    if report.passed:
        yield f"{_INDENT}passed"
    for failure in report.failures:
        yield f"{_INDENT}FAILED: {failure}"
    if not report.passed and report.layers is None:
        yield f"{_INDENT}--layers tells where it begins"


def _comparison(found: Comparison) -> Iterator[str]:
    head = ("path", "largest", "mean", "relative", "KL mean", "KL max", "same token", "compared")
    yield from _indented(table([head, *map(_path_row, found.paths)], right=range(1, 8)))
    if found.routes:
        routes = ("experts of", "clear", "wrong", "near ties", "flipped", "widest margin")
        yield from _indented(table([routes, *map(_route_row, found.routes)], right=range(1, 6)))
    for path in found.paths:
        if path.kept.differ:
            yield (
                f"{_INDENT}{path.kept.differ} of {path.kept.sources} sources keep other states on "
                f"path {path.path}, whose saliencies lead by {path.kept.widest:.1e} or less"
            )
    line = f"encoder states differ by {found.encoder:.1e}"
    if found.path_choices:
        line += (
            f", path logits by {found.path_logits:.1e}; {found.path_choices_same} of "
            f"{found.path_choices} sequences take the same path"
        )
    yield f"{_INDENT}{line}"


def _path_row(path: PathComparison) -> tuple[str, ...]:
    drift = (path.largest, path.mean, path.relative)
    return (
        path.path,
        *(_size(value) if path.positions else "–" for value in drift),
        _size(path.kl_mean),
        _size(path.kl_max),
        f"{path.same}/{path.all_positions}",
        f"{path.positions}/{path.all_positions}",
    )


def _route_row(routes: LayerRoutes) -> tuple[str, ...]:
    counts = (routes.clear, routes.wrong, routes.near_ties, routes.flips)
    widest = _size(routes.widest) if routes.wrong + routes.flips else "–"
    return (routes.layer, *map(str, counts), widest)


def _layers(report: BackendReport, found: LayerReport) -> Iterator[str]:
    yield f"{_INDENT}part by part; own: for the input that the part had, drift: from the reference:"
    head = ("part", "path", "own", "drift", "other experts", "")
    parts = list(found.places)
    if found.first is not None:
        place = parts.index(found.first) + 1
        parts[place:place] = found.inside
    rows = [_part_row(report, part, part in found.inside) for part in parts]
    yield from _indented(table([head, *rows], right=(2, 3, 4)))
    if found.first is None and not report.passed:
        yield (
            f"{_INDENT}no part exceeds its limit ({report.limits.states:.1e}): small differences "
            "add up, or the graphs that tell their states do not show the mistake"
        )


def _part_row(report: BackendReport, part: PlaceError, inside: bool) -> tuple[str, ...]:
    changed = "–"
    if part.routes is not None:
        total = part.routes.clear + part.routes.near_ties
        changed = f"{part.routes.wrong + part.routes.flips}/{total}"
    mark = "<- differs" if part.exceeds(report.limits) else ""
    name = f"{_INDENT}{part.place}" if inside else part.place
    return (name, part.path, _size(part.own), _size(part.drift), changed, mark)


def _indented(text: str) -> Iterator[str]:
    for line in text.splitlines():
        yield _INDENT + line


def _size(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}"
