"""The choice of the next token for every row of a batch."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from drl.runtime.arrays import Float32, Int64
from drl.runtime.generation import GenerationConfig
from drl.runtime.processors.edits import LogitEdits, collect_edits
from drl.runtime.processors.sampling import Sampler

TopLogprobs = list[tuple[int, float]]


@dataclass(frozen=True)
class Selection:
    """One step's choice.

    Attributes:
        tokens: `[B]` chosen tokens.
        logprobs: `[B]` their log-probabilities under the model, or None if no row reports them.
        top_logprobs: For each row that asks, its likeliest (token, log-probability), best first.
    """

    tokens: Int64
    logprobs: Float32 | None
    top_logprobs: dict[int, TopLogprobs] = field(default_factory=dict)


class TokenSelector:
    """Chooses tokens for a changing set of rows.

    What depends on the rows' configs alone is worked out when the rows change, so that a greedy
    step is an argmax and a log-sum-exp.
    """

    def __init__(self, eos: int) -> None:
        self._eos = eos
        self._scratch = np.empty((0, 0), np.float32)
        self.set_rows((), ())

    def set_rows(
        self,
        configs: Sequence[GenerationConfig],
        generators: Sequence[np.random.Generator | None],
    ) -> None:
        """Name the rows of the following steps: a config and, if it samples, a generator each."""
        self._configs = list(configs)
        self._generators = [item for item in generators if item is not None]
        sampling = [row for row, item in enumerate(generators) if item is not None]
        self._sampling_rows = np.array(sampling, np.int64)
        self._sampler = Sampler([self._configs[row] for row in sampling])
        self._edits = any(
            c.repetition_penalty != 1.0 or c.min_new_tokens or c.forced_bos_token_id is not None
            for c in configs
        )
        self._reports = any(c.logprobs for c in configs)
        self._top = [(row, c.top_logprobs) for row, c in enumerate(configs) if c.top_logprobs]

    def select(self, logits: Float32, histories: Sequence[Sequence[int]]) -> Selection:
        """Choose a token for each row.

        Args:
            logits: `[B, V]` of the model; changed during the call and restored.
            histories: The tokens generated so far, per row.
        """
        normalisers = self._log_sum_exp(logits) if self._reports else None
        edits = collect_edits(logits, self._configs, histories, self._eos) if self._edits else None
        tokens = self._choose(logits, edits)
        if normalisers is None:
            return Selection(tokens, None)
        logprobs: Float32 = logits[np.arange(len(tokens)), tokens] - normalisers
        top = {
            row: _likeliest(logits[row], count, float(normalisers[row])) for row, count in self._top
        }
        return Selection(tokens, logprobs, top)

    def _choose(self, logits: Float32, edits: LogitEdits | None) -> Int64:
        old = edits.apply(logits) if edits else None
        tokens: Int64 = logits.argmax(axis=1)
        rows = self._sampling_rows
        if rows.size:
            draws = np.array([generator.random() for generator in self._generators])
            chosen = logits if len(rows) == len(logits) else logits[rows]
            scratch = self._scratch_for(logits)[: len(rows)]
            tokens[rows] = self._sampler.sample(chosen, draws, scratch)
        if edits and old is not None:
            edits.undo(logits, old)
        return tokens

    def _log_sum_exp(self, logits: Float32) -> Float32:
        """`[B]` log of the sum of exponentials over the vocabulary."""
        scratch = self._scratch_for(logits)
        largest = logits.max(axis=1)
        np.subtract(logits, largest[:, None], out=scratch)
        np.exp(scratch, out=scratch)
        normalisers: Float32 = np.log(scratch.sum(axis=1))
        normalisers += largest
        return normalisers

    def _scratch_for(self, logits: Float32) -> Float32:
        """Memory of the shape of the logits, kept from step to step."""
        rows, vocab_size = logits.shape
        if self._scratch.shape[0] < rows or self._scratch.shape[1] != vocab_size:
            self._scratch = np.empty((rows, vocab_size), np.float32)
        return self._scratch[:rows]


def _likeliest(logits: Float32, count: int, normaliser: float) -> TopLogprobs:
    """The `count` likeliest tokens of `[V]` logits, ties by token id."""
    count = min(count, len(logits))
    threshold = np.partition(logits, len(logits) - count)[len(logits) - count]
    (candidates,) = np.nonzero(logits >= threshold)
    order = candidates[np.argsort(-logits[candidates], kind="stable")][:count]
    return [(int(token), float(logits[token]) - normaliser) for token in order]
