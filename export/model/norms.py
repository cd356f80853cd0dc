"""Normalisation layers."""

import torch
from torch import Tensor, nn
from torch.nn import functional


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
