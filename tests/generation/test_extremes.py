"""Searches with hardly anything to choose from, and those with more beams than that."""

import pytest

from tests.generation.comparison import Tally
from tests.generation.habits import Habits, habits
from tests.generation.options import BEAMS, Options, case
from tests.generation.subjects import Subject, Subjects


def _extremes(subject: Subject, usual: Habits) -> list[Options]:
    first, second, *_ = usual.tokens
    start = subject.model.generation_config.decoder_start_token_id
    most = list(range(subject.vocab_size - 8))

    def only(*tokens: int) -> Options:
        return {"suppress_tokens": [t for t in range(subject.vocab_size) if t not in tokens]}

    return [
        only(subject.end, first),
        only(subject.end, first, second),
        only(subject.end, first, second) | {"early_stopping": "never", "length_penalty": 2.0},
        only(subject.end, first) | {"remove_invalid_values": True},
        only(first),
        {"num_beams": 12, "num_return_sequences": 12, "suppress_tokens": most},
        {"num_beams": 12, "num_return_sequences": 12, "suppress_tokens": most}
        | {"renormalize_logits": True},
        {"num_beams": 8, "num_return_sequences": 8, "max_new_tokens": 1},
        {"num_beams": 16, "num_return_sequences": 16, "max_new_tokens": 2},
        {"forced_decoder_ids": [(position, first) for position in range(1, 9)]},
        {"sequence_bias": {(start, first): 9.0}},
        {"bad_words_ids": [[start, usual.firsts[0]]]},
        {"no_repeat_ngram_size": 1, "min_new_tokens": 16},
        {"repetition_penalty": 3.0, "encoder_repetition_penalty": 5.0},
        {"exponential_decay_length_penalty": (0, 0.5)},
        {"stop_token_ids": [subject.end, first]},
        {"prefix": [first, subject.end]},
    ]


@pytest.mark.parametrize("name", ["t5", "switch", "mbart", "marian", "tiny-full"])
def test_extremes(subjects: Subjects, name: str) -> None:
    subject, tally = subjects[name], Tally()
    for number, options in enumerate(_extremes(subject, habits(subject))):
        tally.compare(subject, case(subject, number, BEAMS | options))
    tally.check()
