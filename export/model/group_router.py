"""Level 1 of the routing: a token's word embedding chooses groups of experts."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

SHARPNESS = 10.0
"""Factor of the cosine similarity between a word embedding and a group prototype."""


@dataclass(frozen=True)
class GroupChoice:
    """Level-1 routing of tokens.

    Attributes:
        log_probs: fp32 `[..., G]`, log P1.
        allowed: bool `[..., G]`, the best groups.
    """

    log_probs: Tensor
    allowed: Tensor


class GroupRouter(nn.Module):
    """P1 = softmax_g(10·cos(e, c_g)); a token may use the experts of its `top_groups` groups.

    It depends on the token id alone, so an exporter folds it to two constant tables.
    """

    def __init__(self, groups: int, d_model: int, top_groups: int) -> None:
        super().__init__()
        self.top_groups = top_groups
        self.prototypes = nn.Parameter(torch.randn(groups, d_model))

    def forward(self, embedded: Tensor) -> GroupChoice:
        """Route word embeddings `[..., d]`, in fp32 whatever their type."""
        with torch.autocast(embedded.device.type, enabled=False):
            words = functional.normalize(embedded.float(), dim=-1)
            prototypes = functional.normalize(self.prototypes.float(), dim=-1)
            log_probs = functional.log_softmax(SHARPNESS * words @ prototypes.T, dim=-1)
        best = top_indices(log_probs, self.top_groups)
        allowed = torch.zeros_like(log_probs, dtype=torch.bool).scatter(-1, best, True)
        return GroupChoice(log_probs, allowed)

    @torch.no_grad()
    def initialise(self, words: Tensor, iterations: int = 25) -> None:
        """Set the prototypes by spherical k-means of the word embeddings `[V, d]`.

        The first prototype is the first word; each further one is the word least similar to
        those chosen, so the result depends on nothing but the embeddings.
        """
        unit = functional.normalize(words.float(), dim=-1)
        centres = unit[:1]
        while centres.shape[0] < self.prototypes.shape[0]:
            nearest = (unit @ centres.T).amax(dim=-1)
            centres = torch.cat((centres, unit[nearest.argmin()][None]))
        for _ in range(iterations):
            member = functional.one_hot((unit @ centres.T).argmax(dim=-1), centres.shape[0])
            sums = member.T.float() @ unit
            empty = member.sum(dim=0) == 0
            centres = functional.normalize(torch.where(empty[:, None], centres, sums), dim=-1)
        self.prototypes.copy_(centres)


def top_indices(scores: Tensor, k: int) -> Tensor:
    """Return the indices of the k largest scores, best first, ties to the lowest index."""
    order = torch.sort(scores, dim=-1, descending=True, stable=True).indices
    return order[..., :k]
