"""A bundle whose keys and values are int8: the runtime moves rows that it need not understand."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from drl.export import ExportOptions, export
from drl.export.options import KvCache
from drl.plugins.native import NativeLibrary
from drl.plugins.ops.state_rows import dequantize_states
from drl.runtime import Bundle, BundleError, Engine, GenerationResult
from drl.runtime.backends import CrossAttention, native
from drl.runtime.backends.memory import HostRules
from drl.runtime.backends.ort import OrtBackend
from drl.runtime.cache import KVCache
from drl.runtime.commands.inspect import main as inspect
from drl.runtime.manifest import CacheInfo
from tests.models import TINY, random_prompts
from tests.plugins.native.sets import INSTRUCTION_SETS, available, needs_library
from tests.runtime.backends.test_ort import start, step_inputs
from tests.runtime.comparing import MODES, assert_same

MISSING = NativeLibrary(None, "the native kernels were not built; install DRL again")
PREFIXES = [None, [9, 8], None, [7], None, list(range(20, 30))]
LIMITS = {"max_new_tokens": 24}


@pytest.fixture(scope="module")
def folder(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model with every feature, in int8 throughout. Treat it as read-only."""
    folder = tmp_path_factory.mktemp("int8_cache") / "bundle"
    export(tiny_checkpoint, folder, ExportOptions(precision="int8", kv_cache="int8"))
    return folder


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    with Engine.from_bundle(folder, threads=1, max_batch_size=9) as engine:
        yield engine


def generate(engine: Engine, **options: Any) -> list[Any]:
    return engine.generate(random_prompts(6), prefixes=PREFIXES, **LIMITS, **options)


def without_path_logits(result: GenerationResult) -> GenerationResult:
    others = tuple(without_path_logits(other) for other in result.alternatives)
    return dataclasses.replace(result, path_logits=None, alternatives=others)


@needs_library
@pytest.mark.parametrize("mode", MODES)
def test_a_sequence_is_the_same_in_a_batch(engine: Engine, mode: str) -> None:
    """To the last bit, while rows move as sequences end, and beams copy each other's.

    But for the path's logits: ONNX Runtime pools the states of a batch together.
    """
    together = generate(engine, **MODES[mode])
    for prompt, prefix, found in zip(random_prompts(6), PREFIXES, together, strict=True):
        (alone,) = engine.generate([prompt], prefixes=[prefix], **LIMITS, **MODES[mode])
        np.testing.assert_allclose(found.path_logits, alone.path_logits, rtol=1e-5, atol=1e-5)
        assert_same(found, without_path_logits(alone))


@needs_library
@pytest.mark.parametrize("mode", ["greedy", "beams"])
def test_threads_and_instructions_change_no_bit(
    folder: Path, engine: Engine, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = generate(engine, **MODES[mode])
    # Without fused multiply-adds the encoder's attention is that of ONNX Runtime.
    for isa in (name for name in INSTRUCTION_SETS if available(name) and name != "scalar"):
        monkeypatch.setenv("DRL_NATIVE_ISA", isa)
        for threads in (1, 2):
            with Engine.from_bundle(folder, threads=threads, max_batch_size=9) as other:
                for found, one in zip(generate(other, **MODES[mode]), expected, strict=True):
                    assert_same(found, one)


@needs_library
@pytest.mark.parametrize("count", [1, 2, 9])
def test_a_prefix_leaves_what_steps_leave(engine: Engine, count: int) -> None:
    for prompt in random_prompts(4):
        (whole,) = engine.generate([prompt], path="full", min_new_tokens=12, max_new_tokens=12)
        rest, said = 12 - count, whole.tokens[:count]
        (found,) = engine.generate(
            [prompt], prefixes=[said], path="full", min_new_tokens=rest, max_new_tokens=rest
        )
        assert found.tokens[-rest:] == whole.tokens[count:]
        assert found.logprobs is not None
        np.testing.assert_array_equal(found.logprobs[-rest:], whole.logprobs[count:])


def test_rows_move_whole_while_the_memory_grows() -> None:
    info = CacheInfo(1, 2, 3, "int8", 2)
    cache = KVCache(info, (0,), 4, 300, width=2, rules=HostRules("int8"))
    cross = np.random.default_rng(0).integers(-128, 128, (3, 2, 4, 5)).astype(np.int8)
    kept = np.full(3, 4, np.int32)
    cache.append(CrossAttention(np.zeros((3, 4), np.float32), kept, (cross,), (cross,)))
    cache.reserve(60)
    past = np.random.default_rng(1).integers(-128, 128, (2, 6, 2, 60, 5)).astype(np.int8)
    for part, side in enumerate(cache.past()):
        side[0][:, :, :60] = past[part]
    cache.lengths[:6] = 60
    cache.copy_rows([(2, 3)])
    cache.reserve(200)
    assert cache.remove([0]) == [(2, 0)]
    for part, (side, source) in enumerate(zip(cache.past(), cache.cross()[1:], strict=True)):
        np.testing.assert_array_equal(side[0][:, :, :60], past[part][[4, 5, 2, 2]])
        np.testing.assert_array_equal(source[0][:, :, :4], cross[[2, 1]])
        assert side[0].dtype == source[0].dtype == np.int8


@needs_library
def test_the_cache_holds_rounded_keys_and_values(folder: Path, engine: Engine) -> None:
    backend = engine.backend
    assert isinstance(backend, OrtBackend)
    cache = start(backend, engine.bundle, 2, [[5, 6, 7], [8, 9]])
    fp32 = dataclasses.replace(engine.bundle.manifest.cache, dtype="float32", scale_bytes=0)
    tokens = np.array([[5, 6, 7], [8, 9, 4]], np.int64)
    inputs = step_inputs(cache, 2, tokens, np.array([3, 3], np.int32))
    backend.step(inputs)
    layers = engine.bundle.manifest.paths[2].layers
    for block in (*inputs.past_keys, *inputs.past_values, *inputs.cross_keys):
        assert block.dtype == np.int8
        assert block.shape[3] == TINY.head_dim + 2
    for layer in layers:
        keys = dequantize_states(np.ascontiguousarray(inputs.past_keys[layer]))
        assert np.abs(keys[:, :, :3]).max(axis=-1).min() > 0
        assert not keys[:, :, 3:].any()  # as the memory came
        kept = dequantize_states(np.ascontiguousarray(inputs.cross_values[layer]))
        assert np.abs(kept[:, :, 0]).max(axis=-1).min() > 0
    like = KVCache(fp32, layers, 2, cache.capacity)
    like.append(zeros_like(cache))
    like.reserve(cache.capacity)
    assert cache.nbytes == like.nbytes * (TINY.head_dim + 2) // (4 * TINY.head_dim)


def zeros_like(cache: KVCache) -> CrossAttention:
    """Cross-attention blocks of fp32, as many as a cache of int8 holds."""
    bias, keys, values = cache.cross()
    sides = (
        tuple(np.zeros((*block.shape[:3], TINY.head_dim), np.float32) for block in side)
        for side in (keys, values)
    )
    lengths = np.full(len(bias), bias.shape[1], np.int32)
    return CrossAttention(np.asarray(bias), lengths, *sides)


def test_without_the_library_the_bodies_give_the_same(
    folder: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most rows: a value at the boundary of two steps may fall to the other side."""
    monkeypatch.setattr(native, "find_library", lambda: MISSING)
    with pytest.warns(RuntimeWarning, match="many times slower"):
        slow = OrtBackend(engine.bundle, threads=1)
    assert isinstance(engine.backend, OrtBackend)
    prompts, ones = random_prompts(7), np.ones(7, np.int32)
    logits = []
    for backend in (engine.backend, slow):
        cache = start(backend, engine.bundle, 2, prompts)
        for token in (2, 5, 9):
            tokens = np.full((7, 1), token, np.int64)
            logits.append(backend.step(step_inputs(cache, 2, tokens, ones)).logits[:, 0].copy())
            cache.lengths[:7] += 1
    slow.close()
    for found, expected in zip(logits[3:], logits[:3], strict=True):
        off = np.linalg.norm(found - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
        assert np.median(off) < 1e-5
        assert off.max() < 0.1


@pytest.mark.parametrize("kv_cache", ["fp32", "int8"])
def test_without_the_library_no_sequence_reads_what_another_left(
    kv_cache: KvCache, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bodies multiply by masked entries, and 0 times NaN is NaN."""
    options = ExportOptions(precision="int8", kv_cache=kv_cache, verify=False)
    export(tiny_checkpoint, tmp_path / "bundle", options)
    monkeypatch.setattr(native, "find_library", lambda: MISSING)
    remove = KVCache.remove

    def overflowed(cache: KVCache, slots: list[int]) -> list[tuple[int, int]]:
        for slot in slots:
            rows = slice(slot * cache.width, (slot + 1) * cache.width)
            cache._memory[:, :, rows] = -1 if kv_cache == "int8" else np.nan
        return remove(cache, slots)

    with pytest.warns(RuntimeWarning, match="many times slower"):
        opened = Engine.from_bundle(tmp_path / "bundle", threads=1, max_batch_size=2)
    with opened as engine:
        expected = generate(engine, path="full")
        monkeypatch.setattr(KVCache, "remove", overflowed)
        for found, one in zip(generate(engine, path="full"), expected, strict=True):
            assert_same(found, one)


@needs_library
@pytest.mark.parametrize(
    "wrong", [{"scale_bytes": 0}, {"dtype": "float32"}, {"head_dim": TINY.head_dim + 2}]
)
def test_what_the_manifest_says_must_be_the_decoder_s(folder: Path, wrong: dict[str, Any]) -> None:
    bundle = Bundle.load(folder)
    cache = dataclasses.replace(bundle.manifest.cache, **wrong)
    manifest = dataclasses.replace(bundle.manifest, cache=cache)
    with pytest.raises(BundleError, match=r"cache is not the decoder's, .* heads of .* int8; run"):
        OrtBackend(dataclasses.replace(bundle, manifest=manifest), threads=1)


def test_inspection_counts_its_bytes(folder: Path) -> None:
    layers = len(TINY.paths[-1].layers)
    expected = 2 * layers * TINY.kv_heads * (TINY.head_dim + 2)
    done = CliRunner().invoke(inspect, [str(folder)])
    assert f"{expected} B of int8 on the longest path" in done.stdout
