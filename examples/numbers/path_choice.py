"""Stage 2: teach the path router which inputs the cheaper paths answer rightly.

Everything else is frozen, so what the router reads of an input is computed once.
"""

from dataclasses import dataclass

import torch
from drl.export.model import DualRouterModel
from drl.export.model.path_router import PathRouter
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from examples.numbers.batches import training_batches
from examples.numbers.losses import right_tokens
from examples.numbers.tasks import TASKS


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
        caution: Weight of inputs that need more than the cheapest path.
        full_budget_share: Share of inputs with budget 1; the others' budgets are uniform in [0, 1].
    """

    seed: int = 11
    draws: int = 80
    draw_size: int = 512
    steps: int = 3000
    batch_size: int = 1024
    rate: float = 3e-3
    weight_decay: float = 0.01
    caution: float = 1.0
    full_budget_share: float = 0.5


@dataclass(frozen=True)
class Evidence:
    """What stage 2 learns from.

    Attributes:
        features: fp32 `[N, d+2+G]`, what the router's first layer reads; the budget's column is
            overwritten in training.
        right: bool `[N, P]`, whether a path answers wholly rightly. Teacher-forced, which for an
            exact match is the same as greedy.
        lengths: int64 `[N]`, tokens of the answer, its end token included.
    """

    features: Tensor
    right: Tensor
    lengths: Tensor

    def select(self, rows: Tensor) -> "Evidence":
        """The given rows."""
        return Evidence(self.features[rows], self.right[rows], self.lengths[rows])


@torch.no_grad()
def gather(model: DualRouterModel, tokenizer: Tokenizer, settings: PathChoiceSettings) -> Evidence:
    """Run every path on fresh training examples."""
    router = _router(model)
    seen: list[Tensor] = []
    hook = router.hidden.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    right, lengths = [], []
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
            encoded = model.encode(batch.source, batch.source_lengths)
            verdicts = []
            for path in range(len(model.config.paths)):
                memory = model.bridge(encoded, path)
                logits, _ = model.decode(batch.target_in, batch.target_lengths, memory)
                verdicts.append(right_tokens(logits, batch.labels).all(dim=1))
            right.append(torch.stack(verdicts, dim=1))
            lengths.append(batch.target_lengths)
    hook.remove()
    return Evidence(torch.cat(seen), torch.cat(right), torch.cat(lengths))


def targets(right: Tensor, costs: Tensor, budgets: Tensor) -> Tensor:
    """The path each input should take, int64 `[N]`.

    The cheapest path within the budget that is right; if none is, the most expensive within the
    budget; if none fits, the cheapest of all. `right` is `[N, P]`, `costs` `[P]` ascending,
    `budgets` `[N]`.
    """
    fits = costs <= budgets[:, None]
    good = right & fits
    last = (fits.sum(dim=1) - 1).clamp(min=0)
    return torch.where(good.any(dim=1), good.int().argmax(dim=1), last)


def train_path_router(
    model: DualRouterModel, evidence: Evidence, settings: PathChoiceSettings
) -> None:
    """Fit the router's scoring network by cross-entropy over the paths that fit the budget."""
    router = _router(model)
    generator = torch.Generator().manual_seed(settings.seed)
    costs = torch.tensor(router.costs)
    parameters = [*router.hidden.parameters(), *router.output.parameters()]
    with torch.no_grad():
        for layer in (router.hidden, router.output):
            shape = layer.weight.shape
            layer.weight.copy_(torch.randn(shape, generator=generator) * shape[1] ** -0.5)
            layer.bias.zero_()
    optimiser = torch.optim.AdamW(
        parameters, lr=settings.rate, weight_decay=settings.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.steps)
    for _ in range(settings.steps):
        rows = torch.randint(len(evidence.right), (settings.batch_size,), generator=generator)
        part = evidence.select(rows)
        budgets = torch.rand(len(rows), generator=generator)
        unlimited = torch.rand(len(rows), generator=generator) < settings.full_budget_share
        budgets = torch.where(unlimited, 1.0, budgets)
        wanted = targets(part.right, costs, budgets)
        logits = _score(router, part.features, budgets)
        logits = logits.masked_fill(costs > budgets[:, None].clamp(min=costs[0].item()), -1e4)
        weights = torch.where(wanted == 0, 1.0, settings.caution)
        losses = functional.cross_entropy(logits, wanted, reduction="none")
        optimiser.zero_grad()
        ((losses * weights).sum() / weights.sum()).backward()
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
    changed = torch.cat((features[:, : d + 1], budgets[:, None], features[:, d + 2 :]), dim=1)
    logits: Tensor = router.output(functional.gelu(router.hidden(changed)))
    return logits


def _router(model: DualRouterModel) -> PathRouter:
    if model.path_router is None:
        raise ValueError("the model has no path router")
    return model.path_router
