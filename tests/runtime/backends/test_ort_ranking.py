"""Decoders that rank on ONNX Runtime, quantised and fp32 ones: their results are whole rows'."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drl.export import ExportOptions, export
from drl.export.options import Precision
from drl.plugins.native import NativeLibrary
from drl.runtime import Bundle, Engine
from drl.runtime.backends import StepInputs, native
from drl.runtime.backends.ort import OrtBackend
from tests.models import random_prompts
from tests.plugins.native.sets import needs_library
from tests.runtime.backends.test_ort import start, step_inputs
from tests.runtime.comparing import assert_same

MISSING = NativeLibrary(None, "the native kernels were not built; install DRL again")


@pytest.fixture(scope="module", params=["fp32", "int8", "int8-block"])
def bundle(
    request: pytest.FixtureRequest, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The model with every feature. Treat it as read-only."""
    precision: Precision = request.param
    folder = tmp_path_factory.mktemp(precision) / "bundle"
    export(tiny_checkpoint, folder, ExportOptions(precision=precision))
    return folder


@pytest.fixture(scope="module")
def engine(bundle: Path) -> Iterator[Engine]:
    with Engine.from_bundle(bundle, threads=1, max_batch_size=9) as engine:
        yield engine


@pytest.fixture(scope="module")
def backend(engine: Engine) -> OrtBackend:
    assert isinstance(engine.backend, OrtBackend)
    return engine.backend


@needs_library
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"min_new_tokens": 9, "top_logprobs": 3},
        {"forced_bos_token_id": 7, "forced_eos_token_id": 9},
        {"temperature": 1.0, "top_k": 12, "top_p": 0.9, "seed": 1, "num_return_sequences": 3},
        {"num_beams": 3, "num_return_sequences": 2, "suppress_tokens": [5, 6]},
        {"num_beams": 3, "temperature": 0.9, "top_k": 8, "seed": 4},
        {"repetition_penalty": 1.2},
        {"logprobs": False},
    ],
)
def test_ranked_steps_generate_what_whole_rows_do(
    engine: Engine, backend: OrtBackend, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = random_prompts(6)
    prefixes = [None, [9, 8], None, [7], None, list(range(20, 30))]

    def generate() -> list[Any]:
        return engine.generate(prompts, prefixes=prefixes, return_experts=True, **options)

    assert backend.ranks
    ranked = generate()
    monkeypatch.setattr(backend, "_ranks", False)
    for ours, theirs in zip(ranked, generate(), strict=True):
        assert_same(ours, theirs)


@needs_library
def test_a_step_ranks_the_logits_that_it_would_give(engine: Engine, backend: OrtBackend) -> None:
    cache = start(backend, engine.bundle, 2, [[5, 6, 7], [8, 9]])
    tokens = np.array([[5, 6, 7], [8, 9, 0]], np.int64)
    inputs = step_inputs(cache, 2, tokens, np.array([3, 2], np.int32))
    rows = backend.step(inputs)
    assert rows.top is None
    ranked = backend.step(dataclasses.replace(inputs, candidates=4))
    assert ranked.logits.shape == (2, 3, 0)
    assert ranked.top is not None
    assert ranked.top.ids.dtype == np.int32
    order = np.argsort(-rows.logits, axis=-1, kind="stable")[..., :4]
    for row, count in enumerate((3, 2)):
        real = row, slice(count)
        np.testing.assert_array_equal(ranked.top.ids[real], order[real])
        values = np.take_along_axis(rows.logits, order, axis=-1)
        np.testing.assert_array_equal(ranked.top.values[real], values[real])
        np.testing.assert_array_equal(ranked.normalisers[real], rows.normalisers[real])


@needs_library
def test_numbers_of_candidates_are_bound_side_by_side(
    engine: Engine, backend: OrtBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound: list[StepInputs] = []
    bind = backend._bind
    monkeypatch.setattr(backend, "_bind", lambda inputs: bound.append(inputs) or bind(inputs))
    cache = start(backend, engine.bundle, 0, [[5, 6, 7]])
    tokens = np.full((1, 1), 2, np.int64)
    inputs = step_inputs(cache, 0, tokens, np.ones(1, np.int32))
    kinds = [dataclasses.replace(inputs, candidates=count) for count in (0, 1, 5)]
    outputs = [backend.step(kind) for kind in (*kinds, *kinds)]
    assert bound == kinds
    assert outputs[:3] == outputs[3:]
    # Other memory: nothing of what was bound before is held any longer.
    other = start(backend, engine.bundle, 0, [[5, 6, 7]])
    backend.step(step_inputs(other, 0, tokens, np.ones(1, np.int32)))
    assert list(backend._bindings[0, 1]) == [0]
    backend.release(0, 1)
    assert (0, 1) not in backend._bindings


@needs_library
def test_ranked_steps_generate_what_the_canonical_decoder_does(
    portable_bundle: Path, tiny_bundle: Path
) -> None:
    """Sums come in another order there, so that logits differ in their last digits."""
    prompts = random_prompts(6)
    for options in ({}, {"num_beams": 3}, {"temperature": 1.0, "top_k": 9, "seed": 3}):
        found = []
        for folder in (portable_bundle, tiny_bundle):
            with Engine.from_bundle(folder, threads=1) as engine:
                assert engine.backend.ranks == (folder == tiny_bundle)
                found.append(engine.generate(prompts, max_new_tokens=12, **options))
        for ours, theirs in zip(*found, strict=True):
            assert ours.tokens == theirs.tokens
            np.testing.assert_allclose(ours.logprobs, theirs.logprobs, atol=1e-4)


def test_without_the_library_an_fp32_decoder_gives_whole_rows(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host ranks them as fast as ONNX Runtime's own operators would."""
    prompts = random_prompts(4)
    with Engine.from_bundle(tiny_bundle, threads=1) as engine:
        expected = engine.generate(prompts, max_new_tokens=9)
    monkeypatch.setattr(native, "find_library", lambda: MISSING)
    backend = OrtBackend(Bundle.load(tiny_bundle), threads=1)
    assert not backend.ranks
    bundle = Bundle.load(tiny_bundle)
    cache = start(backend, bundle, 0, [[5, 6, 7]])
    inputs = step_inputs(cache, 0, np.full((1, 1), 2, np.int64), np.ones(1, np.int32))
    ranked = backend.step(dataclasses.replace(inputs, candidates=3))  # it could
    assert ranked.top is not None
    order = np.argsort(-backend.step(inputs).logits, axis=-1, kind="stable")
    np.testing.assert_array_equal(ranked.top.ids, order[..., :3])
    with Engine(bundle, backend) as engine:
        found = engine.generate(prompts, max_new_tokens=9)
    assert [result.tokens for result in found] == [result.tokens for result in expected]
