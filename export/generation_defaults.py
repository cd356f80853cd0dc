"""How a foreign checkpoint generates by default: what of it the runtime can do, and what not.

The runtime's options have transformers' names, so most are carried over as they are. What
transformers ignores, such as a temperature where nothing is sampled, is ignored here as well; the
runtime would call it a mistake.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drl.runtime.errors import ConfigError, RequestError
from drl.runtime.generation import GenerationConfig
from drl.runtime.options.defaults import lower_minima

GENERATION_FILE = "generation_config.json"

_ANY_SEARCH = (
    "max_new_tokens",
    "max_length",
    "min_new_tokens",
    "min_length",
    "max_time",
    "num_return_sequences",
    "repetition_penalty",
    "encoder_repetition_penalty",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
    "sequence_bias",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "forced_decoder_ids",
    "renormalize_logits",
    "remove_invalid_values",
    "stop_strings",
)
_BEAM_SEARCH = (
    "num_beams",
    "num_beam_groups",
    "diversity_penalty",
    "length_penalty",
    "early_stopping",
)
_SAMPLING = (
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
)
# Where transformers samples and nothing is said about `top_k`, it takes this.
_TOP_K = 50
# Numbers at which transformers leaves an option alone.
_IDLE: Mapping[str, Callable[[float], bool]] = {
    "min_new_tokens": lambda value: value <= 0,
    "min_length": lambda value: value <= 0,
    "num_return_sequences": lambda value: value == 1,
    "repetition_penalty": lambda value: value == 1,
    "encoder_repetition_penalty": lambda value: value == 1,
    "no_repeat_ngram_size": lambda value: value <= 0,
    "encoder_no_repeat_ngram_size": lambda value: value <= 0,
    "num_beam_groups": lambda value: value == 1,
    "length_penalty": lambda value: value == 1,
    "temperature": lambda value: value == 1,
    "top_k": lambda value: value == 0,
    "top_p": lambda value: value >= 1,
    "min_p": lambda value: value == 0,
    "typical_p": lambda value: value >= 1,
    "epsilon_cutoff": lambda value: not 0 < value < 1,
    "eta_cutoff": lambda value: not 0 < value < 1,
}
# What the runtime cannot do, with the values at which it asks for nothing.
_IMPOSSIBLE: Mapping[str, tuple[Any, ...]] = {
    "guidance_scale": (None, 1),
    "penalty_alpha": (None, 0),
    "dola_layers": (None,),
    "top_h": (None,),
    "watermarking_config": (None,),
    "token_healing": (None, False),
    "force_words_ids": (None, []),
    "constraints": (None, []),
}


@dataclass(frozen=True)
class GenerationDefaults:
    """Generation defaults of a checkpoint.

    Attributes:
        options: Fields of the runtime's `GenerationConfig`.
        left_out: What the checkpoint asks for and the runtime cannot do, as `name=value`.
    """

    options: Mapping[str, Any]
    left_out: tuple[str, ...] = ()


def read_generation_defaults(
    folder: Path, config: Mapping[str, Any], vocab_size: int
) -> GenerationDefaults:
    """Read `generation_config.json`, or where there is none the model's `config.json`.

    Options for single tasks, which some configurations list apart, are left alone.

    Args:
        folder: The checkpoint.
        config: Its parsed `config.json`, where older checkpoints keep these options.
        vocab_size: Tokens of the model.

    Raises:
        ConfigError: The file is no JSON object, or a value is one that the runtime refuses.
    """
    path = folder / GENERATION_FILE
    values: Any = _of_model(config)
    if path.exists():
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigError(f"{path} is not valid JSON ({error}); write it again") from None
        if not isinstance(values, dict):
            raise ConfigError(f"{path} holds a {type(values).__name__}, not an object of options")
    left_out = tuple(
        f"{name}={values[name]}"
        for name, neutral in _IMPOSSIBLE.items()
        if values.get(name) not in neutral
    )
    options = _options(values)
    try:
        _check(options, vocab_size)
    except RequestError as error:
        source = path if path.exists() else folder / "config.json"
        raise ConfigError(f"{source}: {error}") from None
    return GenerationDefaults(options, left_out)


def _of_model(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options in a model's configuration, where the oldest ones name a forced token so."""
    forced = config.get("forced_bos_token_id")
    if forced is None and config.get("force_bos_token_to_be_generated"):
        return {**config, "forced_bos_token_id": config.get("bos_token_id")}
    return config


def _check(options: Mapping[str, Any], vocab_size: int) -> None:
    """Raise `RequestError` for what no bundle could be loaded with."""
    config = GenerationConfig.from_options(options)
    for name, token in config.token_ids():
        if token >= vocab_size:
            raise RequestError(
                f"{name}: token id {token} is outside the vocabulary of {vocab_size}"
            )


def _options(values: Mapping[str, Any]) -> dict[str, Any]:
    options = _chosen(values, _ANY_SEARCH)
    # Of two lengths of one kind, transformers goes by the one that counts new tokens.
    for new, whole in (("max_new_tokens", "max_length"), ("min_new_tokens", "min_length")):
        if values.get(new) is not None:
            options.pop(whole, None)
    lower_minima(options, options)
    if isinstance(options.get("forced_decoder_ids"), list):
        # A pair without a token leaves its position to the model.
        pairs = options.pop("forced_decoder_ids")
        if forced := [pair for pair in pairs if not _is_open(pair)]:
            options["forced_decoder_ids"] = forced
    if values.get("num_beams") not in (None, 1):
        options |= _chosen(values, _BEAM_SEARCH)
        if "num_beam_groups" not in options:
            options.pop("diversity_penalty", None)
    if values.get("do_sample"):
        options |= _chosen({"top_k": _TOP_K} | _given(values), _SAMPLING)
    ends = values.get("eos_token_id")
    if isinstance(ends, list) and len(ends) > 1:
        options["stop_token_ids"] = ends[1:]
    return options


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _chosen(values: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """The options of these names that ask for something."""
    return {name: values[name] for name in names if name in values and _asks(name, values[name])}


def _asks(name: str, value: Any) -> bool:
    if value is None or value is False or value in ([], {}):
        return False
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return not (number and name in _IDLE and _IDLE[name](value))


def _is_open(pair: Any) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and pair[1] is None
