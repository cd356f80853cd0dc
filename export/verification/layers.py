"""Find the first part of a model that computes something else: every part on its own inputs.

A backend's graphs tell the states that their parts hand on. The eager model runs each part on the
states that the backend's part read, and on its routes and caches: what differs then is the part's
own doing, and what came before it is no excuse. All layers are looked at first; the first that
differs is looked into.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from drl.export.model import DualRouterModel, ModelConfig
from drl.export.model.attention import MASKED
from drl.export.model.decoder import CrossMemory
from drl.export.model.dual_router import Encoded
from drl.export.model.path_router import keep_counts
from drl.export.parity import relative_difference
from drl.export.passes.tap_layers import EMBEDDING
from drl.export.routes import RouteTally
from drl.export.verification.comparison import host_floats
from drl.export.verification.eager_states import NORM, SUBLAYERS, EagerStates, forced_routes
from drl.export.verification.graph_backend import GraphBackend
from drl.export.verification.limits import Limits
from drl.export.verification.report import LayerReport, PlaceError
from drl.export.verify import Expectation, encode, replay
from drl.runtime.arrays import Float32
from drl.runtime.backends import CrossAttention, Encoding
from drl.runtime.errors import BackendError

Tapped = Callable[[Collection[str]], GraphBackend]
"""Opens a backend whose graphs tell the states at some places."""

_HEAD = "head"
_PATH_ROUTER = "path_router"
_SELECTION = "selection"


@torch.inference_mode()
def compare_layers(
    model: DualRouterModel, expected: Expectation, open_tapped: Tapped, limits: Limits
) -> LayerReport:
    """Compare a backend part by part.

    Args:
        model: The reference.
        expected: What it computes.
        open_tapped: Opens the backend.
        limits: What parts may differ by.

    Raises:
        BackendError: The backend does not tell places that it was opened to tell.
    """
    config = model.config
    ends = layer_places(config)
    places = _compare(model, expected, open_tapped(ends), ends)
    first = next((place for place in places if place.exceeds(limits)), None)
    inside: Sequence[PlaceError] = ()
    if first is not None and ".layers." in first.place and not first.place.startswith("bridge"):
        close = ends | {f"{first.place}.{part}" for part in SUBLAYERS}
        found = _compare(model, expected, open_tapped(close), close)
        inside = [
            part
            for part in found
            if part.place.startswith(f"{first.place}.") and part.path == first.path
        ]
    return LayerReport(tuple(places), first, tuple(inside))


def layer_places(config: ModelConfig) -> frozenset[str]:
    """Return the places at the end of every layer, and before the first."""
    stacks = {"encoder": config.encoder_layers, "decoder": config.decoder_layers}
    ends = {f"{name}.layers.{i}.{SUBLAYERS[-1]}" for name, n in stacks.items() for i in range(n)}
    return frozenset(ends | {f"{name}.{EMBEDDING}" for name in stacks})


@dataclass
class _Errors:
    """How far parts are from the reference, so far, in the order in which they first ran.

    Attributes:
        backend: The backend, for people.
        wanted: Places that it was opened to tell.
        path: The path that they are on.
    """

    backend: str
    wanted: Collection[str]
    path: str = ""
    own: dict[str, float] = field(default_factory=dict)
    drift: dict[str, float] = field(default_factory=dict)
    routes: RouteTally = field(default_factory=RouteTally)

    def add(self, place: str, own: Tensor, plain: Tensor, found: Tensor) -> None:
        """Add what a part handed on.

        Args:
            place: The part.
            own: What the reference computes of the same input.
            plain: What it computes of its own input.
            found: What the backend computed.
        """
        self.own[place] = max(self.own.get(place, 0.0), relative_difference(own, found))
        self.drift[place] = max(self.drift.get(place, 0.0), relative_difference(plain, found))

    def add_states(self, own: EagerStates, plain: EagerStates, mask: Tensor) -> None:
        """Add all places that a backend told, at the tokens of `mask` bool `[B, T]`.

        Raises:
            BackendError: It did not tell all that the reference went through.
        """
        missing = [place for place in own.told if place in self.wanted and place not in own.given]
        if missing:
            where = f" on path {self.path}" if self.path else ""
            raise BackendError(
                f"{self.backend} does not tell the states of {', '.join(missing)}{where}, so they "
                "cannot be compared; verify without --layers"
            )
        for place, computed in own.told.items():
            if place in own.given:
                three = (computed, plain.told[place], own.given[place])
                self.add(place, *(x[mask] for x in three))

    def entries(self, closely: Collection[str]) -> Iterator[PlaceError]:
        """Yield one entry per part; layers that were looked into have one for each sublayer."""
        routes = {route.layer: route for route in self.routes.layers()}
        for place, own in self.own.items():
            layer, _, part = place.rpartition(".")
            whole = part == SUBLAYERS[-1] and layer not in closely
            yield PlaceError(
                place=layer if whole else place,
                path=self.path,
                own=own,
                drift=self.drift[place],
                routes=routes.get(layer) if part == SUBLAYERS[-1] else None,
            )


def _compare(
    model: DualRouterModel, expected: Expectation, backend: GraphBackend, wanted: Collection[str]
) -> list[PlaceError]:
    """Run a backend that tells states, and after it the reference on them."""
    try:
        tally = RouteTally(model.config.expert_capacity)
        errors = _Errors(backend.name, wanted, routes=tally)
        encoding, encoded = _compare_encoder(errors, model, expected, backend)
        found = list(errors.entries(_closely(errors.own)))
        for path, described in enumerate(expected.config.paths):
            errors = _Errors(backend.name, wanted, described.name)
            _compare_decoder(errors, model, expected, backend, path, encoding, encoded)
            found += errors.entries(_closely(errors.own))
        return found
    finally:
        backend.close()


def _compare_encoder(
    errors: _Errors, model: DualRouterModel, expected: Expectation, backend: GraphBackend
) -> tuple[Encoding, Encoded]:
    """Compare the encoder and the path router.

    Returns:
        The backend's encoding; the same as the eager model's, for what comes after it.
    """
    encoding = encode(expected, backend)
    given = _tensors(backend.states) | {
        f"encoder.{NORM}": host_floats(encoding.arrays, encoding.states)
    }
    forced = {f"encoder.layers.{i}": ids for i, ids in encoding.experts.items()}
    inputs = expected.source, expected.encoded.lengths, expected.budget
    plain, own = EagerStates(), EagerStates(given)
    with plain.watching(model):
        model.encode(*inputs)
    with own.watching(model), forced_routes(model, forced) as chosen:
        encoded = model.encode(*inputs)
    errors.routes.add(chosen, encoding.experts)
    errors.add_states(own, plain, expected.encoded.source_mask)
    encoded = replace(encoded, states=given[f"encoder.{NORM}"])
    if encoded.scores is None:
        return encoding, encoded
    if encoding.saliency is None or encoding.path_logits is None:
        raise BackendError(f"{backend.name} gives no saliency or no path logits, as the model does")
    saliency = host_floats(encoding.arrays, encoding.saliency)
    mask, reference = encoded.source_mask, expected.encoded.scores
    assert reference is not None
    scores = encoded.scores
    errors.add(_PATH_ROUTER, scores.saliency[mask], reference.saliency[mask], saliency[mask])
    logits = torch.from_numpy(encoding.path_logits).float()
    errors.add(_PATH_ROUTER, scores.logits, reference.logits, logits)
    return encoding, replace(encoded, scores=replace(scores, saliency=saliency))


def _compare_decoder(
    errors: _Errors,
    model: DualRouterModel,
    expected: Expectation,
    backend: GraphBackend,
    path: int,
    encoding: Encoding,
    encoded: Encoded,
) -> None:
    """Compare the bridge and the decoder on one path."""
    cross = backend.bridge(encoding, path)
    plain_memory = model.bridge(expected.encoded, path)
    counts = encoded.lengths
    if encoded.scores is not None:
        counts = keep_counts(counts, model.config.paths[path])
    memory = _compare_bridge(errors, model.bridge(encoded, path), plain_memory, cross, counts)
    rows, capacity = expected.tokens[path].shape
    caches = [model.decoder.empty_cache(rows, capacity, memory.path) for _ in range(2)]
    outcomes = replay(expected, backend, encoding, path)
    for call, outputs in zip(expected.calls[path], outcomes, strict=True):
        tokens = expected.tokens[path][:, call.start : call.stop]
        new = torch.full((rows,), tokens.shape[1])
        forced = {f"decoder.layers.{i}": ids for i, ids in outputs.experts.items()}
        plain, own = EagerStates(), EagerStates(_tensors(backend.states))
        with plain.watching(model):
            model.decode(tokens, new, plain_memory, caches[0])
        with own.watching(model), forced_routes(model, forced) as chosen:
            logits, _ = model.decode(tokens, new, memory, caches[1])
        errors.routes.add(chosen, outputs.experts)
        errors.add_states(own, plain, torch.ones(tokens.shape, dtype=torch.bool))
        errors.add(_HEAD, logits, call.logits, torch.from_numpy(outputs.logits))


def _compare_bridge(
    errors: _Errors, own: CrossMemory, plain: CrossMemory, cross: CrossAttention, counts: Tensor
) -> CrossMemory:
    """Compare what the bridge made; return the backend's for the eager decoder.

    Args:
        errors: Where to add what differs.
        own: What the reference makes of the backend's encoding.
        plain: What it makes of its own.
        cross: What the backend made.
        counts: States that each source keeps, `[B]`.

    Raises:
        BackendError: The backend has no room for the states kept.
    """
    arrays = cross.arrays
    bias = host_floats(arrays, cross.bias)
    found = {
        i: [host_floats(arrays, blocks[i]) for blocks in (cross.keys, cross.values)]
        for i in own.path.layers
    }
    width = own.bias.shape[1]  # a backend may pad to more
    if bias.shape[1] < width:
        raise BackendError(
            f"{errors.backend} gives {bias.shape[1]} states of a source on path {errors.path}, "
            f"which keeps {width}"
        )
    kept = torch.arange(width) < counts[:, None]
    beyond = torch.arange(bias.shape[1]) >= counts[:, None]
    if not np.array_equal(cross.lengths, counts.numpy()) or (bias[beyond] > MASKED / 2).any():
        errors.own[f"bridge.{_SELECTION}"] = errors.drift[f"bridge.{_SELECTION}"] = float("inf")
    errors.add(f"bridge.{_SELECTION}", own.bias[kept], plain.bias[kept], bias[:, :width][kept])
    for i, sides in found.items():
        for side, eager, reference in zip(
            sides, (own.keys, own.values), (plain.keys, plain.values), strict=True
        ):
            three = (eager[i], reference[i], side[:, :, :width])
            errors.add(f"bridge.layers.{i}", *(block.transpose(1, 2)[kept] for block in three))
    keys, values = ({i: sides[n] for i, sides in found.items()} for n in range(2))
    return CrossMemory(own.path, bias, keys, values)


def _tensors(states: Mapping[str, Float32]) -> dict[str, Tensor]:
    return {place: torch.from_numpy(x) for place, x in states.items()}


def _closely(places: Collection[str]) -> frozenset[str]:
    """Return the layers of which more than the end is told."""
    return frozenset(place.rpartition(".")[0] for place in places if place.endswith("_attention"))
