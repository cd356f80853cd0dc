"""How the options of a request go over a bundle's defaults.

An option that is given replaces the default of its name, and the defaults that only made sense
with what it replaces: half of two ways to search is neither. Nothing that is given is ever changed.
"""

from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np

from drl.runtime.options.rules import BEAM_ONLY, CONSTRAINTS, FILTERS, LENGTHS

_SAMPLING = frozenset({"do_sample", "temperature", *FILTERS})
_MAXIMA = frozenset({"max_new_tokens", "max_length"})
_MINIMA = frozenset({"min_new_tokens", "min_length"})


def merge(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The options to decode with.

    - An option of sampling replaces all defaults of sampling. If it turns sampling on where the
      defaults do not sample, the defaults of beam search go as well, unless `num_beams` is given.
    - `num_beams` above 1 where the defaults have no beams replaces the defaults of sampling;
      `num_beams=1` replaces all defaults that only beams read. Another number of beams keeps them,
      as a length penalty is tuned for the model and not for a number.
    - A maximum length replaces the other kind of maximum, and lowers a default minimum that it
      cannot reach; a minimum replaces the other kind of minimum; a constraint the other kinds.
    - `top_logprobs` goes before a default of no log-probabilities, and the other way round.
    - A default of `num_return_sequences` goes where the search that is given has fewer results.

    Values may be of wrong types: they are only compared here, and checked by the caller.
    """
    kept = dict(defaults)
    _drop_other_kinds(kept, given)
    lower_minima(kept, given)
    if _SAMPLING & given.keys():
        turned_on = _samples(given) and not _samples(defaults)
        _drop(kept, _SAMPLING)
        if turned_on and "num_beams" not in given:
            _drop(kept, {"num_beams", *BEAM_ONLY})
    if "num_beams" in given:
        if _at_least_two(given["num_beams"]):
            if not _at_least_two(defaults.get("num_beams")):
                _drop(kept, _SAMPLING)
        else:
            _drop(kept, BEAM_ONLY)
        _drop(kept, {"num_beam_groups", "diversity_penalty"})
    if _at_least_two(given.get("num_beam_groups")):
        _drop(kept, _SAMPLING)
    if isinstance(given.get("top_logprobs"), Integral) and int(given["top_logprobs"]) > 0:
        _drop(kept, {"logprobs"})
    if given.get("logprobs") is False:
        _drop(kept, {"top_logprobs"})
    merged = kept | dict(given)
    if "num_return_sequences" not in given and not _returns_enough(merged):
        _drop(merged, {"num_return_sequences"})
    return merged


def _drop_other_kinds(kept: dict[str, Any], given: Mapping[str, Any]) -> None:
    for family in (_MAXIMA, _MINIMA, frozenset(CONSTRAINTS)):
        if family & given.keys():
            _drop(kept, family)


def lower_minima(kept: dict[str, Any], given: Mapping[str, Any]) -> None:
    """Let a maximum that is given go before a default minimum, which then bars the end up to it."""
    for low, high, difference in LENGTHS:
        least, most = kept.get(low), given.get(high)
        if not (isinstance(least, Integral) and isinstance(most, Integral)):
            continue
        if int(least) > int(most) + difference >= 0:
            kept[low] = int(most) + difference


def _drop(options: dict[str, Any], names: Iterable[str]) -> None:
    for name in names:
        options.pop(name, None)


def _samples(options: Mapping[str, Any]) -> bool:
    sample = options.get("do_sample")
    if sample is not None:
        return isinstance(sample, bool | np.bool_) and bool(sample)
    temperature = options.get("temperature")
    return isinstance(temperature, Real) and temperature != 0


def _returns_enough(options: Mapping[str, Any]) -> bool:
    count: Any = options.get("num_return_sequences")
    beams: Any = options.get("num_beams")
    if not _at_least_two(count):
        return True
    if not _at_least_two(beams):
        return _samples(options)
    return bool(count <= beams)


def _at_least_two(value: Any) -> bool:
    return isinstance(value, Integral) and int(value) >= 2
