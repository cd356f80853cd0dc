"""The dense feed-forward network and its activations."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from drl.export.model.config import Activation


def _gelu(x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh")


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": _gelu,
    "relu": functional.relu,
}


def is_gated(activation: Activation) -> bool:
    """Whether the activation multiplies a second projection (Shazeer, 2020)."""
    return activation.endswith("_glu")


def activate(activation: Activation, up: Tensor, gate: Tensor | None) -> Tensor:
    """Return act(gate) ⊙ up for a gated activation, else act(up); GELU is the tanh form."""
    function = _ACTIVATIONS[activation.removesuffix("_glu")]
    return function(up) if gate is None else function(gate) * up


class FeedForward(nn.Module):
    """down(act(gate(x)) ⊙ up(x)), or down(act(up(x))) for an ungated activation."""

    def __init__(self, d_model: int, width: int, activation: Activation) -> None:
        super().__init__()
        self.activation: Activation = activation
        self.gate = nn.Linear(d_model, width, bias=False) if is_gated(activation) else None
        self.up = nn.Linear(d_model, width, bias=False)
        self.down = nn.Linear(width, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[..., d]` to `[..., d]`."""
        gate = None if self.gate is None else self.gate(x)
        return torch.as_tensor(self.down(activate(self.activation, self.up(x), gate)))
