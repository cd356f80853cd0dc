"""What the tests of the engine share: prompts, an engine to look into, what must be equal."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from drl.runtime import Engine, GenerationResult
from drl.runtime.backends import StepInputs, StepOutputs
from drl.runtime.manifest import Manifest
from tests.runtime.toy import VOCAB_SIZE, ToyBackend, toy_bundle

MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 1.3, "seed": 4},
    "samples": {"temperature": 1.3, "seed": 4, "num_return_sequences": 3},
    "top-k": {"temperature": 1.3, "top_k": 12, "top_p": 0.95, "seed": 4},
    "beams": {"num_beams": 3},
    "n-best": {"num_beams": 4, "num_return_sequences": 3, "length_penalty": 0.6},
    "diverse": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.7},
    "sampled beams": {"num_beams": 3, "do_sample": True, "temperature": 1.2, "seed": 2},
}
"""A way to search or sample each, as options."""


class HookedBackend(ToyBackend):
    """Calls `before_step` with the number of steps taken so far, if there is one."""

    def __init__(self, manifest: Manifest) -> None:
        super().__init__(manifest)
        self.before_step: Callable[[int], None] | None = None

    def step(self, inputs: StepInputs) -> StepOutputs:
        if self.before_step is not None:
            self.before_step(len(self.stepped_rows))
        return super().step(inputs)


def hooked(folder: Path, max_batch_size: int = 4, **options: Any) -> tuple[Engine, HookedBackend]:
    bundle = toy_bundle(folder, **options)
    backend = HookedBackend(bundle.manifest)
    return Engine(bundle, backend, max_batch_size), backend


def random_prompts(count: int, seed: int = 0) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [random.integers(2, VOCAB_SIZE, random.integers(1, 40)).tolist() for _ in range(count)]


def assert_same(found: GenerationResult, expected: GenerationResult) -> None:
    for name in ("tokens", "text", "path", "finish_reason", "prefix_tokens", "score"):
        assert getattr(found, name) == getattr(expected, name), name
    assert found.top_logprobs == expected.top_logprobs
    if expected.logprobs is not None:
        np.testing.assert_array_equal(found.logprobs, expected.logprobs)
    if expected.path_logits is not None:
        np.testing.assert_array_equal(found.path_logits, expected.path_logits)
    if expected.experts is not None:
        assert found.experts is not None
        for side in ("encoder", "decoder"):
            ours, theirs = getattr(found.experts, side), getattr(expected.experts, side)
            assert ours.keys() == theirs.keys()
            for layer in theirs:
                np.testing.assert_array_equal(ours[layer], theirs[layer])
    for ours, theirs in zip(found.alternatives, expected.alternatives, strict=True):
        assert_same(ours, theirs)


def rows_in_use(engine: Engine) -> int:
    return engine._service.scheduler.running


def cache_bytes(engine: Engine) -> int:
    return sum(lane.cache.nbytes for lane in engine._service.scheduler.lanes)


def assert_idle(engine: Engine, seconds: float = 10.0) -> None:
    """Nothing waits, runs, or is watched; the driver may take a moment to notice."""
    service = engine._service
    end = time.monotonic() + seconds
    while service.driver._running and time.monotonic() < end:
        time.sleep(0.002)
    assert not service.driver._running
    assert not service.driver._new
    assert service.scheduler.idle
    assert service.scheduler.waiting == rows_in_use(engine) == 0
    assert not service._abandoned
    assert all(not lane.slots and not lane.groups for lane in service.scheduler.lanes)
