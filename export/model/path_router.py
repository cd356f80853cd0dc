"""The path router: how much of the decoder runs for a sequence, and which states it sees."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from drl.export.model.attention import MASKED
from drl.export.model.config import KEEP_DENOMINATOR, ModelConfig, PathConfig, PathRouterConfig
from drl.export.model.group_router import GroupChoice


@dataclass(frozen=True)
class PathScores:
    """What the path router says of each sequence.

    Attributes:
        saliency: fp32 `[B, S]`, how much a state matters; 0 at padding.
        logits: fp32 `[B, P]`, ℓ.
    """

    saliency: Tensor
    logits: Tensor


class PathRouter(nn.Module):
    """Scores every path from the encoder's output and the model state.

    a_t = w·h_t + b; v = Σ softmax(a)_t·h_t (head `attention`: softmax(h_t·query / √d));
    m = [log1p(S) / log1p(S_max), budget, mean P1]; ℓ = W₂·GELU(W₁[v; m] + b₁) + b₂.
    """

    def __init__(self, config: ModelConfig, router: PathRouterConfig) -> None:
        super().__init__()
        self.settings = router
        self.max_source_length = config.max_source_length
        self.costs = config.path_costs
        state = 2 + config.groups
        self.saliency = nn.Linear(config.d_model, 1)
        self.hidden = nn.Linear(config.d_model + state, router.hidden)
        self.output = nn.Linear(router.hidden, len(config.paths))
        self.query = (
            nn.Parameter(torch.zeros(config.d_model)) if router.head == "attention" else None
        )

    def forward(
        self, states: Tensor, source_mask: Tensor, groups: GroupChoice, budget: Tensor
    ) -> PathScores:
        """Score `states` `[B, S, d]` of sequences with `budget` `[B]` in [0, 1]; all in fp32."""
        with torch.autocast(states.device.type, enabled=False):
            states = states.float()
            saliency = _fp32(self.saliency, states).squeeze(-1)
            features = self.read(states, saliency, source_mask, groups, budget)
            return PathScores(saliency.masked_fill(~source_mask, 0.0), self.score(features))

    def read(
        self,
        states: Tensor,
        saliency: Tensor,
        source_mask: Tensor,
        groups: GroupChoice,
        budget: Tensor,
    ) -> Tensor:
        """Return [v; m], fp32 `[B, d+2+G]`: pooled states, relative length, budget, group use."""
        pooling = saliency
        if self.query is not None:
            pooling = states @ self.query.float() * states.shape[-1] ** -0.5
        weights = pooling.masked_fill(~source_mask, -torch.inf).softmax(dim=-1)
        pooled = (weights[:, None] @ states).squeeze(1)
        lengths = source_mask.sum(dim=-1)
        relative = lengths.float().log1p() / torch.tensor(float(self.max_source_length)).log1p()
        group_use = (groups.log_probs.exp() * source_mask[..., None]).sum(dim=1)
        mean_groups = group_use / lengths[:, None]
        return torch.cat((pooled, relative[:, None], budget.float()[:, None], mean_groups), dim=-1)

    def score(self, features: Tensor) -> Tensor:
        """Return ℓ `[B, P]` = W₂·GELU(W₁·features + b₁) + b₂ in fp32."""
        return _fp32(self.output, functional.gelu(_fp32(self.hidden, features)))

    def choose(self, logits: Tensor, budget: Sequence[float] | Tensor) -> list[int]:
        """Return each sequence's path: the best of those whose cost fits its budget.

        Args:
            logits: ℓ, `[B, P]`.
            budget: The largest cost allowed for each sequence, `[B]`; if no path fits, the
                cheapest is taken.
        """
        chosen = []
        for row, limit in zip(logits.float(), budget, strict=True):
            fitting = [p for p, cost in enumerate(self.costs) if cost <= float(limit)] or [0]
            chosen.append(self._best(row[fitting].tolist(), fitting))
        return chosen

    def _best(self, logits: list[float], candidates: list[int]) -> int:
        if self.settings.head == "greedy":
            sure = torch.logit(torch.tensor(self.settings.threshold, dtype=torch.float64)).item()
            return next(
                (p for p, score in zip(candidates, logits, strict=True) if score >= sure),
                candidates[-1],
            )
        return candidates[max(range(len(logits)), key=lambda i: (logits[i], -i))]


def _fp32(linear: nn.Linear, x: Tensor) -> Tensor:
    """Apply a layer in fp32, whatever the type its weights are kept in."""
    return functional.linear(x, linear.weight.float(), linear.bias.float())


def keep_counts(lengths: Tensor, path: PathConfig) -> Tensor:
    """Return ⌈ρ·S⌉ for every source length, `[B]`, in exact integer arithmetic."""
    scaled = lengths.long() * path.keep_thousandths + KEEP_DENOMINATOR - 1
    return scaled // KEEP_DENOMINATOR


def select_states(
    states: Tensor, saliency: Tensor, lengths: Tensor, counts: Tensor
) -> tuple[Tensor, Tensor]:
    """Keep the `counts[b]` valid states of highest saliency, in their original order.

    Args:
        states: `[B, S, d]`.
        saliency: fp32 `[B, S]`.
        lengths: Valid states of each row, `[B]`.
        counts: How many to keep, `[B]`, between 1 and the row's length.

    Returns:
        The kept states, `[B, K, d]` with K = max(counts), 0 at padding; and their cross-attention
        bias log σ(saliency), fp32 `[B, K]`, -1e4 at padding.
    """
    valid = torch.arange(states.shape[1], device=states.device) < lengths[:, None]
    ranked = saliency.masked_fill(~valid, -torch.inf)
    order = torch.sort(ranked, dim=-1, descending=True, stable=True).indices
    slots = torch.arange(int(counts.max()), device=states.device)
    kept = slots < counts[:, None]
    best = order[:, : slots.shape[0]].masked_fill(~kept, states.shape[1])
    index = best.sort(dim=-1).values.clamp(max=states.shape[1] - 1)
    bias = functional.logsigmoid(saliency.gather(1, index)).masked_fill(~kept, MASKED)
    gathered = states.gather(1, index[..., None].expand(-1, -1, states.shape[-1]))
    return gathered * kept[..., None].to(states.dtype), bias
