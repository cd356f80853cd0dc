"""From what a caller passes to a request that is known to be servable."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np

from drl.runtime.backends.limits import NO_LIMITS, BackendLimits, Limit, tighter
from drl.runtime.constraints import ConstraintCompiler
from drl.runtime.errors import RequestError, shorten
from drl.runtime.generation import GenerationConfig
from drl.runtime.manifest import Manifest
from drl.runtime.paths import AUTO, find_path
from drl.runtime.processors import LogitsProcessor, build_processors
from drl.runtime.text import Tokenizer

_LARGER_BATCH = "open the engine with a larger one (--batch-size)"


@dataclass(frozen=True)
class Request:
    """A checked request.

    Attributes:
        tokens: Prompt token ids, with the tokenizer's special tokens if the prompt was text.
        config: How to generate.
        max_new_tokens: Most tokens to generate behind the prefix: what `config` asks for, or as
            many as the cache holds.
        path: Index of the path, or None to let the path router choose.
        budget: Largest path cost, in [0, 1].
        with_experts: Whether to report expert ids.
        prefix: Tokens that the output begins with.
        processors: What changes the scores of tokens before one is chosen, in this order.
    """

    tokens: tuple[int, ...]
    config: GenerationConfig
    max_new_tokens: int
    path: int | None
    budget: float
    with_experts: bool = False
    prefix: tuple[int, ...] = ()
    processors: tuple[LogitsProcessor, ...] = ()


class RequestBuilder:
    """Checks requests against a bundle's limits, before any work is done for them.

    Args:
        manifest: What the bundle says of the model.
        tokenizer: The bundle's tokenizer, if it has one.
        defaults: How to generate where a request does not say.
        max_batch_size: Rows that the engine decodes at a time.
        limits: Of the backend, where they are tighter.
    """

    def __init__(
        self,
        manifest: Manifest,
        tokenizer: Tokenizer | None,
        defaults: GenerationConfig,
        max_batch_size: int,
        limits: BackendLimits = NO_LIMITS,
    ) -> None:
        self._manifest = manifest
        self._defaults = defaults
        self._tokenizer = tokenizer
        self._rows = tighter(limits.rows, max_batch_size, _LARGER_BATCH)
        bundle = manifest.limits
        self._source = tighter(limits.source_length, bundle.max_source_length, "shorten it")
        self._target = tighter(limits.target_length, bundle.max_target_length, "shorten it")
        self._larger_cache = (
            f"; {self._target.remedy}" if self._target is limits.target_length else ""
        )
        self._constraints = ConstraintCompiler(
            tokenizer, manifest.limits.vocab_size, manifest.tokens.eos
        )

    def build(
        self,
        prompt: object,
        config: GenerationConfig | None = None,
        path: object = AUTO,
        budget: object = 1.0,
        with_experts: bool = False,
        prefix: object = None,
        processors: Sequence[LogitsProcessor] = (),
        name: str = "the prompt",
    ) -> Request:
        """Make a request of a prompt, which is a string or a sequence of token ids.

        `prefix` is one too, or None for none. `name` is what messages call the prompt.

        Raises:
            RequestError: The prompt or the prefix is of another type, longer than the model reads
                or holds unknown ids; the prompt is empty; the path is unknown; or an option
                exceeds the limits of the model or the engine.
        """
        config = self._defaults if config is None else config
        if not isinstance(config, GenerationConfig):
            raise RequestError(f"config must be a GenerationConfig, not {type(config).__name__}")
        self._check_tokens(config)
        self._check_rows(config)
        given = self.target_tokens(prefix, f"the prefix of {name}")
        return Request(
            tokens=self.source_tokens(prompt, name),
            config=config,
            max_new_tokens=self._max_new_tokens(config, len(given)),
            path=find_path(self._manifest.paths, path),
            budget=_budget(budget),
            with_experts=with_experts,
            prefix=given,
            processors=self._processors(config, processors),
        )

    def pairs(
        self, sources: object, targets: object, path: object, budget: object, end: bool
    ) -> list[Request]:
        """Requests whose prefixes are targets to be scored; `end` adds the end token to them.

        Raises:
            RequestError: There is not one target per source, or one of them is wrong.
        """
        for name, value in (("sources", sources), ("targets", targets)):
            if isinstance(value, str) or not isinstance(value, Sequence):
                raise RequestError(f"{name} must be a list, not {type(value).__name__}")
        assert isinstance(sources, Sequence)
        assert isinstance(targets, Sequence)
        if len(sources) != len(targets):
            raise RequestError(
                f"there are {len(targets)} targets for {len(sources)} sources; give one each"
            )
        chosen, share = find_path(self._manifest.paths, path), _budget(budget)
        return [
            Request(
                tokens=self.source_tokens(source, f"source {index}"),
                config=self._defaults,
                max_new_tokens=0,
                path=chosen,
                budget=share,
                prefix=self._scored_tokens(target, f"target {index}", end),
            )
            for index, (source, target) in enumerate(zip(sources, targets, strict=True))
        ]

    def _scored_tokens(self, target: object, name: str, end: bool) -> tuple[int, ...]:
        tokens = self.target_tokens(target, name)
        language, eos = self._defaults.forced_bos_token_id, self._manifest.tokens.eos
        if isinstance(target, str) and language is not None:
            tokens = (language, *tokens)
        if end and (not tokens or tokens[-1] != eos):
            tokens = (*tokens, eos)
        if not tokens:
            raise RequestError(f"{name} is empty; give it at least one token, or score its end")
        if len(tokens) > self._target.most:
            raise RequestError(
                f"{name} has {len(tokens)} tokens with its end and the model reads "
                f"{self._target.most}; {self._target.remedy}"
            )
        return tokens

    def source_tokens(self, prompt: object, name: str) -> tuple[int, ...]:
        """Token ids that the encoder reads: text with the tokenizer's special tokens, or ids.

        Raises:
            RequestError: See `build`.
        """
        if isinstance(prompt, str):
            if not prompt.strip():
                raise RequestError(f"{name} is empty; give it some text")
            tokens = self._encode(prompt, name, special_tokens=True)
        else:
            tokens = _token_ids(prompt, name)
        if not tokens:
            raise RequestError(f"{name} is empty; give it at least one token")
        return self._checked(tokens, name, self._source)

    def target_tokens(self, text: object, name: str) -> tuple[int, ...]:
        """Token ids that the decoder is given: text without special tokens, ids, or None for none.

        Raises:
            RequestError: See `build`.
        """
        if text is None:
            return ()
        if isinstance(text, str):
            tokens = self._encode(text, name, special_tokens=False)
        else:
            tokens = _token_ids(text, name)
        return self._checked(tokens, name, self._target)

    def _checked(self, tokens: tuple[int, ...], name: str, longest: Limit) -> tuple[int, ...]:
        if len(tokens) > longest.most:
            raise RequestError(
                f"{name} has {len(tokens)} tokens and the model reads {longest.most}; "
                f"{longest.remedy}"
            )
        vocab_size = self._manifest.limits.vocab_size
        for token in tokens:
            if not 0 <= token < vocab_size:
                raise RequestError(
                    f"{name} has token id {token}; the vocabulary is 0 to {vocab_size - 1}"
                )
        return tokens

    def _encode(self, text: str, name: str, special_tokens: bool) -> tuple[int, ...]:
        if self._tokenizer is None:
            raise RequestError(
                f"{name} is text and the bundle has no tokenizer.json; give it as token ids"
            )
        try:
            return tuple(self._tokenizer.encode(text, special_tokens))
        except RequestError as error:
            raise RequestError(f"{name}: {error}") from None

    def _max_new_tokens(self, config: GenerationConfig, prefix: int) -> int:
        room = self._target.most - prefix
        behind = f" behind a prefix of {prefix}" if prefix else ""
        if room < 1:
            raise RequestError(f"a prefix of {prefix} tokens leaves no room in the model's cache")
        wanted, option = config.max_new_tokens, "max_new_tokens"
        if config.max_length is not None:
            # The start token and the prefix count as well.
            wanted, option = config.max_length - 1 - prefix, "max_length"
            if wanted < 1:
                raise RequestError(
                    f"max_length {config.max_length} leaves no room behind the start token"
                    f"{f' and a prefix of {prefix}' if prefix else ''}; raise it"
                )
        if wanted is None:
            wanted = room
        if wanted > room:
            raise RequestError(
                f"{option} {getattr(config, option)} exceeds the model's cache of "
                f"{self._target.most}{behind}{self._larger_cache}"
            )
        for least, value in (
            ("min_new_tokens", config.min_new_tokens),
            ("min_length", config.min_length - 1 - prefix),
        ):
            if value > wanted:
                raise RequestError(
                    f"{least} {getattr(config, least)} exceeds the {wanted} tokens that can be "
                    f"generated{behind}"
                )
        return wanted

    def _check_tokens(self, config: GenerationConfig) -> None:
        vocab_size = self._manifest.limits.vocab_size
        for name, token in config.token_ids():
            if not 0 <= token < vocab_size:
                raise RequestError(
                    f"{name}: {token} is out of range; the vocabulary has 0 to {vocab_size - 1}"
                )

    def _check_rows(self, config: GenerationConfig) -> None:
        for name in ("num_beams", "num_return_sequences"):
            if getattr(config, name) > self._rows.most:
                raise RequestError(
                    f"{name} {getattr(config, name)} exceeds the engine's max_batch_size of "
                    f"{self._rows.most}; {self._rows.remedy}"
                )

    def _processors(
        self, config: GenerationConfig, given: Sequence[LogitsProcessor]
    ) -> tuple[LogitsProcessor, ...]:
        for processor in given:
            if not callable(processor):
                raise RequestError(
                    f"processors must be callables that take a state and scores, not "
                    f"{type(processor).__name__}"
                )
        constraint = self._constraints.processor(config)
        extra = [*given] if constraint is None else [*given, constraint]
        return build_processors(config, self._manifest.tokens.eos, extra)


def _token_ids(prompt: object, name: str) -> tuple[int, ...]:
    if isinstance(prompt, np.ndarray):
        if prompt.ndim != 1 or not np.issubdtype(prompt.dtype, np.integer):
            raise RequestError(
                f"{name} must be a one-dimensional array of integers, not of {prompt.dtype} "
                f"with {prompt.ndim} dimensions"
            )
        return tuple(prompt.tolist())
    if not isinstance(prompt, list | tuple):
        raise RequestError(
            f"{name} must be a string or a list of token ids, not {type(prompt).__name__}"
        )
    for item in prompt:
        if isinstance(item, bool) or not isinstance(item, Integral):
            raise RequestError(f"{name} holds {item!r}; token ids are integers")
    return tuple(int(item) for item in prompt)


def _budget(budget: object) -> float:
    number = isinstance(budget, Real) and not isinstance(budget, bool)
    if not number or not 0.0 <= budget <= 1.0:  # type: ignore[operator]
        raise RequestError(f"budget must be a number from 0 to 1, not {shorten(budget)}")
    return float(budget)  # type: ignore[arg-type]
