"""Which generation options contradict each other, or do nothing beside each other."""

from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from drl.runtime.generation import GenerationConfig

# A minimum, a maximum, and how much more the minimum may be: lengths count the start token.
LENGTHS = (
    ("min_new_tokens", "max_new_tokens", 0),
    ("min_length", "max_length", 0),
    ("min_new_tokens", "max_length", -1),
    ("min_length", "max_new_tokens", 1),
)
# Sampling filters, each with the values at which it keeps every token.
FILTERS: dict[str, tuple[Any, ...]] = {
    "top_k": (None, 0),
    "top_p": (None, 1.0),
    "min_p": (None, 0.0),
    "typical_p": (None, 1.0),
    "epsilon_cutoff": (None, 0.0),
    "eta_cutoff": (None, 0.0),
}
# Options that only a beam search reads, each with its default.
BEAM_ONLY: dict[str, Any] = {
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
    "length_penalty": 1.0,
    "early_stopping": False,
}
CONSTRAINTS = ("json_schema", "regex", "grammar")

_Rule = Callable[["GenerationConfig"], Iterator[str]]


def contradictions(config: "GenerationConfig", wrong: Collection[str]) -> Iterator[str]:
    """Tell what options, each right by itself, cannot mean together.

    Args:
        config: Options of which those not named in `wrong` are checked and normalised.
        wrong: Options whose values are wrong; nothing is said about what depends on them.
    """
    for names, rule in _RULES:
        if not any(name in wrong for name in names):
            yield from rule(config)


def _maxima(config: "GenerationConfig") -> Iterator[str]:
    if config.max_new_tokens is not None and config.max_length is not None:
        yield "max_length contradicts max_new_tokens; give one of them"


def _lengths(config: "GenerationConfig") -> Iterator[str]:
    for low, high, difference in LENGTHS:
        if difference > 0:
            continue  # how many tokens a minimal length asks for depends on the prefix
        least, most = getattr(config, low), getattr(config, high)
        if most is not None and least > most + difference:
            note = ", which counts the start token" if difference else ""
            yield f"{low} {least} exceeds {high} {most}{note}"


def _temperature(config: "GenerationConfig") -> Iterator[str]:
    if config.do_sample and config.temperature == 0:
        yield "do_sample=True contradicts temperature 0, which is greedy"
    if config.do_sample is False and config.temperature:
        yield f"do_sample=False contradicts temperature {config.temperature}"


def _filters(config: "GenerationConfig") -> Iterator[str]:
    # A temperature of 0 turns sampling off on purpose, so its filters may stay where they are.
    if config.do_sample or config.temperature is not None:
        return
    idle = [name for name, neutral in FILTERS.items() if getattr(config, name) not in neutral]
    if idle and config.do_sample is False:
        yield f"do_sample=False contradicts {', '.join(idle)}"
    elif idle:
        yield f"{', '.join(idle)} {_needs(idle)} do_sample=True or a temperature"


def _beams(config: "GenerationConfig") -> Iterator[str]:
    if config.num_beams > 1:
        return
    idle = [name for name, neutral in BEAM_ONLY.items() if getattr(config, name) != neutral]
    if idle:
        yield f"{', '.join(idle)} {_needs(idle)} num_beams of at least 2"


def _groups(config: "GenerationConfig") -> Iterator[str]:
    beams, groups = config.num_beams, config.num_beam_groups
    if beams == 1:
        return
    if beams % groups:
        yield f"num_beams {beams} is no multiple of num_beam_groups {groups}"
    if groups > 1 and not config.diversity_penalty:
        yield "num_beam_groups needs a diversity_penalty above 0"
    if groups == 1 and config.diversity_penalty:
        yield "diversity_penalty needs num_beam_groups of at least 2"


def _sampled_groups(config: "GenerationConfig") -> Iterator[str]:
    if config.num_beam_groups > 1 and config.samples:
        yield "num_beam_groups contradicts sampling; leave out do_sample and temperature"


def _returned(config: "GenerationConfig") -> Iterator[str]:
    count, beams = config.num_return_sequences, config.num_beams
    if beams == 1 and count > 1 and not config.samples:
        yield (
            f"num_return_sequences {count} needs sampling or as many num_beams; "
            "greedy decoding has one result"
        )
    elif 1 < beams < count:
        yield f"num_return_sequences {count} exceeds num_beams {beams}"


def _constraints(config: "GenerationConfig") -> Iterator[str]:
    given = [name for name in CONSTRAINTS if getattr(config, name) is not None]
    if len(given) > 1:
        yield f"{', '.join(given)} exclude each other; give one of them"


def _reports(config: "GenerationConfig") -> Iterator[str]:
    if config.top_logprobs and not config.logprobs:
        yield "top_logprobs needs logprobs=True"


def _needs(names: list[str]) -> str:
    return "needs" if len(names) == 1 else "need"


# Each rule with the options that it reads.
_RULES: tuple[tuple[tuple[str, ...], _Rule], ...] = (
    (("max_new_tokens", "max_length"), _maxima),
    (("min_new_tokens", "max_new_tokens", "min_length", "max_length"), _lengths),
    (("do_sample", "temperature"), _temperature),
    (("do_sample", "temperature", *FILTERS), _filters),
    (("num_beams", *BEAM_ONLY), _beams),
    (("num_beams", "num_beam_groups", "diversity_penalty"), _groups),
    (("num_beam_groups", "do_sample", "temperature"), _sampled_groups),
    (("num_return_sequences", "num_beams", "do_sample", "temperature"), _returned),
    (CONSTRAINTS, _constraints),
    (("logprobs", "top_logprobs"), _reports),
)
