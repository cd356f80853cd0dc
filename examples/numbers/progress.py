"""The figures that training shows."""

import torch
from torch import Tensor

from examples.numbers.batches import IGNORED, Batch
from examples.numbers.losses import right_tokens
from examples.numbers.tasks import TASKS


class Progress:
    """Sums since the last line of progress, as one vector that workers can add up."""

    def __init__(self, paths: int) -> None:
        self.paths = paths
        self.width = 3 + len(TASKS) * 2 * paths
        self.reset()

    def reset(self) -> None:
        """Forget what was counted."""
        self.sums = torch.zeros(self.width)

    def count(
        self, batch: Batch, loss: Tensor, balance: Tensor, logits: dict[int, Tensor]
    ) -> Tensor:
        """Count one batch.

        Args:
            batch: The examples.
            loss: The full path's summed token loss.
            balance: Load-balance loss.
            logits: Path index to logits `[B, T, V]`; the last path must be among them.

        Returns:
            The vector to add to `sums`.
        """
        counts = torch.zeros(2, self.paths, len(TASKS))
        for path, made in logits.items():
            right = right_tokens(made, batch.labels).all(dim=1).float()
            counts[0, path] = torch.bincount(batch.tasks, minlength=len(TASKS))
            counts[1, path] = torch.bincount(batch.tasks, right, minlength=len(TASKS))
        tokens = (batch.labels != IGNORED).sum()
        head = torch.stack((loss.detach(), tokens.float(), balance.detach() * tokens))
        return torch.cat((head, counts.flatten()))

    def line(self) -> str:
        """Loss per token, and the share of wholly right answers (teacher-forced) per task."""
        loss, tokens, balance = self.sums[:3].tolist()
        seen, right = self.sums[3:].view(2, self.paths, len(TASKS))
        cells = []
        for name, column in zip(TASKS, (100 * right / seen.clamp(min=1)).T.tolist(), strict=True):
            cells.append(f"{name[:7]} " + "/".join(f"{share:3.0f}" for share in column))
        return (
            f"loss {loss / max(tokens, 1):.4f} | right % by path: {', '.join(cells)} | "
            f"balance {balance / max(tokens, 1):.2f}"
        )
