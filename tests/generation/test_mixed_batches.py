"""Greedy search, samples and beam searches of every width, together in any order."""

import random
from typing import Any

import pytest

from drl.runtime import Engine, GenerationResult
from drl.runtime.request import Request
from tests.generation.habits import habits
from tests.generation.subjects import Subject, Subjects
from tests.generation.test_batches import assert_same
from tests.generation.transformers_search import LIMIT

KINDS: list[dict[str, Any]] = [
    {},
    {"do_sample": True, "seed": 3, "temperature": 1.3},
    {"do_sample": True, "seed": 5, "top_k": 7, "num_return_sequences": 3},
    {"num_beams": 2, "num_return_sequences": 2, "repetition_penalty": 1.2},
    {"num_beams": 4, "num_return_sequences": 4, "length_penalty": 0.6},
    {"num_beams": 4, "no_repeat_ngram_size": 2, "min_new_tokens": 5},
    {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5, "num_return_sequences": 4},
    {"num_beams": 4, "num_beam_groups": 4, "diversity_penalty": 0.5, "num_return_sequences": 4},
    {"num_beams": 3, "do_sample": True, "seed": 8, "top_p": 0.9, "num_return_sequences": 3},
    {"num_beams": 5, "early_stopping": True, "renormalize_logits": True, "suppress_tokens": [7]},
]


def _requests(subject: Subject) -> list[Request]:
    text = habits(subject).text
    return [
        subject.engine.request(
            source,
            subject.engine.configure(max_new_tokens=LIMIT - number % 5, **options),
            path=subject.path,
            prefix=text[:place] if number % 3 == 0 else None,
        )
        for number, options in enumerate(KINDS)
        for place, source in enumerate(subject.sources)
    ]


def _alone(engine: Engine, request: Request) -> list[GenerationResult]:
    ((_, result),) = engine.run([request])
    return [result, *result.alternatives]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["switch", "bart", "m2m100", "tiny-balanced", "numbers-full"])
def test_any_mixture_gives_what_each_gives_alone(subjects: Subjects, name: str, seed: int) -> None:
    subject = subjects[name]
    requests = _requests(subject)
    order = random.Random(seed).sample(range(len(requests)), len(requests))
    expected = {number: _alone(subject.engine, requests[number]) for number in order[::2]}
    for place, result in subject.engine.run(requests[number] for number in order):
        if (number := order[place]) in expected:
            for found, one in zip([result, *result.alternatives], expected[number], strict=True):
                assert_same(found, one, requests[number])


def test_reports_belong_to_their_beams(subject: Subject) -> None:
    for source in subject.sources[:4]:
        (best,) = subject.engine.generate(
            [source],
            path=subject.path,
            num_beams=4,
            num_return_sequences=4,
            max_new_tokens=LIMIT,
            top_logprobs=subject.vocab_size,
            return_experts=True,
        )
        for made in (best, *best.alternatives):
            assert made.logprobs is not None
            assert made.top_logprobs is not None
            assert len(made.top_logprobs) == len(made.logprobs) == len(made.tokens)
            tops = map(dict, made.top_logprobs)
            reported = [top[token] for token, top in zip(made.tokens, tops, strict=True)]
            assert reported == pytest.approx(made.logprobs, abs=1e-5)
            assert made.experts is not None
            # one more step chose the end token
            steps = len(made.tokens) + (made.finish_reason == "eos")
            assert all(len(ids) == steps for ids in made.experts.decoder.values())
