"""Level 2 of the routing: context chooses a token's experts, and the experts it runs."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from drl.export.model.config import Activation, ModelConfig
from drl.export.model.feed_forward import FeedForward, activate, is_gated
from drl.export.model.group_router import GroupChoice, top_indices

FORBIDDEN = -1e4
"""Router logit of an expert whose group level 1 did not allow."""


@dataclass(frozen=True)
class Route:
    """The experts that one sparse layer chose.

    Attributes:
        layer: Its name, such as `decoder.layers.1`.
        expert_ids: int32 `[B, T, k]`, best first; -1 at padding.
        gates: fp32 `[B, T, k]`, the experts' probabilities; 0 at padding.
        probabilities: fp32 `[B, T, E]`, of all experts.
        token_mask: bool `[B, T]`, true for real tokens.
    """

    layer: str
    expert_ids: Tensor
    gates: Tensor
    probabilities: Tensor
    token_mask: Tensor

    def margin(self) -> Tensor:
        """Return how far the last chosen expert leads the first one left out, `[B, T]`."""
        ranked = self.probabilities.sort(dim=-1, descending=True).values
        k = self.expert_ids.shape[-1]
        if k == ranked.shape[-1]:
            return torch.ones_like(ranked[..., 0])
        return ranked[..., k - 1] - ranked[..., k]


class ExpertRouter(nn.Module):
    """q = softmax(W·x + λ·log P1[group]), over the experts of the allowed groups; top k."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.experts_per_group = config.experts_per_group
        self.gates = config.gates
        self.output_scale = config.expert_output_scale
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.d_model))
        self.bias = nn.Parameter(torch.zeros(config.num_experts)) if config.router_bias else None
        self.prior_scale = nn.Parameter(torch.tensor(1.0)) if config.groups > 1 else None

    def forward(
        self,
        x: Tensor,
        groups: GroupChoice,
        token_mask: Tensor,
        k: int,
        layer: str,
        capacity: int | None = None,
    ) -> Route:
        """Route `x` `[B, T, d]`; all arithmetic is fp32.

        With a `capacity`, an expert takes no more than so many tokens of a sequence, the first
        ones; for the others it counts as not chosen.
        """
        with torch.autocast(x.device.type, enabled=False):
            prior = groups.log_probs.repeat_interleave(self.experts_per_group, dim=-1)
            allowed = groups.allowed.repeat_interleave(self.experts_per_group, dim=-1)
            logits = functional.linear(x.float(), self.weight.float(), _float(self.bias))
            if self.prior_scale is not None:
                logits = logits + self.prior_scale.float() * prior
            probabilities = logits.masked_fill(~allowed, FORBIDDEN).softmax(dim=-1)
        ids = top_indices(probabilities, k)
        gates = self.weigh(probabilities.gather(-1, ids)) * token_mask[..., None]
        ids = ids.masked_fill(~token_mask[..., None], -1).int()
        if capacity is not None:
            ids, gates = drop_over_capacity(ids, gates, capacity)
        return Route(layer, ids, gates, probabilities, token_mask)

    def weigh(self, probabilities: Tensor) -> Tensor:
        """Turn the probabilities of the chosen experts `[B, T, k]` into their gates."""
        if self.gates == "one":
            probabilities = torch.ones_like(probabilities)
        elif self.gates == "normalized":
            probabilities = probabilities / probabilities.sum(dim=-1, keepdim=True)
        return probabilities * self.output_scale


def drop_over_capacity(ids: Tensor, gates: Tensor, capacity: int) -> tuple[Tensor, Tensor]:
    """Unchoose an expert for all but the first `capacity` tokens of a sequence that chose it.

    Args:
        ids: int32 `[B, T, k]`, -1 for none.
        gates: fp32 `[B, T, k]`.
        capacity: Tokens of a row that one expert takes.

    Returns:
        Ids and gates, -1 and 0 where the expert is full (Fedus et al., 2022).
    """
    experts = int(ids.max()) + 1
    chosen = functional.one_hot(ids.long() + 1, experts + 1)[..., 1:]
    place = (chosen.sum(dim=2).cumsum(dim=1)[:, :, None] * chosen).sum(dim=-1)
    full = place > capacity
    return ids.masked_fill(full, -1), gates.masked_fill(full, 0.0)


def _float(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.float()


class Experts(nn.Module):
    """E feed-forward networks of width f with stacked weights; a token runs those it chose."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        experts, d, f = config.num_experts, config.d_model, config.d_expert
        self.activation: Activation = config.activation
        gated = is_gated(config.activation)
        self.gate = nn.Parameter(torch.empty(experts, d, f)) if gated else None
        self.up = nn.Parameter(torch.empty(experts, d, f))
        self.down = nn.Parameter(torch.empty(experts, f, d))
        biased = config.bias
        self.gate_bias = nn.Parameter(torch.zeros(experts, f)) if gated and biased else None
        self.up_bias = nn.Parameter(torch.zeros(experts, f)) if biased else None
        self.down_bias = nn.Parameter(torch.zeros(experts, d)) if biased else None

    def forward(self, x: Tensor, route: Route) -> Tensor:
        """Return Σ gate·expert(x) over each token's experts, `[B, T, d]`.

        Tokens are sorted by expert, so each expert in use is one matrix product.
        """
        flat, k = x.flatten(0, -2), route.expert_ids.shape[-1]
        chosen = route.expert_ids.flatten().long()
        order = chosen.argsort(stable=True)
        counts = torch.bincount(chosen + 1, minlength=self.up.shape[0] + 1).tolist()
        order = order[counts[0] :]  # the first ones are padding, expert -1
        token = order // k
        parts = flat[token].split(counts[1:])
        outputs = [self.run(e, part) for e, part in enumerate(parts) if part.shape[0]]
        if not outputs:
            return torch.zeros_like(x)
        weighted = torch.cat(outputs) * route.gates.flatten()[order, None].to(outputs[0].dtype)
        summed = torch.zeros(flat.shape, dtype=weighted.dtype, device=x.device)
        return summed.index_add(0, token, weighted).reshape(x.shape)

    def run(self, expert: int, x: Tensor) -> Tensor:
        """Run one expert on `x` `[n, d]`."""
        return _linear(self.inner(expert, x), self.down, self.down_bias, expert)

    def inner(self, expert: int, x: Tensor) -> Tensor:
        """Return the hidden layer of one expert, activated, `[n, f]`."""
        gate = None if self.gate is None else _linear(x, self.gate, self.gate_bias, expert)
        up = _linear(x, self.up, self.up_bias, expert)
        return activate(self.activation, up, gate)


def _linear(x: Tensor, weights: Tensor, biases: Tensor | None, expert: int) -> Tensor:
    product = x @ weights[expert]
    return product if biases is None else product + biases[expert]


class SparseFeedForward(nn.Module):
    """The shared expert plus the experts that the router chose."""

    def __init__(self, config: ModelConfig, layer: str) -> None:
        super().__init__()
        self.layer = layer
        self.router = ExpertRouter(config)
        self.experts = Experts(config)
        self.shared = FeedForward(config, config.d_shared) if config.d_shared else None

    def forward(
        self,
        x: Tensor,
        groups: GroupChoice,
        token_mask: Tensor,
        k: int,
        capacity: int | None = None,
    ) -> tuple[Tensor, Route]:
        """Map `x` `[B, T, d]` to `[B, T, d]` and tell the route taken."""
        route = self.router(x, groups, token_mask, k, self.layer, capacity)
        output = self.experts(x, route)
        return (output if self.shared is None else self.shared(x) + output), route
