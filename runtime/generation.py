"""How to generate: length, sampling, stopping, and what to report."""

import difflib
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any, Self

import numpy as np

from drl.runtime.errors import RequestError, shorten

_SAMPLING = frozenset({"do_sample", "temperature", "top_k", "top_p", "min_p"})

# Numbers meet logits in single precision, where smaller ones are zero and larger ones infinite.
_SMALLEST = float(np.finfo(np.float32).tiny)
_LARGEST = float(np.finfo(np.float32).max)
_LARGEST_INTEGER = 2**63 - 1


@dataclass(frozen=True)
class GenerationConfig:
    """Options of one request. Decoding is greedy unless `do_sample` or a temperature asks.

    What is left out has the default given here, not the bundle's: use `engine.configure(...)` for
    a config that keeps the bundle's defaults, such as `forced_bos_token_id` and stop tokens.

    Attributes:
        max_new_tokens: Most tokens to generate; None generates as many as the model's cache holds.
        min_new_tokens: The end-of-sequence and stop tokens are barred from the first so many.
        do_sample: Draw tokens at random (True) or take the likeliest (False). None, the default,
            samples if a temperature above 0 is given.
        temperature: Logits are divided by it before sampling; 0 is greedy. Default 1 if sampling.
        top_k: Sample among the `top_k` likeliest tokens; None or 0 for all.
        top_p: Sample among the fewest likeliest tokens whose probabilities reach `top_p`, in
            (0, 1]. Source: Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration".
        min_p: Bar tokens less likely than `min_p` times the likeliest, in [0, 1]. Source: Nguyen
            et al. 2024, "Turning Up the Heat: Min-p Sampling". The three apply in this order,
            each to what the one before left, as in most libraries.
        repetition_penalty: Divides positive and multiplies negative logits of tokens generated
            before; 1 is none. Source: Keskar et al. 2019, "CTRL".
        seed: Makes sampling reproducible. The draws of a request depend on nothing but its seed:
            not on the batch, nor on its place in it. None seeds from the system.
        forced_bos_token_id: The first token, whatever the model says: the target language of
            multilingual translation models.
        stop_token_ids: Tokens that end generation besides the end-of-sequence token; like it they
            are not part of the result.
        stop_strings: Texts that end generation; the result's text ends before the first of them.
        logprobs: Report the log-probability of each token, of the model's own distribution before
            penalties and temperature.
        top_logprobs: Report so many likeliest tokens at each step.

    Raises:
        RequestError: A value is wrong; the message lists every mistake.
    """

    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int | None = None
    forced_bos_token_id: int | None = None
    stop_token_ids: Sequence[int] = ()
    stop_strings: Sequence[str] = ()
    logprobs: bool = True
    top_logprobs: int = 0

    def __post_init__(self) -> None:
        mistakes: list[str] = []
        self._check_lengths(mistakes)
        self._check_sampling(mistakes)
        self._check_stops(mistakes)
        self._check_reports(mistakes)
        if mistakes:
            raise RequestError("generation options: " + "; ".join(mistakes))

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """Build a config from named options, as a JSON document or a command line gives them.

        Raises:
            RequestError: An option is unknown (the nearest known name is given) or wrong.
        """
        known = [field.name for field in fields(cls)]
        unknown = []
        for name in options:
            if name not in known:
                close = difflib.get_close_matches(str(name), known, 1)
                unknown.append(f"{name!r}" + (f" (did you mean {close[0]!r}?)" if close else ""))
        if unknown:
            raise RequestError(f"unknown generation option {', '.join(unknown)}")
        return cls(**options)

    @classmethod
    def from_defaults(cls, defaults: Mapping[str, Any], options: Mapping[str, Any]) -> Self:
        """Build a config from a bundle's defaults and the options that are given.

        An option of sampling replaces all defaults of sampling: half of two ways to sample is
        neither.

        Raises:
            RequestError: See `from_options`.
        """
        resampled = bool(_SAMPLING & options.keys())
        kept = {n: v for n, v in defaults.items() if not (resampled and n in _SAMPLING)}
        return cls.from_options(kept | dict(options))

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn at random."""
        if self.do_sample is None:
            return bool(self.temperature)
        return self.do_sample

    def _check_lengths(self, mistakes: list[str]) -> None:
        self._integer("max_new_tokens", mistakes, minimum=1, optional=True)
        self._integer("min_new_tokens", mistakes, minimum=0)
        longest = self.max_new_tokens
        if not mistakes and longest is not None and self.min_new_tokens > longest:
            mistakes.append(
                f"min_new_tokens {self.min_new_tokens} exceeds max_new_tokens {longest}"
            )

    def _check_sampling(self, mistakes: list[str]) -> None:
        self._boolean("do_sample", mistakes, optional=True)
        self._number("temperature", mistakes, 0.0, _LARGEST, optional=True)
        self._integer("top_k", mistakes, minimum=0, optional=True)
        self._number("top_p", mistakes, 0.0, 1.0, optional=True, above=True)
        self._number("min_p", mistakes, 0.0, 1.0, optional=True)
        self._number("repetition_penalty", mistakes, 0.0, _LARGEST, above=True)
        self._integer("seed", mistakes, minimum=0, optional=True)
        self._integer("forced_bos_token_id", mistakes, minimum=0, optional=True)
        if mistakes:
            return
        if self.do_sample and self.temperature == 0:
            mistakes.append("do_sample=True contradicts temperature 0, which is greedy")
        if self.do_sample is False and self.temperature:
            mistakes.append(f"do_sample=False contradicts temperature {self.temperature}")
        idle = [name for name in ("top_k", "top_p", "min_p") if getattr(self, name)]
        if idle and not self.samples and self.do_sample is None and self.temperature is None:
            mistakes.append(f"{', '.join(idle)} needs do_sample=True or a temperature")

    def _check_stops(self, mistakes: list[str]) -> None:
        ids = self._tuple("stop_token_ids")
        if ids is None or not all(_is_integer(item) and item >= 0 for item in ids):
            mistakes.append("stop_token_ids must be token ids")
        else:
            object.__setattr__(self, "stop_token_ids", tuple(int(item) for item in ids))
        # One string is a sequence of its characters; nobody means that.
        strings = self.stop_strings
        parts = (strings,) if isinstance(strings, str) else self._tuple("stop_strings")
        if parts is None or not all(isinstance(item, str) and item for item in parts):
            mistakes.append("stop_strings must be strings that are not empty")
        else:
            object.__setattr__(self, "stop_strings", parts)

    def _check_reports(self, mistakes: list[str]) -> None:
        self._boolean("logprobs", mistakes)
        self._integer("top_logprobs", mistakes, minimum=0)
        if self.top_logprobs and self.logprobs is False:
            mistakes.append("top_logprobs needs logprobs=True")

    def _tuple(self, name: str) -> tuple[Any, ...] | None:
        value = getattr(self, name)
        return tuple(value) if isinstance(value, Iterable) else None

    def _boolean(self, name: str, mistakes: list[str], optional: bool = False) -> None:
        value = getattr(self, name)
        if not (isinstance(value, bool) or (optional and value is None)):
            mistakes.append(f"{name} must be true or false, not {shorten(value)}")

    def _integer(
        self, name: str, mistakes: list[str], minimum: int, optional: bool = False
    ) -> None:
        value = getattr(self, name)
        if optional and value is None:
            return
        if not _is_integer(value) or value < minimum:
            shown = shorten(value)
            mistakes.append(f"{name} must be an integer of at least {minimum}, not {shown}")
        elif value > _LARGEST_INTEGER:
            mistakes.append(f"{name} must be at most {_LARGEST_INTEGER}, not {shorten(value)}")
        else:
            object.__setattr__(self, name, int(value))

    def _number(
        self,
        name: str,
        mistakes: list[str],
        low: float,
        high: float,
        optional: bool = False,
        above: bool = False,
    ) -> None:
        value = getattr(self, name)
        if optional and value is None:
            return
        number = isinstance(value, Real) and not isinstance(value, bool)
        if not number or not low <= value <= high or (above and value == low):
            words = "above" if above else "at least"
            limit = f"{words} {low:g} and at most {high:g}"
            mistakes.append(f"{name} must be a number {limit}, not {shorten(value)}")
        elif 0.0 < value < _SMALLEST:
            words = "at least" if above else "0 or at least"
            mistakes.append(f"{name} must be {words} {_SMALLEST:g}, not {shorten(value)}")
        else:
            object.__setattr__(self, name, float(value))


def _is_integer(value: object) -> bool:
    """Whether `value` is an integer of Python or NumPy; truth values are none."""
    if isinstance(value, bool):
        return False
    try:
        operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return False
    return True
