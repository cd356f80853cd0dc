"""What generation returns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from drl.runtime.arrays import Float32, Int32

FinishReason = Literal["eos", "stop", "length"]


@dataclass(frozen=True)
class Timings:
    """Seconds by the wall clock, as the request saw them: batch-mates' work is included.

    Attributes:
        encode: Encoder and bridge of the batch that the source was encoded in.
        first_token: From the call to the first token, waiting for a free place included.
        decode: From the end of `encode` to the last token.
        total: From the call to the last token.
        steps: Decoder steps taken; one more than tokens if the last one chose the end.
    """

    encode: float
    first_token: float
    decode: float
    total: float
    steps: int


@dataclass(frozen=True, eq=False)
class Experts:
    """Expert ids that each token used, per sparse layer, most important first.

    Attributes:
        encoder: `[S, k]` int32 per layer, a row per prompt token.
        decoder: `[steps, k]` int32 per layer on the path, a row per decoder step: the first one
            has read the start token, each later one the token generated before it.
    """

    encoder: Mapping[int, Int32]
    decoder: Mapping[int, Int32]


@dataclass(frozen=True, eq=False)
class GenerationResult:
    """One generated sequence.

    Attributes:
        text: Cleaned text up to the first stop string; empty if the bundle has no tokenizer.
        tokens: Generated token ids, without the end-of-sequence or stop token.
        logprobs: Log-probability of each token under the model, or None if not asked for.
        top_logprobs: The likeliest tokens at the place of each token, as (token, log-probability)
            with the best first, or None if not asked for.
        path: Name of the path taken.
        path_logits: `[P]` logits of the path router, or None if the model has none.
        experts: Which experts ran, or None if not asked for.
        finish_reason: "eos" (the model ended the text), "stop" (a stop token or stop string) or
            "length" (max_new_tokens).
        prompt_tokens: How many tokens the prompt had.
        timings: Where the time went.
    """

    text: str
    tokens: list[int]
    logprobs: list[float] | None
    top_logprobs: list[list[tuple[int, float]]] | None
    path: str
    path_logits: Float32 | None
    experts: Experts | None
    finish_reason: FinishReason
    prompt_tokens: int
    timings: Timings


@dataclass(frozen=True, eq=False)
class Piece:
    """A part of a streamed result.

    Attributes:
        text: New clean text, of whole characters; the pieces' texts joined are the result's text.
        tokens: The tokens generated since the piece before.
        result: The whole result, on the last piece only.
    """

    text: str
    tokens: Sequence[int]
    result: GenerationResult | None = None

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why generation ended, on the last piece only."""
        return self.result.finish_reason if self.result else None
