"""One request on its way through the runtime: what was asked, and what has become of it."""

import time
from collections.abc import Mapping

import numpy as np

from drl.runtime.arrays import Float32, Int32
from drl.runtime.detokenizer import Detokenizer, decode_text
from drl.runtime.errors import DrlError
from drl.runtime.processors.selector import TopLogprobs
from drl.runtime.request import Request
from drl.runtime.results import Experts, FinishReason, GenerationResult, Timings
from drl.runtime.text import Tokenizer


class Sequence:
    """A request in progress.

    Args:
        request: What was asked.
        eos: The end-of-sequence token.
        tokenizer: Makes the text; None if the bundle has no tokenizer.
        stream: Whether text is wanted while it grows, from `take_text`.
    """

    def __init__(
        self, request: Request, eos: int, tokenizer: Tokenizer | None, stream: bool = False
    ) -> None:
        config = request.config
        self.request = request
        self.tokens: list[int] = []
        self.path: int | None = None
        self.path_logits: Float32 | None = None
        self.finish_reason: FinishReason | None = None
        self.failure: DrlError | None = None
        self.steps = 0
        self.generator = np.random.default_rng(config.seed) if config.samples else None
        self._ends: dict[int, FinishReason] = dict.fromkeys(config.stop_token_ids, "stop")
        self._ends[eos] = "eos"
        self._tokenizer = tokenizer
        # Text is made on the way only where someone waits for it: a reader or a stop string.
        growing = tokenizer is not None and (stream or config.stop_strings)
        self._detokenizer = (
            Detokenizer(tokenizer, config.stop_strings) if tokenizer and growing else None
        )
        self._new_text: list[str] = []
        self._text: list[str] = []
        self._logprobs: list[float] = []
        self._top_logprobs: list[TopLogprobs] = []
        self._encoder_experts: dict[int, Int32] = {}
        self._decoder_experts: dict[int, list[Int32]] = {}
        self._submitted = time.perf_counter()
        self._encode = self._encoded = self._first = self._last = 0.0

    @property
    def done(self) -> bool:
        """Whether nothing more will come, because the sequence ended or failed."""
        return self.finish_reason is not None or self.failure is not None

    def record_path(self, path: int, path_logits: Float32 | None) -> None:
        """Note the path taken and the router's logits `[P]`."""
        self.path = path
        self.path_logits = path_logits

    def record_encoding(self, experts: Mapping[int, Int32], seconds: float) -> None:
        """Note the encoder's experts `[S, k]` per layer, and how long encoding took."""
        self._encoder_experts = dict(experts)
        self._encode = seconds
        self._encoded = time.perf_counter()

    def record_experts(self, experts: Mapping[int, Int32], row: int) -> None:
        """Note the experts `[B, 1, k]` of a decoder step in which this sequence was row `row`."""
        for layer, ids in experts.items():
            self._decoder_experts.setdefault(layer, []).append(ids[row, -1].copy())

    def accept(self, token: int, logprob: float | None, top: TopLogprobs | None) -> bool:
        """Take the token of a step; return whether the sequence has ended with it."""
        self._last = time.perf_counter()
        if not self.steps:
            self._first = self._last
        self.steps += 1
        self.finish_reason = self._ends.get(token)
        if self.finish_reason is None:
            self._append(token, logprob, top)
        if self.finish_reason is not None and self._detokenizer:
            self._new_text.append(self._detokenizer.finish())
        return self.finish_reason is not None

    def _append(self, token: int, logprob: float | None, top: TopLogprobs | None) -> None:
        self.tokens.append(token)
        if logprob is not None:
            self._logprobs.append(logprob)
        if top is not None:
            self._top_logprobs.append(top)
        if self._detokenizer:
            self._new_text.append(self._detokenizer.push(token))
            if self._detokenizer.stopped:
                self.finish_reason = "stop"
        if self.finish_reason is None and len(self.tokens) >= self.request.max_new_tokens:
            self.finish_reason = "length"

    def take_text(self) -> str:
        """The clean text that was settled since the last call."""
        text = "".join(self._new_text)
        self._new_text.clear()
        self._text.append(text)
        return text

    def result(self, path_name: str) -> GenerationResult:
        """The finished result. Raises the failure that ended the sequence, if one did."""
        if self.failure is not None:
            raise self.failure
        if self.finish_reason is None:
            raise RuntimeError("the sequence is still running")
        config = self.request.config
        return GenerationResult(
            text=self._whole_text(),
            tokens=list(self.tokens),
            logprobs=list(self._logprobs) if config.logprobs else None,
            top_logprobs=list(self._top_logprobs) if config.top_logprobs else None,
            path=path_name,
            path_logits=self.path_logits,
            experts=self._experts() if self.request.with_experts else None,
            finish_reason=self.finish_reason,
            prompt_tokens=len(self.request.tokens),
            timings=Timings(
                encode=self._encode,
                first_token=self._first - self._submitted,
                decode=self._last - self._encoded,
                total=self._last - self._submitted,
                steps=self.steps,
            ),
        )

    def _whole_text(self) -> str:
        if self._detokenizer:
            self.take_text()
            return "".join(self._text)
        return decode_text(self._tokenizer, self.tokens) if self._tokenizer else ""

    def _experts(self) -> Experts:
        decoder = {layer: np.stack(ids) for layer, ids in self._decoder_experts.items()}
        return Experts(self._encoder_experts, decoder)
