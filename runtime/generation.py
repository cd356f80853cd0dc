"""How to generate: length, search, sampling, penalties, constraints, stopping, and reports."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any, Literal, Self

from drl.runtime.errors import RequestError
from drl.runtime.options.checks import normalise
from drl.runtime.options.defaults import merge
from drl.runtime.options.names import unknown_option
from drl.runtime.options.rules import contradictions

# Given as a dict or as pairs, kept as pairs.
SequenceBias = Mapping[tuple[int, ...], float] | Sequence[tuple[Sequence[int], float]]


@dataclass(frozen=True, repr=False)
class GenerationConfig:
    """Options of one request, with the names and the meanings that transformers gives them.

    Decoding is greedy unless `num_beams` asks for a beam search, or `do_sample` or a temperature
    for sampling; together they sample within a beam search. What is left out, or None, has the
    default given here, not the bundle's: use `engine.configure(...)` for a config that keeps the
    bundle's defaults. Configs are hashable and equal if their options are: sequences are kept as
    tuples. "End tokens" are the end-of-sequence token and `stop_token_ids`; "scores" are logits,
    or log-probabilities in a beam search.

    Attributes:
        max_new_tokens: Most tokens to generate; by default as many as the model's cache holds.
        max_length: The same, counting the start token and a given prefix.
        min_new_tokens: End tokens are barred from the first so many tokens.
        min_length: The same, counting as `max_length`. Where both are given, both hold.
        max_time: Seconds after which generation ends with the tokens it has.
        num_beams: Hypotheses that a beam search keeps; 1 is no beam search.
        num_beam_groups: Groups of beams that are kept apart by `diversity_penalty`. Source:
            Vijayakumar et al. 2018, "Diverse Beam Search".
        diversity_penalty: Taken from a token's score for each time that a group before chose it
            at the same step.
        length_penalty: A hypothesis is scored by its sum of log-probabilities / length**penalty:
            above 0 favours long ones, below 0 short ones. Source: Wu et al. 2016, "Google's
            Neural Machine Translation System", simplified as in most libraries.
        early_stopping: When a beam search ends: True as soon as `num_beams` hypotheses are
            complete, False when a better one is unlikely, "never" when none can be better.
        num_return_sequences: Results per prompt: draws of sampling, or the best beams.
        do_sample: Draw tokens at random (True) or take the likeliest (False). None, the default,
            samples if a temperature above 0 is given.
        temperature: Scores are divided by it before sampling; 0 is greedy. Default 1 if sampling.
        top_k: Sample among the `top_k` likeliest tokens; None or 0 for all.
        top_p: Sample among the fewest likeliest tokens whose probabilities reach `top_p`, in
            (0, 1]. Source: Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration".
        min_p: Bar tokens less likely than `min_p` times the likeliest, in [0, 1]. Source: Nguyen
            et al. 2024, "Turning Up the Heat: Min-p Sampling".
        typical_p: Sample among the tokens whose information is nearest to the entropy, as many as
            reach this probability, in (0, 1]. Source: Meister et al. 2022, "Locally Typical
            Sampling".
        epsilon_cutoff: Bar tokens less likely than this, in [0, 1). Source: Hewitt et al. 2022,
            "Truncation Sampling as Language Model Desmoothing", as is the next one.
        eta_cutoff: Bar tokens less likely than eta and than sqrt(eta) * exp(-entropy), in [0, 1).
            The filters apply in this order, each to what the one before left.
        seed: Makes sampling reproducible. The draws of a request depend on nothing but its seed:
            not on the batch, nor on its place in it. None seeds from the system.
        repetition_penalty: Divides positive and multiplies negative scores of tokens generated
            before; 1 is none. Source: Keskar et al. 2019, "CTRL".
        encoder_repetition_penalty: Above 1 favours the prompt's tokens in the same manner.
        no_repeat_ngram_size: No sequence of so many tokens is generated twice; 0 is no bar.
        encoder_no_repeat_ngram_size: None of the prompt's sequences of so many tokens is
            generated; 0 is no bar.
        bad_words_ids: Token sequences that are never generated.
        suppress_tokens: Tokens that are never generated.
        begin_suppress_tokens: Tokens that are not the first one generated.
        sequence_bias: Added to the score of the token that completes a sequence: a dict such as
            {(3, 4): -2.5} or pairs such as [[3, 4], -2.5]; minus infinity bars.
        exponential_decay_length_penalty: (start, factor): once `start` tokens are generated, the
            end tokens' scores s grow by |s| * (factor**(tokens - start) - 1).
        forced_bos_token_id: The first token, whatever the model says: the target language of
            multilingual translation models.
        forced_eos_token_id: The last token if the maximal length is reached; or several, of which
            it is one.
        forced_decoder_ids: Pairs (position, token): tokens at fixed positions, of which 1 is the
            first after the start token. They go before the other forced tokens.
        renormalize_logits: Make scores log-probabilities again after all processors.
        remove_invalid_values: Replace scores that are no finite numbers.
        json_schema: The text is JSON of this schema, a dict or JSON text.
        regex: The text matches this regular expression as a whole, in the notation of Rust's
            `regex`, which has no look-around and no back-references.
        grammar: The text is a sentence of this grammar, in llguidance's variant of Lark's
            notation. At most one of the three may be given; they need the extra `constraints`.
        stop_token_ids: Tokens that end generation besides the end-of-sequence token; like it they
            are not part of the result.
        stop_strings: Texts that end generation; the result's text ends before the first of them.
        logprobs: Report the log-probability of each token, of the model's own distribution before
            penalties and temperature.
        top_logprobs: Report so many likeliest tokens at each step.

    Raises:
        RequestError: A value is wrong or contradicts another; the message lists every mistake.
    """

    max_new_tokens: int | None = None
    max_length: int | None = None
    min_new_tokens: int = 0
    min_length: int = 0
    max_time: float | None = None
    num_beams: int = 1
    num_beam_groups: int = 1
    diversity_penalty: float = 0.0
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    num_return_sequences: int = 1
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    epsilon_cutoff: float | None = None
    eta_cutoff: float | None = None
    seed: int | None = None
    repetition_penalty: float = 1.0
    encoder_repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    encoder_no_repeat_ngram_size: int = 0
    bad_words_ids: Sequence[Sequence[int]] = ()
    suppress_tokens: Sequence[int] = ()
    begin_suppress_tokens: Sequence[int] = ()
    sequence_bias: SequenceBias = ()
    exponential_decay_length_penalty: tuple[int, float] | None = None
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | Sequence[int] | None = None
    forced_decoder_ids: Sequence[tuple[int, int]] = ()
    renormalize_logits: bool = False
    remove_invalid_values: bool = False
    json_schema: Mapping[str, Any] | str | None = None
    regex: str | None = None
    grammar: str | None = None
    stop_token_ids: Sequence[int] = ()
    stop_strings: Sequence[str] = ()
    logprobs: bool = True
    top_logprobs: int = 0

    def __post_init__(self) -> None:
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        values, mistakes = normalise(given)
        for field in fields(self):
            if field.name not in mistakes:
                object.__setattr__(self, field.name, values.get(field.name, field.default))
        _raise_for([*mistakes.values(), *contradictions(self, mistakes)])

    @classmethod
    def check_values(cls, options: Mapping[str, Any]) -> None:
        """Check options one by one, before the defaults that they go over are known.

        Raises:
            RequestError: An option is unknown or has a wrong value; contradictions are left alone.
        """
        cls._check_names(options)
        _raise_for([*normalise(options)[1].values()])

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """Build a config from named options, as a JSON document or a command line gives them.

        Raises:
            RequestError: An option is unknown (the message says what to use instead) or wrong.
        """
        cls._check_names(options)
        return cls(**options)

    @classmethod
    def from_defaults(cls, defaults: Mapping[str, Any], options: Mapping[str, Any]) -> Self:
        """Build a config from a bundle's defaults and the options that are given.

        An option replaces the default of its name, and those that make no sense beside it, such as
        the defaults of beam search where sampling is asked for; see `drl.runtime.options.defaults`.

        Raises:
            RequestError: See `from_options`.
        """
        return cls.from_options(merge(defaults, options))

    def replace(self, **options: Any) -> Self:
        """A config with some options changed, as `from_defaults` puts them over a bundle's.

        Raises:
            RequestError: See `from_options`.
        """
        return self.from_defaults(self._given(), options)

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn at random."""
        if self.do_sample is None:
            return bool(self.temperature)
        return self.do_sample

    @property
    def width(self) -> int:
        """Rows of a decoder batch that one search takes."""
        return self.num_beams

    def token_ids(self) -> Iterator[tuple[str, int]]:
        """Every token id among the options, with its option's name, for a check of their range."""
        named: dict[str, Iterable[Any]] = {
            "bad_words_ids": chain.from_iterable(self.bad_words_ids),
            "sequence_bias": chain.from_iterable(ids for ids, _ in _pairs(self.sequence_bias)),
            "forced_decoder_ids": (token for _, token in self.forced_decoder_ids),
        }
        for name in ("stop_token_ids", "suppress_tokens", "begin_suppress_tokens"):
            named[name] = getattr(self, name)
        for name in ("forced_bos_token_id", "forced_eos_token_id"):
            value = getattr(self, name)
            named[name] = () if value is None else value if isinstance(value, tuple) else (value,)
        for name, tokens in named.items():
            yield from ((name, token) for token in tokens)

    @classmethod
    def _check_names(cls, options: Iterable[str]) -> None:
        known = [field.name for field in fields(cls)]
        unknown = [unknown_option(name, known) for name in options if name not in known]
        if unknown:
            raise RequestError(f"unknown generation option {', '.join(unknown)}")

    def _given(self) -> dict[str, Any]:
        """The options that are not at their defaults."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {f.name: values[f.name] for f in fields(self) if values[f.name] != f.default}

    def __repr__(self) -> str:
        """The options that are not at their defaults."""
        given = [f"{name}={value!r}" for name, value in self._given().items()]
        return f"{type(self).__name__}({', '.join(given)})"


def _raise_for(mistakes: Sequence[str]) -> None:
    if mistakes:
        raise RequestError("generation options: " + "; ".join(mistakes))


def _pairs(bias: SequenceBias) -> Iterable[tuple[Sequence[int], float]]:
    return bias.items() if isinstance(bias, Mapping) else bias
