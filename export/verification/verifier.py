"""The recipe of a verification: the reference, what it computes, and each backend beside it."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from drl.export.model import DualRouterModel, Route
from drl.export.passes.force_routes import ForceRoutes
from drl.export.passes.tap_layers import TapLayers
from drl.export.quantization_report import QuantizationReport
from drl.export.verification.candidate import Candidate
from drl.export.verification.candidates import candidates
from drl.export.verification.comparison import compare_backend
from drl.export.verification.graph_backend import GraphBackend
from drl.export.verification.layers import compare_layers
from drl.export.verification.limits import LIMITS, Limits
from drl.export.verification.options import VerifyOptions
from drl.export.verification.quantized import compare_rounded
from drl.export.verification.reference import open_reference
from drl.export.verification.report import BackendReport, Comparison
from drl.export.verify import Expectation, Sample, expect
from drl.runtime.backends import Backend
from drl.runtime.bundle import Bundle
from drl.runtime.errors import BackendError, DrlError

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Verification:
    """What a verification found.

    Attributes:
        origin: Where the reference is from, for people.
        sample: The inputs.
        backends: One entry per backend of an fp32 bundle.
        quantization: Of a bundle with rounded weights.
        left_out: Backends that are not available here, with the reasons.
    """

    origin: str
    sample: Sample
    backends: tuple[BackendReport, ...] = ()
    quantization: QuantizationReport | None = None
    left_out: tuple[tuple[str, str], ...] = ()

    @property
    def passed(self) -> bool:
        """Whether everything is within its limits."""
        rounded = self.quantization is None or self.quantization.passed
        return rounded and all(report.passed for report in self.backends)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        rounded = self.quantization
        return {
            "passed": self.passed,
            "reference": self.origin,
            "sample": asdict(self.sample),
            "backends": [report.to_dict() for report in self.backends],
            "quantization": None if rounded is None else rounded.to_dict(),
            "left_out": dict(self.left_out),
        }


def verify(
    bundle: Bundle, options: VerifyOptions, progress: Progress = lambda _: None
) -> Verification:
    """Compare backends with the eager model.

    Args:
        bundle: The bundle.
        options: What to compare.
        progress: Told of every stage as it begins.

    Raises:
        BackendError: A backend that was asked for is not available, or fails to run.
        BundleError: The bundle lacks what is needed.
        CheckpointError: The checkpoint is unusable, or that of another model.
        ExportError: The options do not fit the bundle, or a backend's graphs cannot be made.
    """
    sample = _sample(bundle, options)
    if bundle.manifest.precision != "fp32":
        progress("rounded")
        report = compare_rounded(bundle, options, sample)
        return Verification(str(options.checkpoint), sample, quantization=report)
    chosen, left_out = _choose(bundle, options.backends)
    progress("reference")
    reference = open_reference(bundle, options.checkpoint)
    expected = expect(reference.model, sample)
    reports = []
    for candidate in chosen:
        progress(candidate.name)
        try:
            reports.append(_compare(candidate, reference.model, expected, options))
        finally:
            candidate.close()
    return Verification(reference.origin, sample, tuple(reports), left_out=tuple(left_out))


def _sample(bundle: Bundle, options: VerifyOptions) -> Sample:
    limits = bundle.manifest.limits
    longest = min(options.source, limits.max_source_length)
    last = max(options.batch - 1, 1)
    spread = (1 + (longest - 1) * row // last for row in range(options.batch - 1))
    return Sample((*spread, longest), options.steps, options.seed)


def _choose(bundle: Bundle, names: Sequence[str]) -> tuple[list[Candidate], list[tuple[str, str]]]:
    """Return the backends to compare, and those that are not available with the reasons.

    Raises:
        DrlError: One that was asked for is not available, or none is.
    """
    known = candidates(bundle)
    chosen, left_out = [], []
    for name in names or known:
        try:
            known[name].check()
        except DrlError as error:
            if names:
                raise type(error)(f"{name} is not available: {error}") from error
            left_out.append((name, str(error)))
        else:
            chosen.append(known[name])
    if not chosen:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out)
        raise BackendError(f"no backend is available here: {reasons}")
    return chosen, left_out


def _compare(
    candidate: Candidate, model: DualRouterModel, expected: Expectation, options: VerifyOptions
) -> BackendReport:
    backend = candidate.open()
    precision = candidate.precision
    limits = _limits(precision, options)
    try:
        _check_sizes(backend, expected)
        free = compare_backend(expected, backend)
    finally:
        backend.close()
    report = BackendReport(candidate.name, backend.name, precision, limits, free)
    if options.force_routes and model.config.routes_tokens:
        forced = _compare_forced(candidate.open_with([ForceRoutes()]), expected)
        report = replace(report, forced=forced)
    if options.layers:

        def tapped(places: Collection[str]) -> GraphBackend:
            return candidate.open_with([TapLayers(places)])

        report = replace(report, layers=compare_layers(model, expected, tapped, limits))
    return report


def _check_sizes(backend: Backend, expected: Expectation) -> None:
    """Refuse inputs that a backend does not take. Raises `BackendError`."""
    (rows, length), positions = expected.source.shape, expected.tokens[0].shape[1]
    limits = backend.limits
    for needed, limit, what, option in (
        (rows, limits.rows, "sources", "--batch"),
        (length, limits.source_length, "tokens of a source", "--source"),
        (positions, limits.target_length, "positions", "--steps"),
    ):
        if limit is not None and needed > limit.most:
            raise BackendError(
                f"{backend.name} takes {limit.most} {what}, and the comparison has {needed}; give "
                f"a smaller {option}, or {limit.remedy}"
            )


def _limits(precision: str, options: VerifyOptions) -> Limits:
    usual = LIMITS[precision]
    return replace(usual, logits=options.tolerances.get(precision, usual.logits))


def _compare_forced(backend: GraphBackend, expected: Expectation) -> Comparison:
    """Compare once more, with the routes that the reference took."""

    def force(routes: Sequence[Route]) -> None:
        backend.routes = {
            route.layer: (route.expert_ids.numpy(), route.gates.numpy()) for route in routes
        }

    try:
        return compare_backend(expected, backend, before=force)
    finally:
        backend.close()
