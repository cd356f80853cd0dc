"""The dense feed-forward network and its activations."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from drl.export.model.config import Activation, ModelConfig


def _gelu_tanh(x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh")


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu_glu": functional.silu,
    "gelu_glu": _gelu_tanh,
    "relu": functional.relu,
    "gelu": functional.gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": functional.silu,
}


def is_gated(activation: Activation) -> bool:
    """Whether the activation multiplies a second projection (Shazeer, 2020)."""
    return activation.endswith("_glu")


def activate(activation: Activation, up: Tensor, gate: Tensor | None) -> Tensor:
    """Return act(gate) ⊙ up for a gated activation, else act(up).

    `gelu` is exact; `gelu_tanh` and the gate of `gelu_glu` are its tanh approximation (Hendrycks
    and Gimpel, 2016), as the models that use them were trained.
    """
    function = _ACTIVATIONS[activation]
    return function(up) if gate is None else function(gate) * up


class FeedForward(nn.Module):
    """down(act(gate(x)) ⊙ up(x)), or down(act(up(x))) for an ungated activation."""

    def __init__(self, config: ModelConfig, width: int) -> None:
        super().__init__()
        self.activation: Activation = config.activation
        d, bias = config.d_model, config.bias
        self.gate = nn.Linear(d, width, bias=bias) if is_gated(config.activation) else None
        self.up = nn.Linear(d, width, bias=bias)
        self.down = nn.Linear(width, d, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[..., d]` to `[..., d]`."""
        gate = None if self.gate is None else self.gate(x)
        return torch.as_tensor(self.down(activate(self.activation, self.up(x), gate)))
