"""Greedy generation in eager PyTorch: the oracle that deployed generation is held against."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from drl.export.model.decoder import CrossMemory
from drl.export.model.dual_router import DualRouterModel


@dataclass(frozen=True)
class Generated:
    """Tokens of one sequence (without start and end tokens), and the path that made them."""

    tokens: list[int]
    path: int


def pad(sequences: Sequence[Sequence[int]], value: int) -> tuple[Tensor, Tensor]:
    """Right-pad token lists: int64 `[B, S]` and their lengths `[B]`."""
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    padded = torch.full((len(sequences), int(lengths.max())), value)
    for row, sequence in zip(padded, sequences, strict=True):
        row[: len(sequence)] = torch.tensor(sequence)
    return padded, lengths


@torch.inference_mode()
def generate(
    model: DualRouterModel,
    sources: Sequence[Sequence[int]],
    *,
    path: int | None = None,
    budget: float = 1.0,
    max_new_tokens: int = 64,
    use_cache: bool = True,
) -> list[Generated]:
    """Generate greedily, as one batch per path.

    Args:
        model: In evaluation mode.
        sources: Token ids of each source.
        path: Index of the path to take; by default the path router chooses.
        budget: Largest path cost allowed to the router, and its model state.
        max_new_tokens: Limit of generated tokens, the end token included.
        use_cache: Whether to keep keys and values, or recompute all positions at each step.
    """
    source, lengths = pad(sources, model.config.pad_token_id)
    limits = torch.full((len(sources),), budget)
    encoded = model.encode(source, lengths, limits)
    paths = [0 if path is None else path] * len(sources)
    if path is None and model.path_router is not None and encoded.scores is not None:
        paths = model.path_router.choose(encoded.scores.logits, [budget] * len(sources))
    results: dict[int, Generated] = {}
    for taken in sorted(set(paths)):
        rows = [row for row, chosen in enumerate(paths) if chosen == taken]
        part, part_lengths = pad([sources[row] for row in rows], model.config.pad_token_id)
        memory = model.bridge(model.encode(part, part_lengths, limits[rows]), taken)
        decode = _decode_cached if use_cache else _decode_full
        tokens = decode(model, memory, len(rows), max_new_tokens)
        results |= {row: Generated(made, taken) for row, made in zip(rows, tokens, strict=True)}
    return [results[row] for row in range(len(sources))]


def _decode_cached(
    model: DualRouterModel, memory: CrossMemory, batch: int, limit: int
) -> list[list[int]]:
    cache = model.decoder.empty_cache(batch, limit, memory.path)
    token = torch.full((batch, 1), model.config.decoder_start_token_id)
    made = []
    for _ in range(limit):
        logits, _ = model.decode(token, torch.ones(batch, dtype=torch.long), memory, cache)
        token = logits[:, -1:].argmax(dim=-1)
        made.append(token)
        if _all_ended(made, model.config.eos_token_id):
            break
    return _until_end(torch.cat(made, dim=1), model.config.eos_token_id)


def _decode_full(
    model: DualRouterModel, memory: CrossMemory, batch: int, limit: int
) -> list[list[int]]:
    tokens = torch.full((batch, 1), model.config.decoder_start_token_id)
    made = []
    for _ in range(limit):
        lengths = torch.full((batch,), tokens.shape[1])
        logits, _ = model.decode(tokens, lengths, memory)
        made.append(logits[:, -1:].argmax(dim=-1))
        tokens = torch.cat((tokens, made[-1]), dim=1)
        if _all_ended(made, model.config.eos_token_id):
            break
    return _until_end(torch.cat(made, dim=1), model.config.eos_token_id)


def _all_ended(made: list[Tensor], end: int) -> bool:
    return bool((torch.cat(made, dim=1) == end).any(dim=1).all())


def _until_end(tokens: Tensor, end: int) -> list[list[int]]:
    rows = tokens.tolist()
    return [row[: row.index(end)] if end in row else row for row in rows]
