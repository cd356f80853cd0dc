"""What came of a comparison: numbers, and which of them are failures."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from drl.export.routes import LayerRoutes
from drl.export.verification.limits import Limits


@dataclass(frozen=True)
class KeptStates:
    """Which encoder states a path keeps by their saliency; all of them without a path router.

    Attributes:
        sources: Sources compared.
        differ: How many of them keep other states.
        widest: The largest lead, of the last saliency that the reference keeps over the least of
            those kept, where they differ; relative to the largest saliency where that exceeds 1.
            Infinite where a backend tells no saliencies.
    """

    sources: int
    differ: int = 0
    widest: float = 0.0


@dataclass(frozen=True)
class PathComparison:
    """One path, over a prefill and cached steps after it.

    Drift and clear predictions are of the rows that kept the same states and took the reference's
    routes so far; other predictions are of all rows.

    Attributes:
        path: Its name.
        positions: Logit vectors of the drift.
        step_positions: Those of them that are of cached steps.
        all_positions: Logit vectors of the predictions.
        all_step_positions: Those of them that are of cached steps.
        largest: Largest difference of a logit.
        mean: Mean difference of logits.
        relative: Largest difference, relative where logits exceed 1. This one decides.
        kl_mean: Mean KL divergence of the predictions from the reference's, in nats.
        kl_max: The largest.
        same: Positions whose likeliest token is the reference's.
        clear: Positions of the drift whose likeliest token leads by 0.1 in the reference.
        clear_same: How many of them have that token.
        routes: Of the decoder's sparse layers on the path.
        kept: The encoder states that the decoder gets to see.
        ranking: Largest difference of a normaliser or candidate from those of the backend's own
            logits, relative likewise; infinite where candidates are not the likeliest tokens.
    """

    path: str
    positions: int
    step_positions: int
    all_positions: int
    all_step_positions: int
    largest: float
    mean: float
    relative: float
    kl_mean: float
    kl_max: float
    same: int
    clear: int
    clear_same: int
    routes: tuple[LayerRoutes, ...]
    kept: KeptStates
    ranking: float

    def failures(self, limits: Limits) -> Iterator[str]:
        """Yield what exceeds the limits, or was not compared, for people."""
        if not self.positions or (self.all_step_positions and not self.step_positions):
            what = "no cached step" if self.positions else "nothing"
            yield (
                f"{what} is left to compare on path {self.path}: every row took other experts or "
                "states before; give more sources with --batch"
            )
        if self.positions and not self.relative <= limits.logits:  # NaN fails
            yield (
                f"logits of path {self.path} differ by {self.relative:.1e} "
                f"(limit {limits.logits:.1e})"
            )
        if self.clear_same < limits.same * self.clear:
            yield (
                f"{self.clear - self.clear_same} of {self.clear} clear predictions of path "
                f"{self.path} are other tokens (limit {1 - limits.same:.0%})"
            )
        if not self.ranking <= limits.logits:
            yield (
                f"normalisers or candidates of path {self.path} are not those of its logits: "
                f"they differ by {self.ranking:.1e} (limit {limits.logits:.1e})"
            )
        if not self.kept.widest <= limits.kept:
            yield (
                f"{self.kept.differ} of {self.kept.sources} sources keep other states on path "
                f"{self.path} where saliencies are clear, by up to {self.kept.widest:.1e} "
                f"(limit {limits.kept:.1e})"
            )


@dataclass(frozen=True)
class Comparison:
    """A backend against the reference.

    Attributes:
        encoder: Largest difference of an encoder state, relative where states exceed 1.
        encoder_routes: Of the encoder's sparse layers.
        path_logits: Largest difference of a path logit, relative likewise; 0 without a router, and
            infinite where a backend tells none.
        path_choices: Sequences that a path router chose for.
        path_choices_same: How many of them take the reference's path.
        paths: One entry per path.
    """

    encoder: float
    encoder_routes: tuple[LayerRoutes, ...]
    path_logits: float
    path_choices: int
    path_choices_same: int
    paths: tuple[PathComparison, ...]

    @property
    def routes(self) -> tuple[LayerRoutes, ...]:
        """Of every sparse layer, over all paths, in the order of the model."""
        found: dict[str, LayerRoutes] = {r.layer: r for r in self.encoder_routes}
        for path in self.paths:
            for route in path.routes:
                found[route.layer] = found.get(route.layer, LayerRoutes(route.layer)) + route
        return tuple(sorted(found.values(), key=lambda route: _place(route.layer)))

    def failures(self, limits: Limits) -> list[str]:
        """Say what exceeds the limits, for people."""
        found = [text for path in self.paths for text in path.failures(limits)]
        if not self.path_logits <= limits.logits:
            found.append(
                f"path logits differ by {self.path_logits:.1e} (limit {limits.logits:.1e})"
            )
        for route in self.routes:
            if not route.widest <= limits.margin:
                found.append(
                    f"{route.layer} takes other experts where the choice is clear, by a margin of "
                    f"up to {route.widest:.1e} (limit {limits.margin:.1e})"
                )
        return found


@dataclass(frozen=True)
class PlaceError:
    """What one part of the model computes of the inputs that it had.

    Attributes:
        place: The part, such as `decoder.layers.1` or, looked at closely, its `ffn`.
        path: The path that it ran on; empty in the encoder.
        own: How far its output is from the reference's for the same input, relative to the
            largest one where that exceeds 1.
        drift: How far it is from the reference's for the reference's input.
        routes: Its choices of experts against the reference's for the same input.
    """

    place: str
    path: str
    own: float
    drift: float
    routes: LayerRoutes | None = None

    def exceeds(self, limits: Limits) -> bool:
        """Whether it computes something else than the reference."""
        return not self.own <= limits.states or self.misroutes(limits)

    def misroutes(self, limits: Limits) -> bool:
        """Whether it chooses other experts where the choice is clear."""
        return self.routes is not None and not self.routes.widest <= limits.margin


@dataclass(frozen=True)
class LayerReport:
    """Every part of the model in the order in which they run.

    Attributes:
        places: The encoder's, then for each path the bridge's and the decoder's.
        first: The first that exceeds the limits, if one does.
        inside: The parts of that layer, if it is one.
    """

    places: tuple[PlaceError, ...]
    first: PlaceError | None
    inside: tuple[PlaceError, ...]

    def culprit(self, limits: Limits) -> PlaceError | None:
        """The smallest part known to exceed the limits."""
        return next((part for part in self.inside if part.exceeds(limits)), self.first)


@dataclass(frozen=True)
class BackendReport:
    """One backend.

    Attributes:
        backend: Its name on the command line.
        description: The library and device.
        precision: What it computes in.
        limits: What it may differ by.
        free: With its own routes.
        forced: With the reference's routes, where asked for.
        layers: Layer by layer, where asked for.
    """

    backend: str
    description: str
    precision: str
    limits: Limits
    free: Comparison
    forced: Comparison | None = None
    layers: LayerReport | None = None

    @property
    def failures(self) -> tuple[str, ...]:
        """What exceeds the limits, for people; empty if nothing."""
        found = self.free.failures(self.limits)
        if self.forced is not None:
            found += [
                f"with the reference's routes, {text}" for text in self.forced.failures(self.limits)
            ]
        if self.layers is not None and self.layers.first is not None:
            found.append(self._culprit(self.layers))
        return tuple(found)

    @property
    def passed(self) -> bool:
        """Whether everything is within the limits."""
        return not self.failures

    @property
    def flips_alone(self) -> bool:
        """Whether experts or states that differ are all that is wrong: forced ones mend it."""
        if self.forced is None or not self.free.failures(self.limits):
            return False
        return all(path.relative <= self.limits.logits for path in self.forced.paths)

    def _culprit(self, layers: LayerReport) -> str:
        part = layers.culprit(self.limits)
        assert part is not None
        where = f" on path {part.path}" if part.path else ""
        text = f"{part.place} is the first part that differs{where}: "
        if part.misroutes(self.limits):
            assert part.routes is not None
            total = part.routes.clear + part.routes.near_ties
            changed = part.routes.wrong + part.routes.flips
            return f"{text}it sends {changed} of {total} tokens to other experts than the reference"
        return (
            f"{text}it is {part.own:.1e} away from the reference for the same input "
            f"(limit {self.limits.states:.1e})"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, numbers rounded to three digits."""
        document = {"passed": self.passed, "failures": list(self.failures)} | asdict(self)
        plain: dict[str, Any] = _plain(document)
        return plain


def _place(layer: str) -> tuple[bool, int]:
    stack, _, index = layer.split(".")
    return stack == "decoder", int(index)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        # JSON has no word for infinity
        return float(f"{value:.3g}") if abs(value) < float("inf") else None
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
