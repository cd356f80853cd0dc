"""ONNX Runtime on exported bundles: bound memory, batches, skipped layers, clear refusals."""

import json
import shutil
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from drl.export.model import DualRouterModel
from drl.runtime import BackendError, Bundle, BundleError, Engine, GenerationConfig
from drl.runtime.backends import StepInputs, StepOutputs, open_backend
from drl.runtime.backends.ort import OrtBackend
from drl.runtime.cache import KVCache
from tests.models import TINY, random_prompts


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.load(tiny_bundle)


@pytest.fixture(scope="module")
def backend(bundle: Bundle) -> Iterator[OrtBackend]:
    backend = OrtBackend(bundle, threads=1)
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def engine(tiny_bundle: Path) -> Iterator[Engine]:
    with Engine.from_bundle(tiny_bundle, threads=1) as engine:
        yield engine


def start(
    backend: OrtBackend, bundle: Bundle, path: int, prompts: list[list[int]], capacity: int = 48
) -> KVCache:
    """A cache with encoded prompts and nothing decoded yet."""
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    tokens = np.zeros((len(prompts), lengths.max()), np.int64)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    encoding = backend.encode(tokens, lengths, np.ones(len(prompts), np.float32))
    manifest = bundle.manifest
    cache = KVCache(manifest.cache, manifest.paths[path].layers, len(prompts), capacity)
    cache.append(backend.bridge(encoding, path))
    cache.reserve(capacity)
    return cache


def step_inputs(
    cache: KVCache, path: int, tokens: np.ndarray, new: np.ndarray, with_experts: bool = False
) -> StepInputs:
    bias, cross_keys, cross_values = cache.cross()
    past_keys, past_values = cache.past()
    lengths = cache.lengths[: cache.rows]
    return StepInputs(
        path, tokens, lengths, new, bias, cross_keys, cross_values, past_keys, past_values,
        with_experts,
    )  # fmt: skip


@pytest.mark.parametrize("path", ["auto", "fast", "balanced", "full"])
@pytest.mark.parametrize("fixture", ["tiny_bundle", "portable_bundle"])
def test_ragged_batches_give_what_prompts_give_alone(
    fixture: str, path: str, request: pytest.FixtureRequest
) -> None:
    prompts = random_prompts(20, seed=4)
    configs = [GenerationConfig(max_new_tokens=3 + index * 7 % 46) for index in range(20)]
    folder = request.getfixturevalue(fixture)
    with Engine.from_bundle(folder, threads=1, max_batch_size=6) as engine:
        alone = [
            engine.generate([prompt], config, path=path)[0]
            for prompt, config in zip(prompts, configs, strict=True)
        ]
        together = engine.generate(prompts, configs, path=path)
    assert len({len(result.tokens) for result in alone}) > 9
    for ours, theirs in zip(together, alone, strict=True):
        assert ours.tokens == theirs.tokens
        assert ours.path == theirs.path
        assert ours.finish_reason == theirs.finish_reason
        np.testing.assert_allclose(ours.logprobs or [], theirs.logprobs or [], atol=1e-4)


def test_a_bundle_without_routing_generates(dense_bundle: Path) -> None:
    prompts = random_prompts(5)
    with Engine.from_bundle(dense_bundle, threads=1) as engine:
        results = engine.generate(prompts, return_experts=True)
        alone = [engine.generate([prompt])[0] for prompt in prompts]
    assert [result.tokens for result in results] == [result.tokens for result in alone]
    assert results[0].path_logits is None
    assert results[0].experts is not None
    assert results[0].experts.encoder == results[0].experts.decoder == {}


def test_the_whole_cache_can_be_filled(engine: Engine) -> None:
    limit = engine.bundle.manifest.limits.max_target_length
    config = GenerationConfig(min_new_tokens=limit)
    (result,) = engine.generate([[5, 6]], config, path="full")
    assert len(result.tokens) == limit
    (shorter,) = engine.generate(
        [[5, 6]], GenerationConfig(min_new_tokens=9, max_new_tokens=9), path=2
    )
    assert result.tokens[:9] == shorter.tokens


def test_results_tell_experts_and_path_logits(engine: Engine, tiny_model: DualRouterModel) -> None:
    prompt = [5, 6, 7, 8]
    config = GenerationConfig(min_new_tokens=4, max_new_tokens=4)
    (fast,) = engine.generate([prompt], config, path="fast", return_experts=True)
    (full,) = engine.generate([prompt], config, path="full", return_experts=True)
    assert fast.experts is not None
    assert full.experts is not None
    assert {layer: ids.shape for layer, ids in full.experts.encoder.items()} == {1: (4, 2)}
    assert {layer: ids.shape for layer, ids in full.experts.decoder.items()} == {
        1: (4, 2),
        3: (4, 2),
    }
    assert {layer: ids.shape for layer, ids in fast.experts.decoder.items()} == {3: (4, 1)}
    for ids in (*full.experts.encoder.values(), *full.experts.decoder.values()):
        assert ((ids >= 0) & (ids < TINY.groups * TINY.experts_per_group)).all()
    assert fast.path_logits is not None
    np.testing.assert_allclose(fast.path_logits, full.path_logits)


def test_a_step_writes_new_entries_into_the_callers_memory(
    backend: OrtBackend, bundle: Bundle
) -> None:
    cache = start(backend, bundle, 2, [[5, 6, 7], [8]])
    tokens = np.full((2, 1), bundle.manifest.tokens.start, np.int64)
    inputs = step_inputs(cache, 2, tokens, np.ones(2, np.int32))
    cache.lengths[:2] = [0, 3]  # as if rows had come at different times
    backend.step(inputs)
    for blocks in cache.past():
        for layer in bundle.manifest.paths[2].layers:
            written = (blocks[layer] != 0).any(axis=(1, 3))
            assert np.argwhere(written).tolist() == [[0, 0], [1, 3]]


def test_memory_is_bound_once_and_results_come_in_the_same_place(
    backend: OrtBackend, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = []
    bind = backend._bind
    monkeypatch.setattr(backend, "_bind", lambda inputs: bound.append(inputs) or bind(inputs))
    cache = start(backend, bundle, 0, [[5, 6, 7]])
    tokens = np.full((1, 1), bundle.manifest.tokens.start, np.int64)
    inputs = step_inputs(cache, 0, tokens, np.ones(1, np.int32))
    first = backend.step(inputs)
    before = first.logits.copy()
    cache.lengths[0] = 1
    tokens[0] = 9
    second = backend.step(inputs)
    assert second is first
    assert (second.logits != before).any()
    assert bound == [inputs]
    backend.step(step_inputs(cache, 0, tokens, np.ones(1, np.int32)))
    assert len(bound) == 2


@pytest.mark.parametrize("path", [0, 1, 2])
@pytest.mark.parametrize("fixture", ["tiny_bundle", "portable_bundle"])
def test_many_tokens_at_once_give_what_single_steps_give(
    fixture: str, path: int, request: pytest.FixtureRequest
) -> None:
    bundle = Bundle.load(request.getfixturevalue(fixture))
    backend = OrtBackend(bundle, threads=1)
    prompts = [[5, 6, 7, 8, 9], [10, 11]]
    target = np.array([[2, 9, 8, 7], [2, 5, 0, 0]])
    counts = np.array([4, 2], np.int32)
    cache = start(backend, bundle, path, prompts)
    at_once = backend.step(step_inputs(cache, path, target, counts)).logits.copy()
    cache = start(backend, bundle, path, prompts)
    for place in range(4):
        tokens = np.ascontiguousarray(target[:, place : place + 1])
        logits = backend.step(step_inputs(cache, path, tokens, np.ones(2, np.int32))).logits
        for row in np.flatnonzero(place < counts):
            np.testing.assert_allclose(logits[row, 0], at_once[row, place], atol=1e-4)
        cache.lengths[:2] += 1


def test_skipped_layers_have_no_keys_and_values(backend: OrtBackend, bundle: Bundle) -> None:
    cache = start(backend, bundle, 0, [[5, 6, 7, 8]])
    layers = bundle.manifest.paths[0].layers
    for blocks in (*cache.past(), *cache.cross()[1:]):
        for layer, block in enumerate(blocks):
            assert (block.size > 0) == (layer in layers)


def test_missing_onnxruntime_names_the_extra(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        BackendError, match=r'not installed; install it with `pip install "drl\[cpu'
    ):
        open_backend(bundle)


def test_broken_onnxruntime_gives_its_reason(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delitem(sys.modules, "onnxruntime")
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('libstdc++ is too old')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BackendError, match=r"does not load \(libstdc\+\+ is too old\)"):
        open_backend(bundle)


@pytest.mark.parametrize("threads", [0, -1, True, "2", 2.0, 1025, 10**400])
def test_threads_must_be_a_positive_number(bundle: Bundle, threads: object) -> None:
    with pytest.raises(BackendError, match=r"threads must be at (least|most) 1"):
        open_backend(bundle, threads=threads)  # type: ignore[arg-type]


@pytest.mark.parametrize("version", ["1.25.0", "1.26.1rc2", "0.99"])
def test_an_old_onnxruntime_is_told_which_one_is_needed(
    bundle: Bundle, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxruntime.__version__", version)
    message = rf"^ONNX Runtime 1\.27 or newer is needed, and this is {version}; upgrade with `pip"
    with pytest.raises(BackendError, match=message):
        open_backend(bundle)


def test_an_onnxruntime_without_an_operator_is_told_from_others(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError(
            "[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : no kernel for TensorScatter(24)"
        )

    monkeypatch.setattr("onnxruntime.InferenceSession", refuse)
    with pytest.raises(BackendError, match=r"lacks an operator of encoder\.onnx .*TensorScatter"):
        open_backend(bundle)


def test_an_idle_lane_s_memory_is_given_back(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drl.runtime.lane._KEPT_BYTES", 0)
    with Engine.from_bundle(tiny_bundle, threads=1) as engine:
        bound: list[weakref.ref[StepInputs]] = []
        step = engine.backend.step

        def watch(inputs: StepInputs) -> StepOutputs:
            bound.append(weakref.ref(inputs))
            return step(inputs)

        monkeypatch.setattr(engine.backend, "step", watch)
        engine.generate([[5, 6]])
        assert bound
        assert [reference() for reference in bound] == [None] * len(bound)


def test_unknown_devices_are_refused(bundle: Bundle) -> None:
    with pytest.raises(BackendError, match="no device 'tpu'"):
        open_backend(bundle, "tpu")


@pytest.mark.parametrize(
    "said",
    [
        "CUDA failure 2: out of memory ; GPU=0",
        "Failed to allocate memory for requested buffer of size 1048576",
        "std::bad_alloc",
    ],
)
def test_a_full_device_is_not_taken_for_a_damaged_bundle(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError(f"[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : {said}")

    monkeypatch.setattr("onnxruntime.InferenceSession", refuse)
    with pytest.raises(BackendError, match=r"no memory left to load encoder\.onnx \(.*") as caught:
        open_backend(bundle)
    assert "drl-export" not in str(caught.value)


def test_memory_that_runs_out_within_a_step_is_one_clear_line(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("[ONNXRuntimeError] : 6 : Failed to allocate memory\nfor a buffer")

    with Engine(bundle, open_backend(bundle), max_batch_size=4) as engine:
        (expected,) = engine.generate([[5, 6]])
        with monkeypatch.context() as patch:
            patch.setattr("onnxruntime.InferenceSession.run_with_iobinding", refuse)
            message = r"^this machine has no memory left to run the decoder \(.*; lower max_batch"
            with pytest.raises(BackendError, match=message) as caught:
                engine.generate([[5, 6]])
        assert "\n" not in str(caught.value)
        assert engine.generate([[5, 6]])[0].tokens == expected.tokens


def test_a_graph_that_does_not_load_is_one_clear_line(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    size = (folder / "decoder.onnx").stat().st_size
    (folder / "decoder.onnx").write_bytes(b"\0" * size)
    with pytest.raises(BackendError, match=r"cannot load decoder\.onnx: ") as caught:
        Engine.from_bundle(folder, verify_hashes=False)
    assert "\n" not in str(caught.value)


def test_a_graph_must_be_what_the_manifest_says(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    document = json.loads((folder / "bundle.json").read_text())
    document["graphs"]["bridge"]["outputs"].pop()
    (folder / "bundle.json").write_text(json.dumps(document))
    with pytest.raises(BundleError, match=r"bridge\.onnx has other outputs than bundle\.json says"):
        Engine.from_bundle(folder)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("path_router", None, r"the encoder has path logits and bundle\.json no path_router"),
        ("cache.kv_heads", 7, r"bundle\.json: cache is not the decoder's"),
        ("cache.head_dim", 7, r"bundle\.json: cache is not the decoder's"),
        ("cache.decoder_layers", 7, r"bundle\.json: cache is not the decoder's, 4 layers with"),
        ("cache.dtype", "float16", r"bundle\.json: cache is not the decoder's"),
        ("limits.vocab_size", 10**6, r"limits\.vocab_size is 1000000 and the decoder has"),
    ],
)
def test_sizes_must_be_those_of_the_graphs(
    tiny_bundle: Path, tmp_path: Path, place: str, value: object, message: str
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    document = json.loads((folder / "bundle.json").read_text())
    *parents, last = place.split(".")
    at = document
    for name in parents:
        at = at[name]
    at[last] = value
    (folder / "bundle.json").write_text(json.dumps(document))
    with pytest.raises(BundleError, match=message):
        Engine.from_bundle(folder)


def test_the_backend_names_itself(backend: OrtBackend) -> None:
    assert backend.name.startswith("ONNX Runtime ")
    assert backend.name.endswith("CPU, 1 thread")


def test_normalisers_turn_logits_into_log_probabilities(
    backend: OrtBackend, bundle: Bundle
) -> None:
    cache = start(backend, bundle, 2, random_prompts(3))
    tokens = np.random.default_rng(0).integers(3, TINY.vocab_size, (3, 4))
    outputs = backend.step(step_inputs(cache, 2, tokens, np.array([4, 2, 3], np.int32)))
    expected = np.log(np.exp(outputs.logits.astype(np.float64)).sum(axis=-1))
    assert outputs.normalisers.shape == (3, 4)
    np.testing.assert_allclose(outputs.normalisers, expected, rtol=1e-6)
