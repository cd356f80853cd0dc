"""Stage 2: teach the path router which inputs the cheaper paths answer as well.

Everything else is frozen, so what the router reads of an input is computed once.
"""

from dataclasses import dataclass, fields

import torch
from tokenizers import Tokenizer
from torch import Tensor

from drl.export.model import DualRouterModel
from drl.export.model.path_router import PathRouter
from examples.numbers.batches import Batch, training_batches
from examples.numbers.losses import answer_losses, right_tokens
from examples.numbers.tasks import TASKS

FORBIDDEN = -1e4
"""Logit of a path that the budget does not allow."""


@dataclass(frozen=True)
class PathChoiceSettings:
    """Settings of stage 2.

    Attributes:
        seed: Of the examples, the budgets and the order.
        draws: How many times `draw_size` examples are drawn; one draw in ten is kept to judge by.
        draw_size: Examples of a draw, of all tasks alike.
        steps: Optimiser steps.
        batch_size: Inputs of a step.
        rate: Peak learning rate.
        weight_decay: Of the router's weights.
        prices: What each path costs, cheapest first. A dearer path is worth taking if it shrinks
            the answer's loss by a factor of more than exp(the difference of the prices).
        floor: Added to all losses, in nats; what lies far below it makes no difference.
        entropy: Gain of one nat of the choice's entropy, in the unit of the prices.
        full_budget_share: Share of inputs with budget 1; the others' budgets are uniform in [0, 1].
    """

    seed: int = 11
    draws: int = 80
    draw_size: int = 512
    steps: int = 1500
    batch_size: int = 1024
    rate: float = 3e-3
    weight_decay: float = 0.01
    prices: tuple[float, ...] = (0.0, 1.6, 1.75)
    floor: float = 0.003
    entropy: float = 0.1
    full_budget_share: float = 0.5


@dataclass(frozen=True)
class Evidence:
    """What stage 2 learns from.

    Attributes:
        features: fp32 `[N, d+2+G]`, what the router's first layer reads; the budget's column is
            overwritten in training.
        losses: fp32 `[N, P]`, -log p(answer) on each path, in nats.
        right: bool `[N, P]`, whether a path answers wholly rightly. Teacher-forced, which for an
            exact match is the same as greedy.
        lengths: int64 `[N]`, tokens of the answer, its end token included.
    """

    features: Tensor
    losses: Tensor
    right: Tensor
    lengths: Tensor

    def select(self, rows: Tensor) -> "Evidence":
        """The given rows."""
        return Evidence(
            self.features[rows], self.losses[rows], self.right[rows], self.lengths[rows]
        )


@torch.no_grad()
def gather(model: DualRouterModel, tokenizer: Tokenizer, settings: PathChoiceSettings) -> Evidence:
    """Run every path on fresh training examples."""
    parts: list[Evidence] = []
    for draw in range(settings.draws):
        batches = training_batches(
            tokenizer,
            dict.fromkeys(TASKS, 1.0),
            seed=settings.seed,
            step=draw,
            size=settings.draw_size,
            chunks=3,
        )
        for batch in batches:
            parts.append(_evidence(model, batch))
    return Evidence(
        *(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Evidence))
    )


def _evidence(model: DualRouterModel, batch: Batch) -> Evidence:
    encoded = model.encode(batch.source, batch.source_lengths)
    assert encoded.scores is not None
    assert encoded.groups is not None
    features = _router(model).read(
        encoded.states,
        encoded.scores.saliency,
        encoded.source_mask,
        encoded.groups,
        torch.ones(len(batch.source)),
    )
    losses, right = [], []
    for path in range(len(model.config.paths)):
        memory = model.bridge(encoded, path)
        logits, _ = model.decode(batch.target_in, batch.target_lengths, memory)
        losses.append(answer_losses(logits, batch.labels))
        right.append(right_tokens(logits, batch.labels).all(dim=1))
    return Evidence(
        features, torch.stack(losses, dim=1), torch.stack(right, dim=1), batch.target_lengths
    )


def train_path_router(
    model: DualRouterModel, evidence: Evidence, settings: PathChoiceSettings
) -> None:
    """Fit the router's scoring network.

    With π the softmax of its logits over the paths that fit the budget, it minimises
    Σ_p π_p·(log(loss_p + floor) + price_p). The logarithm makes the step from one error in
    ten to one in a hundred worth as much as the next one, down to the floor.
    A little entropy of π counts as a gain, which keeps π from settling too early.
    """
    router = _router(model)
    generator = torch.Generator().manual_seed(settings.seed)
    costs = torch.tensor(router.costs)
    parameters = [*router.hidden.parameters(), *router.output.parameters()]
    with torch.no_grad():
        for layer in (router.hidden, router.output):
            shape = layer.weight.shape
            layer.weight.copy_(torch.randn(shape, generator=generator) * shape[1] ** -0.5)
            layer.bias.zero_()
    optimiser = torch.optim.AdamW(parameters, lr=settings.rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.steps)
    for _ in range(settings.steps):
        rows = torch.randint(len(evidence.right), (settings.batch_size,), generator=generator)
        part = evidence.select(rows)
        budgets = torch.rand(len(rows), generator=generator)
        unlimited = torch.rand(len(rows), generator=generator) < settings.full_budget_share
        budgets = torch.where(unlimited, 1.0, budgets)
        pains = (part.losses + settings.floor).log() + torch.tensor(settings.prices)
        logits = _score(router, part.features, budgets)
        affordable = costs <= budgets[:, None].clamp(min=costs[0].item())
        log_shares = logits.masked_fill(~affordable, FORBIDDEN).log_softmax(dim=-1)
        pains = pains + settings.entropy * log_shares
        expected = (log_shares.exp() * pains).sum(dim=-1).mean()
        optimiser.zero_grad()
        expected.backward()
        optimiser.step()
        schedule.step()


@torch.no_grad()
def judge(model: DualRouterModel, evidence: Evidence, budget: float = 1.0) -> str:
    """One line: what the router would do with `evidence` at a budget."""
    router = _router(model)
    depths = torch.tensor([len(path.layers) for path in model.config.paths])
    budgets = torch.full((len(evidence.right),), budget)
    chosen = torch.tensor(router.choose(_score(router, evidence.features, budgets), budgets))
    right = evidence.right.gather(1, chosen[:, None]).float().mean().item()
    full = evidence.right[:, -1].float().mean().item()
    ratio = (depths[chosen] * evidence.lengths).sum() / (depths[-1] * evidence.lengths.sum())
    shares = torch.bincount(chosen, minlength=len(depths)) / len(chosen)
    names = [path.name for path in model.config.paths]
    taken = ", ".join(f"{n} {s:.1%}" for n, s in zip(names, shares.tolist(), strict=True))
    return (
        f"budget {budget:.2f}: right {right:.2%} (full path {full:.2%}), "
        f"layer-steps {ratio:.1%}; {taken}"
    )


def _score(router: PathRouter, features: Tensor, budgets: Tensor) -> Tensor:
    """Path logits `[N, P]` of cached features under other budgets."""
    d = router.saliency.in_features
    return router.score(
        torch.cat((features[:, : d + 1], budgets[:, None], features[:, d + 2 :]), dim=1)
    )


def _router(model: DualRouterModel) -> PathRouter:
    if model.path_router is None:
        raise ValueError("the model has no path router")
    return model.path_router
