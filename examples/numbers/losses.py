"""What training minimises: wrong tokens and crowded experts."""

import torch
from torch import Tensor
from torch.nn import functional

from drl.export.model.experts import Route
from examples.numbers.batches import IGNORED


def token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Summed cross-entropy of `logits` `[B, T, V]` with `labels` `[B, T]`, in fp32."""
    return functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
    )


def answer_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """-log p of each whole answer, fp32 `[B]`, from `logits` `[B, T, V]` and `labels` `[B, T]`."""
    losses = functional.cross_entropy(
        logits.float().transpose(1, 2), labels, ignore_index=IGNORED, reduction="none"
    )
    return losses.sum(dim=1)


def balance_loss(routes: tuple[Route, ...] | list[Route]) -> Tensor:
    """How unevenly the sparse layers use their experts, averaged; 1 where the load is even.

    E · Σ_e (share of the choices that went to e) · (mean probability of e), as in Switch
    Transformers (Fedus et al., 2021), over real tokens only.
    """
    losses = []
    for route in routes:
        experts = route.probabilities.shape[-1]
        real = route.token_mask[..., None]
        chosen = route.expert_ids[route.token_mask].flatten().long()
        share = torch.bincount(chosen, minlength=experts).float() / max(chosen.numel(), 1)
        mean = (route.probabilities * real).sum(dim=(0, 1)) / real.sum()
        losses.append(experts * (share * mean).sum())
    return torch.stack(losses).mean()


def right_tokens(logits: Tensor, labels: Tensor) -> Tensor:
    """Which predictions are right, bool `[B, T]`; padding counts as right."""
    return (logits.argmax(dim=-1) == labels) | (labels == IGNORED)
