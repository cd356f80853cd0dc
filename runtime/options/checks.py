"""What each value of a generation option may be, and the one form that it is kept in.

A check takes a value that is not None and returns it normalised: plain Python numbers, tuples for
every sequence. It raises `OptionError` with the words that come after the option's name.
"""

import json
import operator
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from typing import Any

import numpy as np

from drl.runtime.errors import shorten

Check = Callable[[Any], Any]

# Numbers meet logits in single precision, where smaller ones are zero and larger ones infinite.
_SMALLEST = float(np.finfo(np.float32).tiny)
_LARGEST = float(np.finfo(np.float32).max)
_LARGEST_INTEGER = 2**63 - 1


class OptionError(ValueError):
    """A value is wrong; the text continues a sentence that begins with the option's name."""


def normalise(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Check the values of options, whose names are known, one by one.

    Returns:
        The values in their one form, without those that are None, which is every option's default;
        and of each option whose value is wrong, what is wrong with it.
    """
    values: dict[str, Any] = {}
    mistakes: dict[str, str] = {}
    for name, value in options.items():
        if value is not None:
            try:
                values[name] = _CHECKS[name](value)
            except OptionError as error:
                # Arrays show as several lines, and a message is one.
                mistakes[name] = f"{name} {error}".replace("\n", " ")
    return values, mistakes


def boolean(value: Any) -> bool:
    """A truth value of Python or NumPy; numbers are none."""
    if not isinstance(value, bool | np.bool_):
        raise OptionError(f"must be true or false, not {shorten(value)}")
    return bool(value)


def integer(minimum: int) -> Check:
    """A check for integers of Python or NumPy of at least `minimum`."""

    def check(value: Any) -> int:
        if not _is_integer(value) or value < minimum:
            raise OptionError(f"must be an integer of at least {minimum}, not {shorten(value)}")
        if value > _LARGEST_INTEGER:
            raise OptionError(f"must be at most {_LARGEST_INTEGER}, not {shorten(value)}")
        return int(value)

    return check


def number(
    low: float = -_LARGEST, high: float = _LARGEST, *, above: bool = False, below: bool = False
) -> Check:
    """A check for numbers from `low` to `high`, without that end where `above` or `below`."""
    words = f"{'above' if above else 'at least'} {low:g} and {'below' if below else 'at most'}"
    wanted = "finite number" if low == -_LARGEST else f"number {words} {high:g}"

    def check(value: Any) -> float:
        fits = isinstance(value, Real) and not isinstance(value, bool) and low <= value <= high  # type: ignore[operator]
        if not fits or (above and value == low) or (below and value == high):
            raise OptionError(f"must be a {wanted}, not {shorten(value)}")
        if low == 0.0 < value < _SMALLEST:
            least = "at least" if above else "0 or at least"
            raise OptionError(f"must be {least} {_SMALLEST:g}, not {shorten(value)}")
        return float(value)

    return check


def early_stopping(value: Any) -> bool | str:
    """True, False or "never"."""
    if isinstance(value, str) and value == "never":
        return value
    try:
        return boolean(value)
    except OptionError:
        raise OptionError(f'must be true, false or "never", not {shorten(value)}') from None


def token_id(value: Any) -> int:
    """A token id: an integer of at least 0. The vocabulary's size is not known here."""
    return int(integer(0)(value))


def token_ids(value: Any) -> tuple[int, ...]:
    """Token ids, of which there may be none."""
    items = _items(value)
    if items is None or not all(_is_token_id(item) for item in items):
        raise OptionError(f"must be token ids, such as [3, 4], not {shorten(value)}")
    return tuple(int(item) for item in items)


def one_or_more_tokens(value: Any) -> int | tuple[int, ...]:
    """A token id, or several."""
    if _is_token_id(value):
        return int(value)
    sequence = _token_sequence(value)
    if sequence is None:
        raise OptionError(f"must be a token id or several, not {shorten(value)}")
    return sequence if len(sequence) > 1 else sequence[0]


def token_sequences(value: Any) -> tuple[tuple[int, ...], ...]:
    """Sequences of token ids, none of them empty."""
    items = _items(value)
    sequences = [_token_sequence(item) for item in items or ()]
    if items is None or None in sequences:
        raise OptionError(
            f"must be lists of token ids, such as [[3], [4, 5]], not {shorten(value)}"
        )
    return tuple(ids for ids in sequences if ids is not None)


def sequence_bias(value: Any) -> tuple[tuple[tuple[int, ...], float], ...]:
    """Biases of token sequences, as a dict or as pairs, in the order of the sequences.

    The order tells nothing, so that equal dicts give equal configs.
    """
    pairs = _pairs(value.items() if isinstance(value, Mapping) else value)
    checked = [(_token_sequence(ids), _bias(bias)) for ids, bias in pairs or ()]
    biases: dict[tuple[int, ...], float] = {}
    for sequence, bias in checked if pairs is not None else [(None, None)]:
        if sequence is None or bias is None:
            form = "must map token sequences to numbers, such as {(3, 4): -2.5} or [[[3, 4], -2.5]]"
            raise OptionError(f"{form}, not {shorten(value)}")
        if sequence in biases:
            raise OptionError(f"gives {list(sequence)} two biases")
        biases[sequence] = bias
    return tuple(sorted(biases.items()))


def forced_tokens(value: Any) -> tuple[tuple[int, int], ...]:
    """Pairs of a position from 1 and a token id, in the order of the positions."""
    pairs = _pairs(value)
    if pairs is None or not all(_is_token_id(a) and _is_token_id(b) for a, b in pairs):
        form = "must be pairs of a position and a token id, such as [[1, 5], [2, 9]]"
        raise OptionError(f"{form}, not {shorten(value)}")
    forced: dict[int, int] = {}
    for position, token in pairs:
        if position < 1:
            raise OptionError("must have positions of at least 1; position 0 is the start token")
        if position in forced:
            raise OptionError(f"forces two tokens at position {position}")
        forced[int(position)] = int(token)
    return tuple(sorted(forced.items()))


def exponential_decay(value: Any) -> tuple[int, float]:
    """A start, counted in generated tokens, and a factor above 0."""
    items = _items(value)
    if items is None or len(items) != 2:
        raise OptionError(f"must be a start and a factor, such as [15, 1.1], not {shorten(value)}")
    try:
        start = token_id(items[0])
    except OptionError as mistake:
        raise OptionError(f"has a start that {mistake}") from None
    try:
        return start, float(number(0.0, above=True)(items[1]))
    except OptionError as mistake:
        raise OptionError(f"has a factor that {mistake}") from None


def strings(value: Any) -> tuple[str, ...]:
    """Strings that are not empty, or a single one."""
    # One string is a sequence of its characters; nobody means that.
    items = (value,) if isinstance(value, str) else _items(value)
    if items is None or not all(isinstance(item, str) and item for item in items):
        raise OptionError("must be strings that are not empty")
    return items


def text(value: Any) -> str:
    """A string that is not empty and can be written as UTF-8."""
    if not isinstance(value, str) or not value.strip():
        raise OptionError(f"must be a string that is not empty, not {shorten(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise OptionError(f"is not valid Unicode at character {error.start}") from None
    return value


def json_schema(value: Any) -> str:
    """A JSON schema, as a mapping or as JSON text, in one form of JSON text.

    The order of keys is kept, since it is the order in which properties are generated.
    """
    document = value
    if isinstance(value, str):
        try:
            document = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise OptionError(f"is not valid JSON: {error}") from None
    if isinstance(value, type):
        raise OptionError("must be a schema, not a class; give its .model_json_schema()")
    if not isinstance(document, Mapping):
        raise OptionError(f"must be an object of JSON, not {shorten(value)}")
    try:
        return json.dumps(document, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise OptionError(f"cannot be written as JSON: {error}") from None


def _items(value: Any) -> tuple[Any, ...] | None:
    """The items of an iterable that is neither text nor a mapping, or None."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        return None
    try:
        return tuple(value)
    except TypeError:  # an array without dimensions says that it can be iterated and cannot
        return None


def _pairs(value: Any) -> list[tuple[Any, Any]] | None:
    items = _items(value)
    pairs = [_items(item) for item in items or ()]
    if items is None or not all(pair is not None and len(pair) == 2 for pair in pairs):
        return None
    return [(pair[0], pair[1]) for pair in pairs if pair]


def _token_sequence(value: Any) -> tuple[int, ...] | None:
    items = _items(value)
    if not items or not all(_is_token_id(item) for item in items):
        return None
    return tuple(int(item) for item in items)


def _is_token_id(value: Any) -> bool:
    return _is_integer(value) and 0 <= value <= _LARGEST_INTEGER


def _bias(value: Any) -> float | None:
    """A finite number, or minus infinity, which bars a sequence."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return None
    return float(value) if -_LARGEST <= value <= _LARGEST or value == -np.inf else None  # type: ignore[operator]


def _is_integer(value: Any) -> bool:
    """Whether `value` is an integer of Python or NumPy; truth values are none."""
    if isinstance(value, bool | np.bool_):
        return False
    try:
        operator.index(value)
    except TypeError:
        return False
    return True


# How the value of each option is checked and normalised. None is the default, and not checked.
_CHECKS: Mapping[str, Check] = {
    "max_new_tokens": integer(1),
    "max_length": integer(2),  # the start token and one more
    "min_new_tokens": integer(0),
    "min_length": integer(0),
    "max_time": number(0.0, above=True),
    "num_beams": integer(1),
    "num_beam_groups": integer(1),
    "diversity_penalty": number(0.0),
    "length_penalty": number(),
    "early_stopping": early_stopping,
    "num_return_sequences": integer(1),
    "do_sample": boolean,
    "temperature": number(0.0),
    "top_k": integer(0),
    "top_p": number(0.0, 1.0, above=True),
    "min_p": number(0.0, 1.0),
    "typical_p": number(0.0, 1.0, above=True),
    "epsilon_cutoff": number(0.0, 1.0, below=True),
    "eta_cutoff": number(0.0, 1.0, below=True),
    "seed": integer(0),
    "repetition_penalty": number(0.0, above=True),
    "encoder_repetition_penalty": number(0.0, above=True),
    "no_repeat_ngram_size": integer(0),
    "encoder_no_repeat_ngram_size": integer(0),
    "bad_words_ids": token_sequences,
    "suppress_tokens": token_ids,
    "begin_suppress_tokens": token_ids,
    "sequence_bias": sequence_bias,
    "exponential_decay_length_penalty": exponential_decay,
    "forced_bos_token_id": token_id,
    "forced_eos_token_id": one_or_more_tokens,
    "forced_decoder_ids": forced_tokens,
    "renormalize_logits": boolean,
    "remove_invalid_values": boolean,
    "json_schema": json_schema,
    "regex": text,
    "grammar": text,
    "stop_token_ids": token_ids,
    "stop_strings": strings,
    "logprobs": boolean,
    "top_logprobs": integer(0),
}
