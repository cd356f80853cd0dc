"""Normalisation layers."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from drl.export.model.config import ModelConfig


class RMSNorm(nn.Module):
    """Root-mean-square normalisation: x / sqrt(mean(x²) + eps) · weight (Zhang and Sennrich, 2019).

    Maps `[..., d]` to `[..., d]`.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension of `x`."""
        return functional.rms_norm(x, self.weight.shape, self.weight, self.eps)


def make_norm(config: ModelConfig) -> RMSNorm | nn.LayerNorm:
    """Return a normalisation layer of the configured kind over `[..., d]`."""
    if config.norm == "rms":
        return RMSNorm(config.d_model, config.norm_eps)
    return nn.LayerNorm(config.d_model, config.norm_eps)
