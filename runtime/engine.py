"""The engine: what an application embeds to generate text from a bundle."""

import threading
from collections import abc, deque
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from drl.runtime.arrays import Array
from drl.runtime.backends import Backend, open_backend
from drl.runtime.bundle import Bundle
from drl.runtime.errors import BackendError, BundleError, RequestError, check_count
from drl.runtime.generation import GenerationConfig
from drl.runtime.paths import AUTO
from drl.runtime.request import Request, RequestBuilder
from drl.runtime.results import GenerationResult, Piece
from drl.runtime.scheduler import Scheduler
from drl.runtime.sequence import Sequence
from drl.runtime.text import Tokenizer

Prompt = str | abc.Sequence[int] | Array
Configs = GenerationConfig | abc.Sequence[GenerationConfig] | None


class Engine:
    """Generates text from a bundle, with continuous batching.

    An engine may be used from several threads: a lock is held for one step at a time, and the
    requests of all threads are decoded in common batches. It is a context manager; `close` gives
    its memory back.

    Args:
        bundle: A loaded bundle.
        backend: Runs the bundle's graphs.
        max_batch_size: Most sequences decoded at a time. Memory for the KV cache grows with the
            sequences that are running.
    """

    def __init__(self, bundle: Bundle, backend: Backend, max_batch_size: int = 32) -> None:
        check_count("max_batch_size", max_batch_size)
        self._bundle = bundle
        self._backend = backend
        self._max_batch_size = max_batch_size
        file = bundle.tokenizer_file
        self._tokenizer = Tokenizer.load(file) if file else None
        if self._tokenizer and self._tokenizer.vocab_size > bundle.manifest.limits.vocab_size:
            raise BundleError(
                f"tokenizer.json has {self._tokenizer.vocab_size} tokens and the model "
                f"{bundle.manifest.limits.vocab_size}; export the checkpoint with its own tokenizer"
            )
        try:
            defaults = self.configure()
        except RequestError as error:
            raise BundleError(
                f"bundle.json: generation: {error}; export the checkpoint again"
            ) from None
        self._requests = RequestBuilder(bundle.manifest, self._tokenizer, defaults)
        self._scheduler = Scheduler(backend, bundle.manifest, max_batch_size)
        self._lock = threading.Lock()
        self._abandoned: deque[Sequence] = deque()
        self._closed = False

    @classmethod
    def from_bundle(
        cls,
        path: str | Path,
        device: str = "cpu",
        threads: int | None = None,
        max_batch_size: int = 32,
        verify_hashes: bool = True,
    ) -> Self:
        """Load a bundle and the backend for a device.

        Args:
            path: The bundle's folder.
            device: "cpu".
            threads: Threads per graph; None takes one per core that this process may use.
            max_batch_size: See `Engine`.
            verify_hashes: Whether to read every file and compare its SHA-256.

        Raises:
            BundleError: The bundle is missing, damaged or too new.
            BackendError: ONNX Runtime is missing or refuses the bundle.
        """
        bundle = Bundle.load(path, verify_hashes=verify_hashes)
        return cls(bundle, open_backend(bundle, device, threads), max_batch_size)

    @property
    def bundle(self) -> Bundle:
        """The bundle this engine runs."""
        return self._bundle

    @property
    def backend(self) -> Backend:
        """What runs the graphs."""
        return self._backend

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The bundle's tokenizer, if it has one."""
        return self._tokenizer

    def configure(self, **options: Any) -> GenerationConfig:
        """How this bundle generates by default, with some options of `GenerationConfig` changed.

        Raises:
            RequestError: An option is unknown or wrong.
        """
        return GenerationConfig.from_defaults(self._bundle.manifest.generation, options)

    def token_id(self, token: str | int) -> int:
        """The id of a token given by its text, such as `fra_Latn`, or by its id.

        Raises:
            RequestError: The vocabulary has no such token.
        """
        if isinstance(token, str) and not (token.isascii() and token.isdigit()):
            found = self._tokenizer.token_id(token) if self._tokenizer else None
            if found is None:
                raise RequestError(f"there is no token {token!r} in the bundle's vocabulary")
            return found
        return int(token)

    def request(
        self,
        prompt: Prompt,
        config: GenerationConfig | None = None,
        *,
        path: str | int = AUTO,
        budget: float = 1.0,
        return_experts: bool = False,
    ) -> Request:
        """Check a prompt and its options, and make the request that `run` takes.

        Raises:
            RequestError: The request cannot be served.
        """
        return self._requests.build(prompt, config, path, budget, return_experts)

    def generate(
        self,
        prompts: abc.Sequence[Prompt],
        config: Configs = None,
        *,
        path: str | int = AUTO,
        budget: float = 1.0,
        return_experts: bool = False,
    ) -> list[GenerationResult]:
        """Generate a text for each prompt.

        Args:
            prompts: Strings or lists of token ids.
            config: How to generate: one for all prompts, or one each; by default as the bundle
                says. A `GenerationConfig` that is given replaces the bundle's defaults altogether,
                such as a translation model's `forced_bos_token_id` and stop tokens; to change some
                options and keep the rest, give `engine.configure(max_new_tokens=32)`.
            path: "auto" lets the model's path router choose; a name or an index forces a path.
            budget: Largest cost, in [0, 1], of the paths that "auto" chooses from; 1 is the cost
                of the dearest path.
            return_experts: Whether results tell which experts each token used.

        Returns:
            A result per prompt, in their order.

        Raises:
            RequestError: A request cannot be served; nothing was generated.
        """
        if isinstance(prompts, str) or not isinstance(prompts, abc.Sequence):
            kind = type(prompts).__name__
            raise RequestError(f"prompts must be a list of prompts, not {kind}; wrap one in [ ]")
        configs = _per_prompt(config, len(prompts))
        requests = [
            self._requests.build(prompt, each, path, budget, return_experts, f"prompt {index}")
            for index, (prompt, each) in enumerate(zip(prompts, configs, strict=True))
        ]
        results = dict(self.run(requests))
        return [results[index] for index in range(len(requests))]

    def run(self, requests: Iterable[Request]) -> Iterator[tuple[int, GenerationResult]]:
        """Serve requests as places become free, and yield each result when it is complete.

        The requests are read a batch ahead of the results, so their number needs no bound.

        Yields:
            The request's position and its result, in the order in which they complete.
        """
        source = enumerate(requests)
        pending: dict[int, Sequence] = {}
        try:
            while True:
                room = 2 * self._max_batch_size - len(pending)
                added = {index: self._begin(request) for index, request in islice(source, room)}
                pending |= added
                if not pending:
                    return
                with self._lock:
                    self._advance(added.values(), pending.values())
                    ended = [index for index, sequence in pending.items() if sequence.done]
                for index in ended:
                    yield index, self._result(pending.pop(index))
        finally:
            self._discard(pending.values())

    def stream(
        self,
        prompt: Prompt,
        config: GenerationConfig | None = None,
        *,
        path: str | int = AUTO,
        budget: float = 1.0,
        return_experts: bool = False,
    ) -> Iterator[Piece]:
        """Generate a text and yield it while it grows.

        The pieces' texts, joined, are the text that `generate` returns. A piece never ends inside
        a character, and never holds text that a stop string cuts off. Leaving the loop early gives
        the sequence's place to others. Arguments are those of `generate`, for one prompt.

        Raises:
            RequestError: The request cannot be served; raised by the call, not by the first piece.
        """
        request = self.request(
            prompt, config, path=path, budget=budget, return_experts=return_experts
        )
        return self.stream_request(request)

    def stream_request(self, request: Request) -> Iterator[Piece]:
        """As `stream`, for a request made with `request`."""
        return self._stream(self._begin(request, stream=True))

    def close(self) -> None:
        """Give back the memory. Results stay valid; the engine serves no more."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._scheduler.abort(_closed())
                self._backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _begin(self, request: Request, stream: bool = False) -> Sequence:
        return Sequence(request, self._bundle.manifest.tokens.eos, self._tokenizer, stream)

    def _advance(self, added: Iterable[Sequence], waited_for: Iterable[Sequence]) -> None:
        """Queue sequences and, unless one waited for has ended already, advance all by a token.

        Between two calls other threads may have advanced this caller's sequences to their ends.
        The caller holds the lock, and reads what has become of its sequences before it lets go.
        """
        if self._closed:
            raise _closed()
        self._drop_abandoned()
        for sequence in added:
            self._scheduler.add(sequence)
        if not any(sequence.done for sequence in waited_for):
            self._scheduler.step()

    def _discard(self, sequences: Iterable[Sequence]) -> None:
        """Forget sequences that nobody waits for, now or at the next step.

        The garbage collector may end a forgotten stream in the middle of a step, in the very thread
        that holds the lock; so this never waits for it.
        """
        self._abandoned.extend(sequences)
        if self._lock.acquire(blocking=False):
            try:
                self._drop_abandoned()
            finally:
                self._lock.release()

    def _drop_abandoned(self) -> None:
        while self._abandoned:
            sequence = self._abandoned.popleft()
            if not sequence.done:
                self._scheduler.discard(sequence)

    def _stream(self, sequence: Sequence) -> Iterator[Piece]:
        added = [sequence]
        given = 0
        done = False
        try:
            while not done:
                with self._lock:
                    self._advance(added, [sequence])
                    text, tokens, done = (
                        sequence.take_text(),
                        sequence.tokens[given:],
                        sequence.done,
                    )
                added = []
                if done:
                    yield Piece(text, tokens, self._result(sequence))
                elif text or self._tokenizer is None:
                    given += len(tokens)
                    yield Piece(text, tokens)
        finally:
            self._discard([sequence])

    def _result(self, sequence: Sequence) -> GenerationResult:
        path = self._bundle.manifest.paths[sequence.path or 0]
        return sequence.result(path.name)


def _per_prompt(config: Configs, count: int) -> abc.Sequence[GenerationConfig | None]:
    if config is None or isinstance(config, GenerationConfig):
        return [config] * count
    if not isinstance(config, abc.Sequence):
        kind = type(config).__name__
        raise RequestError(f"config must be a GenerationConfig or a list of them, not {kind}")
    if len(config) != count:
        raise RequestError(f"there are {len(config)} configs for {count} prompts; give one each")
    return config


def _closed() -> BackendError:
    return BackendError("the engine is closed; open one with Engine.from_bundle")
