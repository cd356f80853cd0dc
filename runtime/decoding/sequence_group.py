"""One request on its way through the runtime: what was asked, and what has become of it."""

import threading
import time
from collections.abc import Mapping

import numpy as np

from drl.runtime.arrays import Float32, Int32
from drl.runtime.decoding.beam_search import Beams, Node
from drl.runtime.decoding.sequence import Sequence
from drl.runtime.errors import DrlError
from drl.runtime.request import Request
from drl.runtime.results import (
    Experts,
    FinishReason,
    GenerationResult,
    Piece,
    Timings,
    TopLogprobs,
)
from drl.runtime.text import Tokenizer


class SequenceGroup:
    """A request in progress: one sequence, several samples, or a beam search.

    Args:
        request: What was asked.
        eos: The end-of-sequence token.
        tokenizer: Makes the text; None if the bundle has no tokenizer.
        stream: Whether text is wanted while it grows.
        cancel: Set by somebody to end the request early.
        called: When the caller asked, by `time.perf_counter`; now by default. Time limits and
            reported times count from then.

    Attributes:
        sequences: The texts in progress. A beam search has one until it is done; if streamed, it
            grows by what all beams have in common.
        beams: The beam search, if it is one.
        failure: What ended the request without a result.
    """

    def __init__(
        self,
        request: Request,
        eos: int,
        tokenizer: Tokenizer | None,
        stream: bool = False,
        cancel: threading.Event | None = None,
        called: float | None = None,
    ) -> None:
        config = request.config
        self.request = request
        self.path = ""
        self.path_logits: Float32 | None = None
        self.failure: DrlError | None = None
        self.steps = 0
        self._ends: dict[int, FinishReason] = dict.fromkeys(config.stop_token_ids, "stop")
        self._ends[eos] = "eos"
        self._tokenizer = tokenizer
        self._stream = stream
        self._cancel = cancel
        self._encoder_experts: dict[int, Int32] = {}
        self._prefix: list[tuple[int, float | None, TopLogprobs | None]] = []
        self._prefix_experts: dict[int, Int32] = {}
        self._called = time.perf_counter() if called is None else called
        self._encode = self._encoded = self._first = self._last = 0.0
        samples = config.num_return_sequences if config.num_beams == 1 else 1
        self.sequences = [self._sequence(index) for index in range(samples)]
        self.beams: Beams | None = None
        if config.num_beams > 1:
            self.beams = Beams(config, self._ends, request.max_new_tokens)
            if tokenizer is not None:
                self.beams.watch_text(tokenizer, request.prefix)

    @property
    def done(self) -> bool:
        """Whether nothing more will come, because the request ended or failed."""
        if self.failure is not None:
            return True
        return all(sequence.finish_reason is not None for sequence in self.sequences)

    @property
    def streams(self) -> bool:
        """Whether text is wanted while it grows."""
        return self._stream

    @property
    def rows(self) -> int:
        """How many rows of a decoder batch it takes."""
        return len(self.sequences) * self.request.config.num_beams

    @property
    def limited(self) -> bool:
        """Whether it may have to end before its time."""
        return self._cancel is not None or self.request.config.max_time is not None

    def overdue(self) -> FinishReason | None:
        """Why the request must end now, if it must."""
        if self._cancel is not None and self._cancel.is_set():
            return "cancelled"
        limit = self.request.config.max_time
        if limit is not None and time.perf_counter() - self._called >= limit:
            return "time"
        return None

    def record_path(self, path: str, path_logits: Float32 | None) -> None:
        """Note the name of the path taken and the router's logits `[P]`."""
        self.path = path
        self.path_logits = path_logits

    def record_encoding(self, experts: Mapping[int, Int32], seconds: float) -> None:
        """Note the encoder's experts `[S, k]` per layer, and how long encoding took."""
        self._encoder_experts = dict(experts)
        self._encode = seconds
        self._encoded = self._last = time.perf_counter()

    def record_prefix(
        self,
        logprobs: list[float] | None,
        tops: list[TopLogprobs] | None,
        experts: Mapping[int, Int32],
    ) -> None:
        """Note what the decoder said of each token of the prefix, and its experts `[n, k]`."""
        tokens = self.request.prefix
        nothing = [None] * len(tokens)
        self._prefix = list(zip(tokens, logprobs or nothing, tops or nothing, strict=True))
        self._prefix_experts = dict(experts)
        for sequence in self.sequences:
            self._give_prefix(sequence)

    def record_step(self) -> None:
        """Note that the decoder has taken a step for this request."""
        self._last = time.perf_counter()
        if not self.steps:
            self._first = self._last
        self.steps += 1

    def cut(self, reason: FinishReason) -> None:
        """End the request with what there is."""
        if self.done:
            return
        if self.beams is not None:
            self.beams.cut(reason)
            self._take_hypotheses()
        for sequence in self.sequences:
            sequence.finish(reason)

    def fail(self, failure: DrlError) -> None:
        """End the request without a result."""
        if not self.done:
            self.failure = failure

    def follow_beams(self) -> None:
        """After a step of the beam search, take what is settled, or all of it if it is done."""
        assert self.beams is not None
        if self.beams.done:
            self._take_hypotheses()
        elif self.streams:
            for node in self.beams.newly_settled():
                _accept(self.sequences[0], node)

    def pieces(self) -> list[Piece]:
        """What has come since the last call, of each sequence of a request that is streamed.

        Raises:
            DrlError: What ended the request.
        """
        if self.failure is not None:
            raise self.failure
        done = self.done
        parts = [sequence.take(done) for sequence in self.sequences]
        results: list[GenerationResult | None] = [None] * len(parts)
        if done:
            result = self.result()
            results = [result, *result.alternatives]
        return [
            Piece(*part, result, index)
            for index, (part, result) in enumerate(zip(parts, results, strict=True))
            if part is not None
        ]

    def result(self) -> GenerationResult:
        """The finished result. Raises the failure that ended the request, if one did."""
        if self.failure is not None:
            raise self.failure
        if not self.done:
            raise RuntimeError("the request is still in progress")
        first, *others = self.sequences
        alternatives = tuple(self._one(sequence) for sequence in others)
        return self._one(first, alternatives)

    def _one(
        self, sequence: Sequence, alternatives: tuple[GenerationResult, ...] = ()
    ) -> GenerationResult:
        config = self.request.config
        assert sequence.finish_reason is not None
        with_experts = self.request.with_experts
        experts = Experts(self._encoder_experts, sequence.experts()) if with_experts else None
        return GenerationResult(
            text=sequence.whole_text(),
            tokens=list(sequence.tokens),
            prefix_tokens=sequence.prefix_tokens,
            logprobs=list(sequence.logprobs) if config.logprobs else None,
            top_logprobs=list(sequence.top_logprobs) if config.top_logprobs else None,
            score=sequence.score,
            path=self.path,
            path_logits=self.path_logits,
            experts=experts,
            finish_reason=sequence.finish_reason,
            prompt_tokens=len(self.request.tokens),
            timings=self._timings(),
            alternatives=alternatives,
        )

    def _timings(self) -> Timings:
        last = self._last or time.perf_counter()
        return Timings(
            encode=self._encode,
            first_token=(self._first or last) - self._called,
            decode=last - self._encoded if self._encoded else 0.0,
            total=last - self._called,
            steps=self.steps,
        )

    def _take_hypotheses(self) -> None:
        """Turn the best hypotheses of the beam search into finished sequences."""
        assert self.beams is not None
        best = self.beams.best(self.request.config.num_return_sequences)
        for _ in best[1:]:
            sequence = self._sequence(0)
            self._give_prefix(sequence)
            self.sequences.append(sequence)
        for sequence, hypothesis in zip(self.sequences, best, strict=False):
            generated = len(sequence.tokens) - sequence.prefix_tokens
            for node in hypothesis.node.chain()[generated:]:
                _accept(sequence, node)
            sequence.finish(hypothesis.reason)
            sequence.score = hypothesis.score

    def _sequence(self, index: int) -> Sequence:
        config = self.request.config
        generator = None
        if config.samples:
            # The first sample of a seed is the only one of a request for one.
            seed = config.seed
            generator = np.random.default_rng(seed if not index or seed is None else [seed, index])
        return Sequence(
            config,
            self._ends,
            self.request.max_new_tokens,
            self._tokenizer,
            self._stream,
            generator,
        )

    def _give_prefix(self, sequence: Sequence) -> None:
        for token in self._prefix:
            sequence.give(*token)
        if self._prefix:
            sequence.record_experts(self._prefix_experts)


def _accept(sequence: Sequence, node: Node) -> None:
    if node.experts is not None:
        sequence.record_experts(node.experts)
    sequence.accept(node.token, node.logprob, node.top)
