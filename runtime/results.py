"""What generation returns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from drl.runtime.arrays import Float32, Int32

FinishReason = Literal["eos", "stop", "length", "time", "cancelled"]
TopLogprobs = list[tuple[int, float]]


@dataclass(frozen=True)
class Timings:
    """Seconds by the wall clock, as the request saw them: batch-mates' work is included.

    Attributes:
        encode: Encoder and bridge of the batch that the source was encoded in.
        first_token: From the call to the first decoder step's end, waiting for a place included.
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
        decoder: `[tokens read, k]` int32 per layer on the path: the decoder reads the start token,
            the prefix, and each generated token after which it chooses another.
    """

    encoder: Mapping[int, Int32]
    decoder: Mapping[int, Int32]


@dataclass(frozen=True, eq=False)
class GenerationResult:
    """One generated sequence.

    Attributes:
        text: Cleaned text up to the first stop string; empty if the bundle has no tokenizer.
        tokens: Token ids of the prefix and those generated, without start, end or stop token.
        prefix_tokens: How many of the tokens were given as a prefix.
        logprobs: Log-probability of each token under the model, the prefix included, or None if
            not asked for.
        top_logprobs: The likeliest tokens at the place of each token, as (token, log-probability)
            with the best first, or None if not asked for.
        score: Under beam search, the sum of the log-probabilities that it went by, those of the end
            token included, over the number of generated tokens to the power of `length_penalty`:
            what `transformers` calls `sequences_scores`. None without beams.
        alternatives: The other results of the prompt, where `num_return_sequences` asks for
            several: of a beam search the next best ones, else further samples. A beam search
            may find fewer than asked for.
        path: Name of the path taken; empty if the request ended before one was chosen.
        path_logits: `[P]` logits of the path router, or None if the model has none.
        experts: Which experts ran, or None if not asked for.
        finish_reason: "eos" (the model ended the text), "stop" (a stop token or stop string),
            "length" (max_new_tokens), "time" (max_time) or "cancelled".
        prompt_tokens: How many tokens the prompt had.
        timings: Where the time went; the same for all results of a prompt.
    """

    text: str
    tokens: list[int]
    prefix_tokens: int
    logprobs: list[float] | None
    top_logprobs: list[TopLogprobs] | None
    score: float | None
    path: str
    path_logits: Float32 | None
    experts: Experts | None
    finish_reason: FinishReason
    prompt_tokens: int
    timings: Timings
    alternatives: tuple["GenerationResult", ...] = ()


@dataclass(frozen=True, eq=False)
class Piece:
    """A part of a streamed result.

    Attributes:
        text: New clean text, of whole characters; the pieces' texts joined are the result's text.
        tokens: The tokens generated since the piece before.
        result: The whole result, on the last piece only.
        index: Which of the prompt's results grows, 0 being the one that `generate` returns and 1
            and up its alternatives.
    """

    text: str
    tokens: Sequence[int]
    result: GenerationResult | None = None
    index: int = 0

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why generation ended, on the last piece only."""
        return self.result.finish_reason if self.result else None
