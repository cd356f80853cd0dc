"""What a step tells beside its logits, held against them: normalisers and candidates."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from drl.export.parity import relative_difference
from drl.runtime.backends import StepOutputs

_CANDIDATES = 4


@dataclass
class RankingCheck:
    """Compares steps that gave whole rows with the same steps that gave candidates.

    Attributes:
        ranks: Whether the backend can give candidates.
        largest: The largest difference so far, relative to the largest logit where that exceeds 1;
            infinite where logits, normalisers or candidates are not finite.
    """

    ranks: bool
    largest: float = 0.0
    _rows: list[Tensor] = field(default_factory=list)

    @property
    def candidates(self) -> int:
        """How many to ask for once all steps gave whole rows; 0 for none."""
        if not self.ranks or not self._rows:
            return 0
        return min(_CANDIDATES, self._rows[0].shape[-1] - 1)

    def add(self, outputs: StepOutputs) -> None:
        """Take a step's whole rows, and compare its normalisers."""
        logits = torch.from_numpy(outputs.logits)
        self._compare(logits.double().logsumexp(dim=-1), outputs, logits)
        if self.ranks:
            self._rows.append(logits.clone())

    def compare(self, index: int, outputs: StepOutputs) -> None:
        """Compare the same step that gave candidates.

        A token may take the place of another whose logit differs by rounding alone, so what counts
        is the logit of each candidate against that of its place.
        """
        logits, top = self._rows[index], outputs.top
        assert top is not None
        ids, values = torch.from_numpy(top.ids).long(), torch.from_numpy(top.values)
        best = logits.topk(ids.shape[-1], dim=-1).values
        named = ids.clamp(0, logits.shape[-1] - 1)
        distinct = named.sort(dim=-1).values.diff(dim=-1).ne(0).all()
        if not distinct or not torch.equal(named, ids):
            self.largest = float("inf")
        for found in (values, logits.gather(-1, named)):
            self.largest = max(self.largest, relative_difference(best, found))
        self._compare(logits.double().logsumexp(dim=-1), outputs, logits)

    def _compare(self, expected: Tensor, outputs: StepOutputs, logits: Tensor) -> None:
        found = torch.from_numpy(outputs.normalisers).double()
        self.largest = max(self.largest, relative_difference(expected, found))
