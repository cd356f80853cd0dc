"""Stage 1 of the training: the whole network, on every path."""

import math
from dataclasses import asdict
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from drl.export.model import DualRouterModel
from examples.numbers.batches import Batch, training_batches
from examples.numbers.dense_experts import use_dense_experts
from examples.numbers.losses import balance_loss, token_loss
from examples.numbers.progress import Progress
from examples.numbers.settings import TrainingSettings, model_config
from examples.numbers.team import Team


class StageOne:
    """The model in training. Its state after a step follows from the settings and the step."""

    def __init__(
        self,
        settings: TrainingSettings,
        tokenizer: Tokenizer,
        team: Team | None = None,
        bf16: bool = False,
    ) -> None:
        self.settings, self.tokenizer, self.team, self.bf16 = settings, tokenizer, team, bf16
        torch.manual_seed(settings.seed)
        self.model = DualRouterModel(model_config(tokenizer.get_vocab_size()))
        use_dense_experts(self.model)
        self.parameters = list(self.model.parameters())
        self.optimiser = torch.optim.AdamW(
            [
                {
                    "params": [p for p in self.parameters if p.ndim >= 2],
                    "weight_decay": settings.weight_decay,
                },
                {"params": [p for p in self.parameters if p.ndim < 2], "weight_decay": 0.0},
            ],
            lr=settings.peak_rate,
            betas=(0.9, 0.98),
            fused=True,
        )
        self.step = 0
        self.progress = Progress(len(self.model.config.paths))

    @property
    def shared_width(self) -> int:
        """Numbers that workers add up in a step: all gradients and the figures of progress."""
        return sum(p.numel() for p in self.parameters) + self.progress.width

    def rate(self) -> float:
        """Learning rate of the current step: linear warm-up, then a cosine down to 0."""
        settings = self.settings
        warm = min(1.0, (self.step + 1) / settings.warmup_steps)
        done = max(0.0, self.step - settings.warmup_steps)
        share = done / max(1, settings.steps - settings.warmup_steps)
        return settings.peak_rate * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))

    def train_step(self) -> None:
        """Draw this step's examples, run two paths on them and update the weights."""
        settings = self.settings
        batches = training_batches(
            self.tokenizer,
            settings.task_weights,
            seed=settings.seed,
            step=self.step,
            size=settings.batch_size,
            chunks=settings.chunks,
        )
        tokens = sum(int(batch.target_lengths.sum()) for batch in batches)
        rank, workers = (self.team.rank, self.team.workers) if self.team else (0, 1)
        figures = torch.zeros(self.progress.width)
        self.optimiser.zero_grad()
        for part, batch in enumerate(batches):
            # Parts are sorted by length: dealing them there and back evens out the work.
            if _dealt_to(part, workers) == rank:
                figures += self._backward(batch, tokens, self._cheap_path(part))
        self.progress.sums += self._share(figures)
        torch.nn.utils.clip_grad_norm_(self.parameters, settings.clip)
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate()
        self.optimiser.step()
        self.step += 1

    def _cheap_path(self, part: int) -> int:
        """The path to train beside the full one: every cheaper path in turn."""
        return (self.step + part) % (len(self.model.config.paths) - 1)

    def _backward(self, batch: Batch, tokens: int, cheap: int) -> Tensor:
        """Add the gradients of one part of a step; returns its figures of progress."""
        model, settings = self.model, self.settings
        full = len(model.config.paths) - 1
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=self.bf16),
            # The fused kernel is slow for heads this small.
            sdpa_kernel(SDPBackend.MATH),
        ):
            encoded = model.encode(batch.source, batch.source_lengths)
            logits, routes = {}, list(encoded.routes)
            for path in (full, cheap):
                memory = model.bridge(encoded, path)
                logits[path], taken = model.decode(batch.target_in, batch.target_lengths, memory)
                routes += taken
        losses = {path: token_loss(made, batch.labels) for path, made in logits.items()}
        balance = balance_loss(routes)
        total = (losses[full] + settings.cheap_weight * losses[cheap]) / tokens
        share = int(batch.target_lengths.sum()) / tokens
        (total + settings.balance_weight * share * balance).backward()
        with torch.no_grad():
            return self.progress.count(batch, losses[full], balance, logits)

    def _share(self, figures: Tensor) -> Tensor:
        """Add up gradients and figures over the team; returns the summed figures."""
        if self.team is None:
            return figures
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        total = self.team.total(torch.cat((flat, figures)))
        start = 0
        for parameter in self.parameters:
            part = total[start : start + parameter.numel()]
            parameter.grad = part.view_as(parameter)
            start += parameter.numel()
        return total[start:]

    def state(self) -> dict[str, Any]:
        """Everything needed to go on later."""
        return {
            "settings": asdict(self.settings),
            "step": self.step,
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state()`; raises ValueError if it belongs to other settings."""
        if state["settings"] != asdict(self.settings):
            raise ValueError("the saved training used other settings; choose another folder")
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])


def _dealt_to(part: int, workers: int) -> int:
    turn, place = divmod(part, workers)
    return place if turn % 2 == 0 else workers - 1 - place
