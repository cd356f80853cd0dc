"""The backend for GPUs, run on the CPU provider with strict arrays that stand for a GPU's.

Whatever it does is what it does on a GPU but for the provider, the binding's device and CuPy: it
must generate what the CPU's backend generates.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drl.benchmarks import models
from drl.export import ExportOptions, export
from drl.runtime import BackendError, Bundle, BundleError, Engine, GenerationConfig
from drl.runtime.backends import StepInputs
from drl.runtime.backends.cuda import CudaDevice
from drl.runtime.backends.ort_device import OrtDeviceBackend
from drl.runtime.cache import KVCache
from drl.runtime.results import GenerationResult
from tests.models import random_prompts
from tests.runtime.backends.fake_cupy import FakeArray, FakeCupy
from tests.runtime.backends.fake_device import fake_backend, fake_target
from tests.runtime.comparing import MODES

NUMBERS = Path(__file__).parents[3] / "examples" / "numbers"
SMALL = {"d_model": 48, "d_ff": 64, "d_kv": 12, "num_layers": 2, "num_heads": 4}
VOCAB_SIZE = 150


def _t5(folder: Path) -> None:
    models._t5(folder, VOCAB_SIZE, **SMALL)


def _switch(folder: Path) -> None:
    sparse = {"num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1}
    models._switch(folder, VOCAB_SIZE, **SMALL, num_decoder_layers=2, num_experts=4, **sparse)


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.load(tiny_bundle)


@pytest.fixture(scope="module")
def engines(bundle: Bundle) -> Iterator[tuple[Engine, Engine]]:
    """The same bundle, on a device and on the CPU."""
    with (
        Engine(bundle, fake_backend(bundle), 8) as ours,
        Engine.from_bundle(bundle.folder, threads=1, max_batch_size=8) as theirs,
    ):
        yield ours, theirs


def assert_agree(ours: list[GenerationResult], theirs: list[GenerationResult]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        for name in ("tokens", "path", "finish_reason", "prefix_tokens"):
            assert getattr(mine, name) == getattr(other, name), name
        np.testing.assert_allclose(mine.logprobs or [], other.logprobs or [], atol=1e-4)
        if other.path_logits is not None:
            np.testing.assert_allclose(mine.path_logits, other.path_logits, atol=1e-4)
        assert_agree(mine.alternatives, other.alternatives)


@pytest.mark.parametrize("path", ["auto", "fast", "balanced", "full"])
@pytest.mark.parametrize("mode", MODES)
def test_every_way_to_generate_gives_what_the_cpu_gives(
    engines: tuple[Engine, Engine], path: str, mode: str
) -> None:
    prompts = random_prompts(10, seed=4)
    found = [
        each.generate(prompts, path=path, max_new_tokens=20, **MODES[mode]) for each in engines
    ]
    assert len({tuple(result.tokens) for result in found[1]}) > 5
    assert_agree(*found)


@pytest.mark.parametrize("mode", ["greedy", "top-k", "beams"])
@pytest.mark.parametrize("logprobs", [False, True])
def test_prefixes_give_what_the_cpu_gives(
    engines: tuple[Engine, Engine], mode: str, logprobs: bool
) -> None:
    prompts = random_prompts(7, seed=2)
    prefixes: list[Any] = [None, [5], [6, 7, 8], None, [9] * 12, [3, 4], [5]]
    options = {"max_new_tokens": 12, "logprobs": logprobs, **MODES[mode]}
    assert_agree(*(each.generate(prompts, prefixes=prefixes, **options) for each in engines))


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
        {"top_logprobs": 7, "logprobs": True},
        {"num_beams": 3, "top_logprobs": 5, "logprobs": True},
        {"do_sample": True, "top_p": 0.9, "seed": 3},
        {"suppress_tokens": [7, 9, 11]},
    ],
    ids=str,
)
def test_options_that_take_more_of_a_step_give_what_the_cpu_gives(
    engines: tuple[Engine, Engine], options: dict[str, Any]
) -> None:
    prompts = random_prompts(6, seed=9)
    found = [each.generate(prompts, path="full", max_new_tokens=16, **options) for each in engines]
    assert_agree(*found)
    for ours, theirs in zip(*found, strict=True):
        for mine, other in zip(ours.top_logprobs or [], theirs.top_logprobs or [], strict=True):
            assert [token for token, _ in mine] == [token for token, _ in other]


def test_experts_and_scores_are_what_the_cpu_gives(engines: tuple[Engine, Engine]) -> None:
    prompts = random_prompts(5, seed=1)
    options = {"path": "full", "return_experts": True, "max_new_tokens": 6, "min_new_tokens": 6}
    for ours, theirs in zip(*(each.generate(prompts, **options) for each in engines), strict=True):
        assert ours.experts is not None
        assert theirs.experts is not None
        for side in ("encoder", "decoder"):
            mine, other = getattr(ours.experts, side), getattr(theirs.experts, side)
            assert mine.keys() == other.keys() != set()
            for layer in other:
                np.testing.assert_array_equal(mine[layer], other[layer])
    targets = [[4], [5, 6, 7], [8] * 20, [9, 3], [11]]
    for ours, theirs in zip(*(each.score(prompts, targets) for each in engines), strict=True):
        assert (ours.path, ours.tokens) == (theirs.path, theirs.tokens)
        np.testing.assert_allclose(ours.logprobs, theirs.logprobs, atol=1e-4)


def test_requests_that_come_and_go_give_what_the_cpu_gives(engines: tuple[Engine, Engine]) -> None:
    found = []
    for engine in engines:
        requests = [
            engine.request(prompt, path=("fast", "full")[n % 2], max_new_tokens=1 + n * 5 % 40)
            for n, prompt in enumerate(random_prompts(30, seed=8))
        ]
        found.append([result for _, result in sorted(engine.run(requests), key=lambda x: x[0])])
    assert_agree(*found)


@pytest.mark.parametrize("write", [_t5, _switch])
def test_imported_shapes_give_what_the_cpu_gives(
    write: Callable[[Path], None], tmp_path: Path
) -> None:
    pytest.importorskip("transformers")
    write(tmp_path / "checkpoint")
    models.write_tokenizer(tmp_path / "checkpoint", VOCAB_SIZE)
    export(tmp_path / "checkpoint", tmp_path / "bundle", ExportOptions(verify=False))
    bundle = Bundle.load(tmp_path / "bundle")
    prompts = [f"w{n} w{n + 9} w{3 * n}" for n in range(5, 13)]
    options = {"max_new_tokens": 24, "min_new_tokens": 24}
    with (
        Engine(bundle, fake_backend(bundle)) as ours,
        Engine.from_bundle(bundle.folder, threads=1) as theirs,
    ):
        for mode in ({}, {"num_beams": 4}, {"temperature": 1.2, "top_k": 20, "seed": 5}):
            assert_agree(*(each.generate(prompts, **options, **mode) for each in (ours, theirs)))


@pytest.mark.parametrize("path", ["auto", "fast", "balanced", "full"])
def test_the_shipped_model_gives_what_the_cpu_gives(
    path: str, numbers_engines: tuple[Engine, Engine]
) -> None:
    prompts = [f"what is {n * 7} plus {n * n + 1}?" for n in range(40)]
    for mode in ({}, {"num_beams": 4}, {"temperature": 1.5, "top_k": 20, "seed": 5}):
        assert_agree(*(each.generate(prompts, path=path, **mode) for each in numbers_engines))


@pytest.fixture(scope="module")
def numbers_engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, Engine]]:
    folder = tmp_path_factory.mktemp("numbers") / "bundle"
    export(NUMBERS, folder, ExportOptions(verify=False))
    bundle = Bundle.load(folder)
    with (
        Engine(bundle, fake_backend(bundle)) as ours,
        Engine.from_bundle(folder, threads=1) as theirs,
    ):
        yield ours, theirs


def start(backend: OrtDeviceBackend, bundle: Bundle, rows: int) -> tuple[KVCache, StepInputs]:
    """A cache of one-token sources, and the inputs of its first step on the last path."""
    lengths = np.full(rows, 3, np.int32)
    tokens = np.arange(3, 3 + 3 * rows, dtype=np.int64).reshape(rows, 3)
    encoding = backend.encode(tokens, lengths, np.ones(rows, np.float32))
    path = len(bundle.manifest.paths) - 1
    cache = KVCache(bundle.manifest.cache, bundle.manifest.paths[path].layers, 8, 48, 1, backend)
    cache.append(backend.bridge(encoding, path))
    cache.reserve(8)
    return cache, step_inputs(cache, path)


def step_inputs(cache: KVCache, path: int, candidates: int = 0) -> StepInputs:
    bias, cross_keys, cross_values = cache.cross()
    past_keys, past_values = cache.past()
    rows = cache.rows
    return StepInputs(
        path, np.full((rows, 1), 2, np.int64), cache.lengths[:rows], np.ones(rows, np.int32), bias,
        cross_keys, cross_values, past_keys, past_values, candidates=candidates,
    )  # fmt: skip


def test_states_and_caches_stay_on_the_device_and_results_come_to_the_host(bundle: Bundle) -> None:
    backend = fake_backend(bundle)
    encoding = backend.encode(
        np.array([[5, 6, 7]]), np.array([3], np.int32), np.ones(1, np.float32), with_experts=True
    )
    cross = backend.bridge(encoding, 2)
    for array in (encoding.states, encoding.saliency, cross.bias, *cross.keys, *cross.values):
        assert isinstance(array, FakeArray)
    assert encoding.arrays is cross.arrays is backend.arrays
    for host in (encoding.path_logits, encoding.lengths, cross.lengths, *encoding.experts.values()):
        assert type(host) is np.ndarray
    cache, inputs = start(backend, bundle, 2)
    outputs = backend.step(inputs)
    assert isinstance(cache._memory, FakeArray)
    for host in (outputs.logits, outputs.normalisers):
        assert type(host) is np.ndarray


def test_a_step_writes_new_entries_into_the_callers_memory(bundle: Bundle) -> None:
    backend = fake_backend(bundle)
    cache, inputs = start(backend, bundle, 2)
    cache.lengths[:2] = [0, 3]
    backend.step(inputs)
    for blocks in cache.past():
        for layer in bundle.manifest.paths[2].layers:
            written = (backend.arrays.to_host(blocks[layer]) != 0).any(axis=(1, 3))
            assert np.argwhere(written).tolist() == [[0, 0], [1, 3]]


def test_tokens_and_lengths_are_read_anew_in_every_step(bundle: Bundle) -> None:
    backend = fake_backend(bundle)
    cache, inputs = start(backend, bundle, 1)
    first = backend.step(inputs)
    before = first.logits.copy()
    cache.lengths[0] = 1
    inputs.tokens[0] = 9
    second = backend.step(inputs)
    assert second is first
    assert (second.logits != before).any()


def test_candidates_are_those_of_the_whole_rows(bundle: Bundle) -> None:
    backend = fake_backend(bundle)
    cache, inputs = start(backend, bundle, 3)
    logits = backend.step(inputs).logits.copy()
    for count in (1, 5, bundle.manifest.limits.vocab_size - 1):
        outputs = backend.step(step_inputs(cache, 2, count))
        assert outputs.top is not None
        assert outputs.logits.shape == (3, 1, 0)
        order = np.argsort(-logits, axis=-1, kind="stable")[..., :count]
        np.testing.assert_array_equal(outputs.top.ids, order)
        np.testing.assert_array_equal(
            outputs.top.values, np.take_along_axis(logits, order, axis=-1)
        )


def test_the_stream_is_waited_for_once_per_step(bundle: Bundle) -> None:
    cupy = FakeCupy()
    backend = fake_backend(bundle, cupy)
    _, inputs = start(backend, bundle, 2)
    backend.step(inputs)
    before = cupy.streams[0].waits
    for _ in range(3):
        backend.step(inputs)
    assert cupy.streams[0].waits == before + 3
    assert cupy.entered == []


def test_memory_is_bound_once(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = fake_backend(bundle)
    bound = []
    bind = backend._bind
    monkeypatch.setattr(backend, "_bind", lambda inputs: bound.append(inputs) or bind(inputs))
    cache, inputs = start(backend, bundle, 1)
    ranked = step_inputs(cache, 2, 4)
    ranked = StepInputs(**{**vars(inputs), "candidates": 4})
    for each in (inputs, ranked, inputs, ranked):
        backend.step(each)
    assert bound == [inputs, ranked]
    backend.step(step_inputs(cache, 2))
    assert len(bound) == 3
    backend.release(2, 1)
    assert backend._bindings == {}


@pytest.mark.parametrize("said", ["Failed to allocate memory for requested buffer of size 9", "x"])
def test_memory_that_runs_out_inside_a_graph_is_told(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    backend = fake_backend(bundle)
    _, inputs = start(backend, bundle, 1)

    def refuse(*_: object) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(backend._decoder, "run_with_iobinding", refuse)
    message = r"Fake GPU \(cuda:0\) has no memory left to run the decoder .*lower max_batch_size"
    with pytest.raises(BackendError, match="cannot run" if said == "x" else message):
        backend.step(inputs)


def test_memory_that_runs_out_for_the_cache_fails_the_requests_and_not_the_engine(
    bundle: Bundle,
) -> None:
    cupy = FakeCupy()
    with Engine(bundle, fake_backend(bundle, cupy)) as engine:
        expected = engine.generate([[5, 6, 7]], path="full")
        cupy.limit = 1 << 10
        with pytest.raises(BackendError, match=r"GPU 0 has no .* left for keys and values of 32 s"):
            engine.generate([[5, 6, 7]] * 40, path="fast")
        cupy.limit = 1 << 40
        again = engine.generate([[5, 6, 7]], path="full")
    assert again[0].tokens == expected[0].tokens


def test_quantised_bundles_have_no_graphs_for_it(quantized_bundle: Path) -> None:
    with pytest.raises(BundleError, match=r"holds no canonical graphs.*export .* again in fp32"):
        fake_backend(Bundle.load(quantized_bundle))


def test_a_provider_that_is_not_used_is_an_error(bundle: Bundle) -> None:
    import onnxruntime

    target = fake_target()
    wanted = type(target)("CUDAExecutionProvider", {}, "cuda", target.device)
    with pytest.raises(BackendError, match="CUDAExecutionProvider did not start for the encoder"):
        OrtDeviceBackend(bundle, onnxruntime, wanted)


def test_the_backend_names_itself_and_closes_its_device(bundle: Bundle) -> None:
    cupy = FakeCupy()
    backend = fake_backend(bundle, cupy)
    assert backend.name.endswith(", CPU, Fake GPU (cuda:0)")
    assert isinstance(backend._device, CudaDevice)
    backend.close()
    assert cupy.freed


def test_other_configurations_are_read(engines: tuple[Engine, Engine]) -> None:
    config = GenerationConfig(max_new_tokens=5, min_new_tokens=5, temperature=0.7, seed=1)
    assert_agree(*(each.generate(random_prompts(3), config) for each in engines))
