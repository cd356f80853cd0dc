"""The engine: what an application embeds to generate text from a bundle.

`asyncio` brings sockets and more along, a tenth of the time and memory that loading takes: only
what needs it imports it.
"""

import contextlib
import functools
import threading
import time
from collections import abc
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from drl.runtime.arrays import Array
from drl.runtime.backends import Backend, open_backend, parse_device
from drl.runtime.bundle import Bundle
from drl.runtime.costs import CostModel, within_budget
from drl.runtime.decoding import SequenceGroup
from drl.runtime.errors import BundleError, DrlError, RequestError, check_count
from drl.runtime.generation import GenerationConfig
from drl.runtime.paths import AUTO
from drl.runtime.processors import LogitsProcessor
from drl.runtime.request import Request, RequestBuilder
from drl.runtime.results import GenerationResult, Piece
from drl.runtime.scoring import Score
from drl.runtime.service import Service
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
            sequences that are running. A backend that takes fewer decodes as many as it takes.
        device: What `backend` runs on, such as "cuda:1": times are predicted by a calibration of
            the same kind of device.
    """

    def __init__(
        self, bundle: Bundle, backend: Backend, max_batch_size: int = 32, device: str = "cpu"
    ) -> None:
        check_count("max_batch_size", max_batch_size)
        self._bundle = bundle
        self._backend = backend
        self._device, _ = parse_device(device)
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
        manifest, limits = bundle.manifest, backend.limits
        self._requests = RequestBuilder(manifest, self._tokenizer, defaults, max_batch_size, limits)
        if limits.rows is not None:
            max_batch_size = min(max_batch_size, limits.rows.most)
        self._service = Service(backend, manifest, max_batch_size)

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
            device: "cpu"; or, on an NVIDIA GPU, "cuda" for ONNX Runtime, "tensorrt" or
                "tensorrt-rtx" for engines that `drl-build` has made; "cuda:1" is the second GPU.
            threads: Threads per graph; None takes what `DRL_THREADS` says, or one per core that
                this process may use. On a GPU, threads for what is left to the host.
            max_batch_size: See `Engine`.
            verify_hashes: Whether to read every file and compare its SHA-256.

        Raises:
            BundleError: The bundle is missing, damaged or too new, or is not for the device.
            BackendError: The device's library is missing, does not work or refuses the bundle.
        """
        bundle = Bundle.load(path, verify_hashes=verify_hashes)
        return cls(bundle, open_backend(bundle, device, threads), max_batch_size, device)

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
        budget_ms: float | None = None,
        return_experts: bool = False,
        prefix: Prompt | None = None,
        processors: abc.Sequence[LogitsProcessor] = (),
        name: str = "the prompt",
        **options: Any,
    ) -> Request:
        """Check a prompt and its options, and make the request that `run` takes.

        Arguments are those of `generate`, for one prompt, which messages call `name`.

        Raises:
            RequestError: The request cannot be served.
        """
        config = self._config(config, options)
        request = self._requests.build(
            prompt, config, path, budget, return_experts, prefix, processors, name
        )
        if budget_ms is None:
            return request
        return within_budget(self._costs, self._bundle.manifest.paths, request, budget_ms)

    def generate(
        self,
        prompts: abc.Sequence[Prompt],
        config: Configs = None,
        *,
        path: str | int = AUTO,
        budget: float = 1.0,
        budget_ms: float | None = None,
        return_experts: bool = False,
        prefixes: abc.Sequence[Prompt | None] | None = None,
        processors: abc.Sequence[LogitsProcessor] = (),
        cancel: threading.Event | None = None,
        on_piece: Callable[[int, Piece], None] | None = None,
        **options: Any,
    ) -> list[GenerationResult]:
        """Generate a text for each prompt.

        Args:
            prompts: Strings or lists of token ids.
            config: How to generate: one for all prompts, or one each; by default as the bundle
                says. A `GenerationConfig` that is given replaces the bundle's defaults altogether,
                such as a translation model's `forced_bos_token_id` and stop tokens.
            path: "auto" lets the model's path router choose; a name or an index forces a path.
            budget: Largest cost, in [0, 1], of the paths that "auto" chooses from; 1 is the cost
                of the dearest path.
            budget_ms: Milliseconds that each prompt may take by itself: "auto" chooses from the
                paths whose predicted time fits, or takes the cheapest if none does. `drl-bench
                --calibrate` must have measured the bundle on this machine.
            return_experts: Whether results tell which experts each token used.
            prefixes: What each output begins with, a text or token ids, or None for nothing.
            processors: Change the scores of tokens, after those that options ask for.
            cancel: Ends what is in progress when it is set, from whatever thread; the results
                hold what there was.
            on_piece: Called with a prompt's number and each part of its text as it grows, as
                `stream` yields them, between two steps of the decoder.
            options: Fields of `GenerationConfig`, put over `config` or the bundle's defaults:
                `engine.generate(prompts, num_beams=4, max_new_tokens=32)`.

        Returns:
            A result per prompt, in their order. Where `num_return_sequences` asks for several, the
            best one, with the others as its `alternatives`.

        Raises:
            RequestError: A request cannot be served, and nothing was generated; or a processor
                went wrong.
            BundleError: There is a `budget_ms` and no calibration.
        """
        called = time.perf_counter()
        requests = self._build(
            prompts,
            config,
            {
                "path": path,
                "budget": budget,
                "budget_ms": budget_ms,
                "return_experts": return_experts,
                "prefixes": prefixes,
                "processors": processors,
                **options,
            },
        )

        def fail(number: int, failure: DrlError) -> None:
            raise _numbered(failure, number)

        stream = on_piece is not None
        groups = (self._begin(each, stream, cancel, called) for each in requests)
        results = dict(self._service.run(groups, on_piece, fail))
        return [results[index] for index in range(len(requests))]

    def run(
        self,
        requests: Iterable[Request],
        *,
        cancel: threading.Event | None = None,
        on_piece: Callable[[int, Piece], None] | None = None,
        on_error: Callable[[int, DrlError], None] | None = None,
    ) -> Iterator[tuple[int, GenerationResult]]:
        """Serve requests as places become free, and yield each result when it is complete.

        Args:
            requests: Made by `request`. They are read a batch ahead of the results, so their number
                needs no bound. The time of each counts from then.
            cancel: See `generate`.
            on_piece: See `generate`.
            on_error: Called with the position of a request that failed on the way, such as by its
                logits processor, and the reason; the others go on. Without it the reason is raised.

        Yields:
            The request's position and its result, in the order in which they complete.
        """
        groups = (self._begin(each, on_piece is not None, cancel) for each in requests)
        return self._service.run(groups, on_piece, on_error)

    def stream(
        self,
        prompt: Prompt,
        config: GenerationConfig | None = None,
        *,
        cancel: threading.Event | None = None,
        **options: Any,
    ) -> Iterator[Piece]:
        """Generate a text and yield it while it grows.

        The pieces' texts, joined, are the text that `generate` returns; of several samples, those
        of one `index`. A beam search yields what all of its beams have in common. A piece never
        ends inside a character, and never holds text that a stop string cuts off. Leaving the loop
        early gives the sequence's place to others. Other arguments are those of `request`.

        Raises:
            RequestError: The request cannot be served; raised by the call, not by the first piece.
        """
        return self.stream_request(self.request(prompt, config, **options), cancel=cancel)

    def stream_request(
        self, request: Request, *, cancel: threading.Event | None = None
    ) -> Iterator[Piece]:
        """As `stream`, for a request made with `request`."""
        return self._service.stream(self._begin(request, stream=True, cancel=cancel))

    def score(
        self,
        sources: abc.Sequence[Prompt],
        targets: abc.Sequence[Prompt],
        *,
        path: str | int = AUTO,
        budget: float = 1.0,
        end: bool = True,
    ) -> list[Score]:
        """Log-probabilities of given targets, for reranking or perplexity.

        The decoder reads each target in one pass. Nothing changes the model's distribution:
        penalties, forced tokens and temperature belong to generation.

        Args:
            sources: Strings or lists of token ids.
            targets: What to score, one per source: text, which is tokenised without special
                tokens, or token ids. A model that forces a first token (a language) by default
                has it in front of text.
            path: See `generate`.
            budget: See `generate`.
            end: Whether the end token, behind each target that does not end with it, is scored.

        Returns:
            A score per pair, in their order.

        Raises:
            RequestError: A source or a target cannot be read.
        """
        requests = self._requests.pairs(sources, targets, path, budget, end)
        return self._service.score(requests)

    async def agenerate(
        self, prompts: abc.Sequence[Prompt], config: Configs = None, **options: Any
    ) -> list[GenerationResult]:
        """As `generate`, for `asyncio`: the loop goes on while a thread decodes.

        All requests under way, of whatever task or thread, are decoded in common batches. A task
        that is cancelled gives the places of its sequences to others; so there is no `cancel`, nor
        an `on_piece`, for which there is `astream`.
        """
        import asyncio

        from drl.runtime.aio import watch

        called, cancel = time.perf_counter(), threading.Event()

        def begin() -> list[SequenceGroup]:
            requests = self._build(prompts, config, options)
            return [self._begin(request, False, cancel, called) for request in requests]

        groups = await asyncio.to_thread(begin)
        at_once = self._service.requests_at_once
        news = watch(self._service.driver, groups, cancel, at_once)
        async with contextlib.aclosing(news):
            async for number, _, done in news:
                failure = groups[number].failure
                if done and failure is not None:
                    raise _numbered(failure, number)
        # Texts are made here, and long ones take their time.
        return await asyncio.to_thread(lambda: [group.result() for group in groups])

    async def astream(
        self, prompt: Prompt, config: GenerationConfig | None = None, **options: Any
    ) -> AsyncIterator[Piece]:
        """As `stream`, for `asyncio`; a wrong request is raised by the first piece."""
        import asyncio

        from drl.runtime.aio import watch

        called, cancel = time.perf_counter(), threading.Event()
        build = functools.partial(self.request, prompt, config, **options)
        group = self._begin(await asyncio.to_thread(build), True, cancel, called)
        async with contextlib.aclosing(watch(self._service.driver, [group], cancel)) as news:
            async for _, pieces, _ in news:
                for piece in pieces:
                    yield piece
        if group.failure is not None:
            raise group.failure

    def close(self) -> None:
        """Give back the memory. Results stay valid; the engine serves no more."""
        self._service.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _build(
        self, prompts: abc.Sequence[Prompt], config: Configs, options: dict[str, Any]
    ) -> list[Request]:
        """Requests for the arguments of `generate`, all of them checked."""
        if isinstance(prompts, str) or not isinstance(prompts, abc.Sequence):
            kind = type(prompts).__name__
            raise RequestError(f"prompts must be a list of prompts, not {kind}; wrap one in [ ]")
        if config is None or isinstance(config, GenerationConfig):
            config = [config] * len(prompts)  # type: ignore[list-item]
        elif not isinstance(config, abc.Sequence):
            kind = type(config).__name__
            raise RequestError(f"config must be a GenerationConfig or a list of them, not {kind}")
        for name, instead in (("prefix", "; give prefixes=[...], one each"), ("name", "")):
            if name in options:
                raise RequestError(f"{name!r} is no option of several prompts{instead}")
        configs = _one_each("configs", config, len(prompts))
        prefixes = _one_each("prefixes", options.pop("prefixes", None), len(prompts))
        return [
            self.request(prompt, each, prefix=prefix, name=f"prompt {index}", **options)
            for index, (prompt, each, prefix) in enumerate(
                zip(prompts, configs, prefixes, strict=True)
            )
        ]

    @functools.cached_property
    def _costs(self) -> CostModel:
        """What paths cost on this machine's device, read when it is first asked for."""
        return CostModel.load(self._bundle.folder, self._device)

    def _config(
        self, config: GenerationConfig | None, options: dict[str, Any]
    ) -> GenerationConfig | None:
        if not options:
            return config
        if config is None:
            return self.configure(**options)
        return config.replace(**options)

    def _begin(
        self,
        request: Request,
        stream: bool = False,
        cancel: threading.Event | None = None,
        called: float | None = None,
    ) -> SequenceGroup:
        eos = self._bundle.manifest.tokens.eos
        return SequenceGroup(request, eos, self._tokenizer, stream, cancel, called)


def _one_each(name: str, values: object, count: int) -> abc.Sequence[Any]:
    """Values for `count` prompts: a list of as many, or None for none."""
    if values is None:
        return [None] * count
    if isinstance(values, str) or not isinstance(values, abc.Sequence):
        kind = type(values).__name__
        raise RequestError(f"{name} must be a list, one for each prompt, not {kind}")
    if len(values) != count:
        raise RequestError(f"there are {len(values)} {name} for {count} prompts; give one each")
    return values


def _numbered(failure: DrlError, number: int) -> DrlError:
    """A failure that says which prompt it befell."""
    numbered = type(failure)(f"prompt {number}: {failure}")
    numbered.__cause__ = failure.__cause__
    return numbered
