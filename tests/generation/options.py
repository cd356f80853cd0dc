"""Options to search by: each alone, and drawn together at random."""

import random
from collections.abc import Mapping
from typing import Any

from tests.generation.comparison import Case
from tests.generation.habits import Habits
from tests.generation.subjects import Subject
from tests.generation.transformers_search import LIMIT

Options = dict[str, Any]
BEAMS: Options = {"num_beams": 4, "num_return_sequences": 4}
NEUTRAL: list[Options] = [
    {},
    {"renormalize_logits": True},
    {"remove_invalid_values": True},
    {"early_stopping": False},
]
"""Those that by themselves change nothing."""


def alone(subject: Subject, habits: Habits) -> list[Options]:
    """Every option by itself, at several values, for greedy search and for beams.

    `prefix` among them is no option: it is what the output begins with.
    """
    first, second, third, *_ = habits.tokens
    pair, triple = habits.pairs[0], habits.triples[0]
    rare = subject.vocab_size - 5
    return [
        {},
        {"repetition_penalty": 1.5},
        {"repetition_penalty": 0.8},
        {"encoder_repetition_penalty": 1.6},
        {"encoder_repetition_penalty": 0.6},
        *({"no_repeat_ngram_size": size} for size in (1, 2, 3)),
        *({"encoder_no_repeat_ngram_size": size} for size in (1, 2, 3)),
        {"bad_words_ids": [[first]]},
        {"bad_words_ids": [[subject.end], [second], [third]]},
        {"bad_words_ids": [list(pair), list(triple), [rare, first]]},
        {"suppress_tokens": [first, third]},
        {"suppress_tokens": [subject.end]},
        {"begin_suppress_tokens": habits.firsts[:2]},
        {"begin_suppress_tokens": habits.firsts[:2], "forced_bos_token_id": second},
        {"sequence_bias": {(first,): -2.5, (rare,): 1.5, tuple(pair): -1.0}},
        {"sequence_bias": [[[rare, second], 4.0], [list(triple), -5.0], [[rare], 2.0]]},
        {"exponential_decay_length_penalty": (2, 1.1)},
        {"exponential_decay_length_penalty": (5, 1.6)},
        {"forced_bos_token_id": rare},
        {"forced_eos_token_id": subject.end},
        {"forced_decoder_ids": [(1, second), (3, rare)]},
        {"min_length": 9},
        {"min_new_tokens": 12},
        *({"max_length": length} for length in (2, 8)),
        *({"max_new_tokens": count} for count in (1, 2, 7)),
        {"renormalize_logits": True},
        {"renormalize_logits": True, "suppress_tokens": [first, second]},
        {"remove_invalid_values": True},
        {"stop_token_ids": [second]},
        {"stop_token_ids": [first, second, third]},
        *({"prefix": habits.text[:count]} for count in (1, 2, 6)),
        {"prefix": [rare, first, rare]},
    ]


def of_greedy_search(subject: Subject, habits: Habits) -> list[Options]:
    """What beams leave to chance: of several forced tokens, all have the same score."""
    return [{"forced_eos_token_id": [subject.end, habits.tokens[2]]}]


def of_beams() -> list[Options]:
    """Every option that only beams read, at several values."""
    return [
        *({"num_beams": count, "num_return_sequences": count} for count in (2, 3, 5)),
        *({"num_return_sequences": count} for count in (1, 2, 3)),
        *({"length_penalty": penalty} for penalty in (0.0, 0.6, 2.0, -1.0)),
        *({"early_stopping": when} for when in (True, False, "never")),
        *(
            {"early_stopping": when, "length_penalty": penalty}
            for when in (True, "never")
            for penalty in (-1.0, 0.0, 2.0)
        ),
    ]


def case(subject: Subject, number: int, options: Mapping[str, Any]) -> Case:
    """A case for one of the subject's sources, which take turns."""
    options = dict(options)
    prefix = options.pop("prefix", ())
    return Case(subject.sources[number % len(subject.sources)], options, prefix)


def combination(subject: Subject, habits: Habits, seed: int) -> Options:
    """Some options together, for beams where the seed is odd."""
    draw = random.Random(f"{subject.name} {seed}")
    every = [options for options in alone(subject, habits) if options]
    chosen: Options = {}
    for options in draw.sample(every, draw.randint(2, 5)):
        if not _families(options) & _families(chosen):
            chosen |= options
    chosen["max_new_tokens" if "max_new_tokens" in chosen else "max_length"] = _limit(chosen, draw)
    if seed % 2:
        chosen |= BEAMS
        for options in draw.sample(of_beams(), 2):
            chosen |= options
    return chosen


_FAMILIES = {
    "max_new_tokens": "longest",
    "max_length": "longest",
    "min_new_tokens": "shortest",
    "min_length": "shortest",
    "forced_decoder_ids": "first",
    "forced_bos_token_id": "first",
    "begin_suppress_tokens": "first",
    "forced_eos_token_id": "end",
    "suppress_tokens": "end",
}


def _families(options: Mapping[str, Any]) -> set[str]:
    """What options are about: of two that are about the same, one is enough."""
    return {_FAMILIES.get(name, name) for name in options}


def _limit(options: Mapping[str, Any], draw: random.Random) -> int:
    """A limit above every minimum, however it counts."""
    return LIMIT + draw.randint(-1, 1) + len(options.get("prefix", ()))
