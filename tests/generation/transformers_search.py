"""What `generate` of transformers makes of options that are named as the runtime names them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LIMIT = 16
"""Most tokens that a search here generates, if its options do not say."""

# Scores of places that no hypothesis was found for are far below any other.
_NOTHING = -1e5


@dataclass(frozen=True)
class Found:
    """A text that a search returns.

    Attributes:
        tokens: The given prefix and what was generated, without start and end token.
        score: The score of a beam; None without beams.
        logprobs: Log-probability of each generated token under the model itself; None for a beam.
    """

    tokens: list[int]
    score: float | None
    logprobs: list[float] | None


class _Forced:
    """`forced_decoder_ids`, which transformers no longer has."""

    def __init__(self, pairs: Sequence[tuple[int, int]]) -> None:
        self.tokens = dict(pairs)

    def __call__(self, tokens: Tensor, scores: Tensor) -> Tensor:
        if (token := self.tokens.get(tokens.shape[1])) is not None:
            scores = torch.full_like(scores, -torch.inf)
            scores[:, token] = 0.0
        return scores


class _Noise:
    """Disturbs scores by about a rounding error, to tell what hangs on rounding errors."""

    def __init__(self, seed: int, size: float) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.size = size

    def __call__(self, tokens: Tensor, scores: Tensor) -> Tensor:
        return scores + self.size * torch.randn(scores.shape, generator=self.generator)


@torch.inference_mode()
def search(
    model: Any,
    source: Sequence[int],
    options: Mapping[str, Any],
    prefix: Sequence[int] = (),
    noise: tuple[int, float] | None = None,
    tokenizer: Any = None,
) -> list[Found]:
    """Run `generate` for one source.

    Args:
        model: A model of transformers.
        source: Token ids.
        options: Fields of the runtime's `GenerationConfig`.
        prefix: What the output begins with.
        noise: A seed and how much scores are disturbed at each step.
        tokenizer: Reads stop strings.
    """
    from transformers import DynamicCache, EncoderDecoderCache

    given = dict(options)
    special = model.generation_config
    ends = [] if special.eos_token_id is None else [special.eos_token_id]
    ends += given.pop("stop_token_ids", ())
    processors: list[Any] = []
    if pairs := given.pop("forced_decoder_ids", None):
        processors.append(_Forced(pairs))
    if noise is not None:
        processors.append(_Noise(*noise))
    if model._supports_default_dynamic_cache() and model.config.model_type != "drl":
        # the one that version 5 makes has as many layers as the encoder, too few for some
        given["past_key_values"] = EncoderDecoderCache(DynamicCache(), DynamicCache())
    if not {"max_length", "max_new_tokens"} & given.keys():
        given["max_new_tokens"] = LIMIT
    output = model.generate(
        torch.tensor([source]),
        decoder_input_ids=torch.tensor([[special.decoder_start_token_id, *prefix]]),
        do_sample=False,
        eos_token_id=ends or None,
        logits_processor=processors,
        tokenizer=tokenizer,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        **given,
    )
    return _read(output, set(ends), 1 + len(prefix), given.get("num_beams", 1))


def _read(output: Any, ends: set[int], prompt: int, beams: int) -> list[Found]:
    sequences = output.sequences
    if beams == 1:
        tokens = _without_end(sequences[0].tolist(), ends, prompt)
        steps = torch.stack(output.logits)[:, 0].log_softmax(-1)
        pairs = zip(steps, tokens[prompt - 1 :], strict=False)
        return [Found(tokens, None, [float(step[token]) for step, token in pairs])]
    lengths = prompt + (output.beam_indices >= 0).sum(dim=1)
    scores = output.sequences_scores.tolist()
    return [
        Found(_without_end(row[:length], ends, prompt), score, None)
        for row, length, score in zip(sequences.tolist(), lengths.tolist(), scores, strict=True)
        if score > _NOTHING
    ]


def _without_end(row: list[int], ends: set[int], prompt: int) -> list[int]:
    if len(row) > prompt and row[-1] in ends:
        row = row[:-1]
    return row[1:]
