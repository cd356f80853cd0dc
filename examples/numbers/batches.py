"""Examples as padded tensors. Every step's batch follows from the seed and the step alone."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from tokenizers import Tokenizer
from torch import Tensor

from examples.numbers.tasks import TASKS, Example, training_examples
from examples.numbers.tokens import PAD, START

IGNORED = -100
"""Label of padding, which no loss and no accuracy counts."""


@dataclass(frozen=True)
class Batch:
    """Examples padded to one length.

    Attributes:
        source: int64 `[B, S]`, the prompt and its end token.
        source_lengths: int64 `[B]`.
        target_in: int64 `[B, T]`, the start token and the answer.
        labels: int64 `[B, T]`, the answer and its end token; -100 at padding.
        target_lengths: int64 `[B]`.
        tasks: int64 `[B]`, index of each example's task in `TASKS`.
    """

    source: Tensor
    source_lengths: Tensor
    target_in: Tensor
    labels: Tensor
    target_lengths: Tensor
    tasks: Tensor


def make_batches(examples: Sequence[Example], tokenizer: Tokenizer, chunks: int) -> list[Batch]:
    """Encode examples and cut them into `chunks` batches of similar lengths."""
    sources = [encoding.ids for encoding in tokenizer.encode_batch([e.prompt for e in examples])]
    targets = [encoding.ids for encoding in tokenizer.encode_batch([e.answer for e in examples])]
    order = sorted(range(len(examples)), key=lambda i: (len(targets[i]), len(sources[i])))
    names = list(TASKS)
    batches = []
    for part in range(chunks):
        rows = order[part * len(order) // chunks : (part + 1) * len(order) // chunks]
        if rows:
            batches.append(
                Batch(
                    source=_padded([sources[i] for i in rows], PAD),
                    source_lengths=torch.tensor([len(sources[i]) for i in rows]),
                    target_in=_padded([[START, *targets[i][:-1]] for i in rows], PAD),
                    labels=_padded([targets[i] for i in rows], IGNORED),
                    target_lengths=torch.tensor([len(targets[i]) for i in rows]),
                    tasks=torch.tensor([names.index(examples[i].task) for i in rows]),
                )
            )
    return batches


def training_batches(
    tokenizer: Tokenizer,
    task_weights: dict[str, float],
    *,
    seed: int,
    step: int,
    size: int,
    chunks: int,
) -> list[Batch]:
    """The batches of one training step."""
    rng = random.Random(f"{seed} {step}")
    examples = list(islice(training_examples(rng, task_weights), size))
    return make_batches(examples, tokenizer, chunks)


def _padded(rows: list[list[int]], filler: int) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [filler] * (width - len(row)) for row in rows])
