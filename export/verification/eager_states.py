"""Look into the eager model while it runs: tell states, replace them, and force routes."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from drl.export.model import DualRouterModel, Route
from drl.export.model.encoder import Layer, Stack
from drl.export.model.experts import ExpertRouter
from drl.export.passes.tap_layers import EMBEDDING
from drl.runtime.arrays import Int32

NORM = "norm"
SUBLAYERS = ("self_attention", "cross_attention", "ffn")


@dataclass
class EagerStates:
    """The residual states of an eager model, by place, as `TapLayers` calls them.

    A place is what a module hands on: the embedding, every sublayer, and the `norm` that ends a
    stack. What is `given` for a place is what comes after it reads instead of what it computed.

    Attributes:
        given: `[B, T, d]` by place.
        told: What each place computed of the inputs that it read, `[B, T, d]`.
    """

    given: Mapping[str, Tensor] = field(default_factory=dict)
    told: dict[str, Tensor] = field(default_factory=dict)
    _previous: str = ""

    @contextmanager
    def watching(self, model: DualRouterModel) -> Iterator[None]:
        """Watch a model's calls within the block."""
        with ExitStack() as stack:
            for name, module in (("encoder", model.encoder), ("decoder", model.decoder)):
                self._watch_stack(stack, name, module)
            yield

    def _watch_stack(self, stack: ExitStack, name: str, module: Stack) -> None:
        place, finish = module.place, module.finish

        def watched_place(*arguments: Tensor) -> Tensor:
            return self._tell(f"{name}.{EMBEDDING}", place(*arguments))

        def watched_finish(x: Tensor) -> Tensor:
            told = self._tell(f"{name}.{NORM}", finish(self._read(x)))
            return self._read(told)

        stack.enter_context(_replaced(module, "place", watched_place))
        stack.enter_context(_replaced(module, "finish", watched_finish))
        layers = module.get_submodule("layers")
        for index, layer in layers.named_children():
            assert isinstance(layer, Layer)
            self._watch_layer(stack, f"{name}.layers.{index}", layer)

    def _watch_layer(self, stack: ExitStack, name: str, layer: Layer) -> None:
        residual = layer.residual
        norms = {
            getattr(layer, f"{part}_norm"): part
            for part in SUBLAYERS
            if hasattr(layer, f"{part}_norm")
        }

        def watched(norm: nn.Module, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
            return self._tell(f"{name}.{norms[norm]}", residual(norm, self._read(x), sublayer))

        stack.enter_context(_replaced(layer, "residual", watched))

    def _read(self, x: Tensor) -> Tensor:
        return self.given.get(self._previous, x)

    def _tell(self, place: str, x: Tensor) -> Tensor:
        self.told[place] = x
        self._previous = place
        return x


@contextmanager
def forced_routes(model: DualRouterModel, routes: Mapping[str, Int32]) -> Iterator[list[Route]]:
    """Make the routers of an eager model take given experts within the block.

    The gates are those that the router gives these experts for what it reads.

    Args:
        model: The model.
        routes: Expert ids `[B, T, k]`, -1 for none, by layer such as `decoder.layers.1`. Other
            layers are left alone. May be changed between calls.

    Yields:
        The routes that the routers chose themselves, one after the other.
    """
    chosen: list[Route] = []

    def hook(router: ExpertRouter, _: Any, own: Route) -> Route:
        chosen.append(own)
        if own.layer not in routes:
            return own
        ids = torch.from_numpy(routes[own.layer])
        taken = own.probabilities.gather(-1, ids.clamp(min=0).long())
        return replace(own, expert_ids=ids, gates=router.weigh(taken) * (ids >= 0))

    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, ExpertRouter):
                handle = module.register_forward_hook(hook)
                stack.callback(handle.remove)
        yield chosen


@contextmanager
def _replaced(module: nn.Module, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Shadow a method of one object."""
    module.__dict__[name] = function
    try:
        yield
    finally:
        del module.__dict__[name]
