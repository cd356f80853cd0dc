"""One text on its way: the tokens generated so far, and what is reported about them."""

from collections.abc import Mapping

import numpy as np

from drl.runtime.arrays import Int32
from drl.runtime.detokenizer import Detokenizer, decode_text
from drl.runtime.generation import GenerationConfig
from drl.runtime.results import FinishReason, TopLogprobs
from drl.runtime.text import Tokenizer


class Sequence:
    """A growing list of tokens and, where somebody waits for it, their text.

    Args:
        config: How to generate.
        ends: Tokens that end a sequence, with the reason to report.
        limit: Most tokens to generate.
        tokenizer: Makes the text; None if the bundle has no tokenizer.
        stream: Whether text is wanted while it grows, from `take`.
        generator: Draws the tokens, if they are sampled.
    """

    def __init__(
        self,
        config: GenerationConfig,
        ends: Mapping[int, FinishReason],
        limit: int,
        tokenizer: Tokenizer | None,
        stream: bool = False,
        generator: "np.random.Generator | None" = None,  # NumPy imports it at the first use
    ) -> None:
        self.config = config
        self.generator = generator
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.top_logprobs: list[TopLogprobs] = []
        self.finish_reason: FinishReason | None = None
        self.score: float | None = None
        self._ends = ends
        self._limit = limit
        self._prefix = self._taken = 0
        self._tokenizer = tokenizer
        growing = tokenizer is not None and (stream or config.stop_strings)
        self._detokenizer = (
            Detokenizer(tokenizer, config.stop_strings) if tokenizer and growing else None
        )
        self._new_text: list[str] = []
        self._text: list[str] = []
        self._experts: dict[int, list[Int32]] = {}

    @property
    def prefix_tokens(self) -> int:
        """How many of the tokens were given, not generated."""
        return self._prefix

    def record_experts(self, experts: Mapping[int, Int32]) -> None:
        """Note the experts `[n, k]` per layer that `n` tokens used on their way through."""
        for layer, ids in experts.items():
            self._experts.setdefault(layer, []).append(ids)

    def give(self, token: int, logprob: float | None, top: TopLogprobs | None) -> None:
        """Take a token of the prefix, which nothing can end."""
        self._prefix += 1
        self._limit += 1
        self._append(token, logprob, top)
        if self._detokenizer:
            self._new_text.append(self._detokenizer.give(token))

    def accept(self, token: int, logprob: float | None, top: TopLogprobs | None) -> bool:
        """Take the token of a step; return whether the sequence has ended with it."""
        reason = self._ends.get(token)
        if reason is None:
            self._append(token, logprob, top)
            if self._detokenizer:
                self._new_text.append(self._detokenizer.push(token))
            if self._detokenizer and self._detokenizer.stopped:
                reason = "stop"
            elif len(self.tokens) >= self._limit:
                reason = "length"
        if reason is not None:
            self.finish(reason)
        return reason is not None

    def finish(self, reason: FinishReason) -> None:
        """End the sequence as it stands, if it has not ended."""
        if self.finish_reason is None:
            self.finish_reason = reason
            if self._detokenizer:
                self._new_text.append(self._detokenizer.finish())

    def take(self, final: bool) -> tuple[str, list[int]] | None:
        """The clean text settled since the last call, and its tokens; None while there is none.

        The `final` part is given even if it is empty.
        """
        text = self._take_text()
        tokens = self.tokens[self._taken :]
        if not (text or final or (tokens and self._tokenizer is None)):
            return None
        self._taken = len(self.tokens)
        return text, tokens

    def whole_text(self) -> str:
        """The clean text of the finished sequence; empty without a tokenizer."""
        if self._detokenizer:
            self._take_text()
            return "".join(self._text)
        return decode_text(self._tokenizer, self.tokens) if self._tokenizer else ""

    def experts(self) -> dict[int, Int32]:
        """`[tokens read, k]` expert ids per layer."""
        return {layer: np.concatenate(ids) for layer, ids in self._experts.items()}

    def _take_text(self) -> str:
        text = "".join(self._new_text)
        self._new_text.clear()
        self._text.append(text)
        return text

    def _append(self, token: int, logprob: float | None, top: TopLogprobs | None) -> None:
        self.tokens.append(token)
        if logprob is not None:
            self.logprobs.append(logprob)
        if top is not None:
            self.top_logprobs.append(top)
