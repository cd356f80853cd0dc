"""From what a caller passes to a request that is known to be servable."""

from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np

from drl.runtime.errors import RequestError, shorten
from drl.runtime.generation import GenerationConfig
from drl.runtime.manifest import Manifest
from drl.runtime.paths import AUTO, find_path
from drl.runtime.text import Tokenizer


@dataclass(frozen=True)
class Request:
    """A checked request.

    Attributes:
        tokens: Prompt token ids, with the tokenizer's special tokens if the prompt was text.
        config: How to generate.
        max_new_tokens: `config.max_new_tokens`, or the cache's length where that is None.
        path: Index of the path, or None to let the path router choose.
        budget: Largest path cost, in [0, 1].
        with_experts: Whether to report expert ids.
    """

    tokens: tuple[int, ...]
    config: GenerationConfig
    max_new_tokens: int
    path: int | None
    budget: float
    with_experts: bool = False


class RequestBuilder:
    """Checks requests against a bundle's limits, before any work is done for them."""

    def __init__(
        self, manifest: Manifest, tokenizer: Tokenizer | None, defaults: GenerationConfig
    ) -> None:
        self._manifest = manifest
        self._defaults = defaults
        self._tokenizer = tokenizer

    def build(
        self,
        prompt: object,
        config: GenerationConfig | None = None,
        path: object = AUTO,
        budget: object = 1.0,
        with_experts: bool = False,
        name: str = "the prompt",
    ) -> Request:
        """Make a request of a prompt, which is a string or a sequence of token ids.

        `name` is what messages call the prompt.

        Raises:
            RequestError: The prompt is of another type, empty, longer than the model reads or holds
                unknown ids; the path is unknown; or an option exceeds the model's limits.
        """
        config = self._defaults if config is None else config
        if not isinstance(config, GenerationConfig):
            raise RequestError(f"config must be a GenerationConfig, not {type(config).__name__}")
        return Request(
            tokens=self._tokens(prompt, name),
            config=config,
            max_new_tokens=self._max_new_tokens(config),
            path=find_path(self._manifest.paths, path),
            budget=_budget(budget),
            with_experts=with_experts,
        )

    def _tokens(self, prompt: object, name: str) -> tuple[int, ...]:
        text = isinstance(prompt, str)
        tokens = self._encode(str(prompt), name) if text else _token_ids(prompt, name)
        longest = self._manifest.limits.max_source_length
        if not tokens:
            raise RequestError(f"{name} is empty; give it at least one token")
        if len(tokens) > longest:
            raise RequestError(
                f"{name} has {len(tokens)} tokens and the model reads {longest}; shorten it"
            )
        vocab_size = self._manifest.limits.vocab_size
        for token in tokens:
            if not 0 <= token < vocab_size:
                raise RequestError(
                    f"{name} has token id {token}; the vocabulary is 0 to {vocab_size - 1}"
                )
        return tokens

    def _encode(self, text: str, name: str) -> tuple[int, ...]:
        if self._tokenizer is None:
            raise RequestError(
                f"{name} is text and the bundle has no tokenizer.json; give it as token ids"
            )
        if not text.strip():
            raise RequestError(f"{name} is empty; give it some text")
        try:
            return tuple(self._tokenizer.encode(text))
        except RequestError as error:
            raise RequestError(f"{name}: {error}") from None

    def _max_new_tokens(self, config: GenerationConfig) -> int:
        limits = self._manifest.limits
        wanted = config.max_new_tokens
        if wanted is None:
            wanted = limits.max_target_length
        if wanted > limits.max_target_length:
            raise RequestError(
                f"max_new_tokens {wanted} exceeds the model's cache of {limits.max_target_length}"
            )
        if config.min_new_tokens > wanted:
            raise RequestError(
                f"min_new_tokens {config.min_new_tokens} exceeds the model's cache of {wanted}"
            )
        named = [("stop_token_ids", token) for token in config.stop_token_ids]
        named.append(("forced_bos_token_id", config.forced_bos_token_id or 0))
        for name, token in named:
            if token >= limits.vocab_size:
                raise RequestError(
                    f"{name}: {token} is out of range; the vocabulary has 0 to "
                    f"{limits.vocab_size - 1}"
                )
        return wanted


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
