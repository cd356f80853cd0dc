"""Changes of single logits before a token is chosen: repetition penalty and barred tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from drl.runtime.arrays import Float32, Int64
from drl.runtime.generation import GenerationConfig

_CERTAIN = 1e6
_EXTREME = np.float32(1e30)
"""How far a forced token's logit is raised above all others."""


@dataclass(frozen=True)
class LogitEdits:
    """A few logits to change, kept with their old values so that the change can be undone.

    Editing in place and undoing costs a handful of elements; a copy would cost the whole
    vocabulary for every row at every step.

    Attributes:
        rows, columns: `[n]` places in `[B, V]` logits. A place may come twice: the last value wins.
        values: `[n]` new values.
    """

    rows: Int64
    columns: Int64
    values: Float32

    def apply(self, logits: Float32) -> Float32:
        """Write the values into `[B, V]` logits; return those they replace."""
        old: Float32 = logits[self.rows, self.columns]
        logits[self.rows, self.columns] = self.values
        return old

    def undo(self, logits: Float32, old: Float32) -> None:
        """Write back what `apply` returned."""
        logits[self.rows, self.columns] = old


def collect_edits(
    logits: Float32,
    configs: Sequence[GenerationConfig],
    histories: Sequence[Sequence[int]],
    eos: int,
) -> LogitEdits | None:
    """The edits that the rows' configs ask for at this step, or None if they ask for none.

    Args:
        logits: `[B, V]` of the model.
        configs: One per row.
        histories: The tokens generated so far, per row.
        eos: The end-of-sequence token.
    """
    rows: list[int] = []
    columns: list[int] = []
    values: list[float] = []
    for row, (config, history) in enumerate(zip(configs, histories, strict=True)):
        if config.forced_bos_token_id is not None and not history:
            rows.append(row)
            columns.append(config.forced_bos_token_id)
            # finite, and far enough above the rest for every temperature and filter
            values.append(float(logits[row].max()) + _CERTAIN)
            continue
        if config.repetition_penalty != 1.0 and history:
            seen = sorted(set(history))
            rows += [row] * len(seen)
            columns += seen
            values += _penalised(logits[row, seen], config.repetition_penalty).tolist()
        if len(history) < config.min_new_tokens:
            # After the penalties: of two edits of one place the last one counts.
            barred = [eos, *config.stop_token_ids]
            rows += [row] * len(barred)
            columns += barred
            values += [-np.inf] * len(barred)
    if not rows:
        return None
    return LogitEdits(np.array(rows), np.array(columns), np.array(values, np.float32))


def _penalised(logits: Float32, penalty: float) -> Float32:
    with np.errstate(over="ignore"):
        changed = np.where(logits > 0, logits / np.float32(penalty), logits * np.float32(penalty))
    # An infinite logit would make NaN of its row's probabilities.
    penalised: Float32 = np.clip(changed, -_EXTREME, _EXTREME)
    return penalised
