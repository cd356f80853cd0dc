"""A small encoder-decoder in NumPy behind the `Backend` protocol, and a bundle to go with it.

Every row is computed by itself, so that what a row gives alone is exactly what it must give in any
batch. The next token depends on every source token, on the budget, on every cache slot of the row
and on the cross-attention bias; padding holds large numbers. So a wrong slot, a wrong length, a
row moved wrongly or a padded state that is not masked changes the output. `ToyBackend` also holds
its caller to the protocol: dtypes, contiguity, shapes, memory of skipped layers. Tests that use the
fixture `ranking` run twice: with a toy that gives whole rows only, and with one that also ranks.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from drl.runtime import Bundle, Engine
from drl.runtime.arrays import Float32, Int32, Int64
from drl.runtime.backends import (
    CrossAttention,
    Encoding,
    HostRules,
    Ranking,
    StepInputs,
    StepOutputs,
)
from drl.runtime.manifest import Manifest, parse_manifest

PAD, EOS = 0, 1
WIDTH, HEADS, HEAD_DIM, LAYERS, EXPERTS = 8, 2, 4, 3, 2
MERGES = [("a", "b"), ("ab", "c"), ("Ġ", "a"), ("ä", "¸"), ("ä¸", "Ń"), ("å", "Ľ")]


def byte_tokenizer() -> Tokenizer:
    """A byte-level BPE tokenizer: two special tokens, 256 bytes, a few merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<pad>", "</s>", *alphabet, *("".join(pair) for pair in MERGES)]
    vocab = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken("<pad>", special=True), AddedToken("</s>", special=True)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", EOS)]
    )
    return tokenizer


VOCAB_SIZE = byte_tokenizer().get_vocab_size()


def manifest_document(
    head: str | None = "linear",
    max_target_length: int = 48,
    generation: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A `bundle.json` for the toy."""
    graph = {"file": "graph.onnx", "nodes": 0, "inputs": [], "outputs": []}
    paths = [("fast", [0], 1, 0.5), ("mid", [0, 2], 1, 0.75), ("full", [0, 1, 2], 2, 1.0)]
    return {
        "format": "drl-bundle",
        "format_version": 1,
        "producer": {"drl": "0"},
        "target": "portable",
        "precision": "fp32",
        "model": {},
        "tokens": {"pad": PAD, "eos": EOS, "start": PAD},
        "limits": {
            "vocab_size": VOCAB_SIZE,
            "max_source_length": 40,
            "max_target_length": max_target_length,
        },
        "cache": {
            "decoder_layers": LAYERS,
            "kv_heads": HEADS,
            "head_dim": HEAD_DIM,
            "dtype": "float32",
        },
        "paths": [
            {
                "name": name,
                "layers": layers,
                "experts_per_token": experts,
                "keep_ratio": ratio,
                "cost": len(layers) / LAYERS,
            }
            for name, layers, experts, ratio in paths
        ],
        "path_router": head and {"head": head, "threshold": 0.5},
        "generation": generation or {},
        "graphs": dict.fromkeys(("encoder", "bridge", "decoder"), graph),
        "files": {"graph.onnx": {"bytes": 0, "sha256": ""}},
        "parity": None,
    }


def toy_bundle(folder: Path, tokenizer: bool = True, **options: Any) -> Bundle:
    """A bundle of the toy; the folder holds a tokenizer and nothing else."""
    document = manifest_document(**options)
    if tokenizer:
        byte_tokenizer().save(str(folder / "tokenizer.json"))
        document["files"]["tokenizer.json"] = {"bytes": 0, "sha256": ""}
    return Bundle(folder, parse_manifest(json.loads(json.dumps(document))))


def toy_engine(folder: Path, max_batch_size: int = 4, **options: Any) -> Engine:
    bundle = toy_bundle(folder, **options)
    return Engine(bundle, ToyBackend(bundle.manifest), max_batch_size)


class ToyBackend(HostRules):
    """See the module."""

    name = "toy"
    ranks = False

    def __init__(self, manifest: Manifest, seed: int = 0) -> None:
        super().__init__(np.float32)
        random = np.random.default_rng(seed)

        def weight(*shape: int) -> np.ndarray:
            return random.normal(size=shape)

        self.manifest = manifest
        self.embedding = weight(manifest.limits.vocab_size, WIDTH)
        self.positions = weight(64, WIDTH)
        self.saliency = weight(WIDTH)
        self.path_head = weight(len(manifest.paths), WIDTH)
        kv = HEADS * HEAD_DIM
        self.self_kv = weight(LAYERS, 2, WIDTH, kv)
        self.cross_kv = weight(LAYERS, 2, WIDTH, kv)
        self.mix = weight(LAYERS, 2, kv, WIDTH)
        self.head = weight(WIDTH, manifest.limits.vocab_size) * 1.5
        self.encoded_rows: list[int] = []
        self.stepped_rows: list[tuple[int, int]] = []
        self.candidates: list[int] = []
        self.released: list[tuple[int, int]] = []
        self.closed = False
        self.fail_at_step: BaseException | None = None

    def encode(
        self, tokens: Int64, lengths: Int32, budget: Float32, with_experts: bool = False
    ) -> Encoding:
        assert tokens.dtype == np.int64
        assert lengths.dtype == np.int32
        assert budget.dtype == np.float32
        assert tokens.shape[1] == lengths.max()
        self.encoded_rows.append(len(tokens))
        states = np.full((*tokens.shape, WIDTH), 1e3, np.float32)
        saliency = np.zeros(tokens.shape, np.float32)
        logits = np.zeros((len(tokens), len(self.manifest.paths)), np.float32)
        for row, length in enumerate(lengths):
            vectors = self.embedding[tokens[row, :length]] + self.positions[:length]
            states[row, :length] = np.tanh(vectors + vectors.mean(axis=0))
            saliency[row, :length] = states[row, :length] @ self.saliency
            logits[row] = self.path_head @ states[row, :length].mean(axis=0) * 3 + budget[row]
        experts = {1: np.stack([tokens % 5, tokens % 3], -1).astype(np.int32)}
        return Encoding(states, lengths, saliency, logits, experts if with_experts else {})

    def bridge(self, encoding: Encoding, path: int) -> CrossAttention:
        info = self.manifest.paths[path]
        assert encoding.saliency is not None
        assert encoding.states.flags.c_contiguous
        assert encoding.states.shape[1] == encoding.lengths.max()
        counts = np.ceil(info.keep_ratio * encoding.lengths).astype(np.int32)
        rows, kept = len(counts), int(counts.max())
        bias = np.full((rows, kept), -1e4, np.float32)
        shapes = [(rows, HEADS, kept if i in info.layers else 0, HEAD_DIM) for i in range(LAYERS)]
        blocks = [[np.full(shape, 50.0, np.float32) for shape in shapes] for _ in range(2)]
        for row, count in enumerate(counts):
            scores = encoding.saliency[row, : encoding.lengths[row]]
            chosen = np.sort(np.argsort(-scores, kind="stable")[:count])
            bias[row, :count] = -np.logaddexp(0, -scores[chosen])
            for layer in info.layers:
                for part in range(2):
                    flat = encoding.states[row, chosen] @ self.cross_kv[layer, part]
                    heads = flat.reshape(count, HEADS, HEAD_DIM).swapaxes(0, 1)
                    blocks[part][layer][row, :, :count] = heads
        return CrossAttention(bias, counts, tuple(blocks[0]), tuple(blocks[1]))

    def step(self, inputs: StepInputs) -> StepOutputs:
        if self.fail_at_step is not None:
            error, self.fail_at_step = self.fail_at_step, None
            raise error
        self._check(inputs)
        rows, new = inputs.tokens.shape
        self.stepped_rows.append((inputs.path, rows))
        self.candidates.append(inputs.candidates)
        logits = np.full((rows, new, self.manifest.limits.vocab_size), np.nan, np.float32)
        for row in range(rows):
            for place in range(inputs.new_lengths[row]):
                logits[row, place] = self._row_logits(inputs, row, place)
        experts = {}
        if inputs.with_experts:
            ids = np.stack([inputs.tokens % 7, inputs.tokens % 2], -1).astype(np.int32)
            experts = {layer: ids + layer for layer in self.manifest.paths[inputs.path].layers}
        return step_outputs(logits, experts, inputs.candidates)

    def release(self, path: int, width: int) -> None:
        self.released.append((path, width))

    def close(self) -> None:
        self.closed = True

    def _row_logits(self, inputs: StepInputs, row: int, place: int) -> np.ndarray:
        slot = int(inputs.lengths[row]) + place
        state = self.embedding[inputs.tokens[row, place]] + self.positions[slot]
        for layer in self.manifest.paths[inputs.path].layers:
            past = (inputs.past_keys[layer], inputs.past_values[layer])
            for part in range(2):
                new = state @ self.self_kv[layer, part]
                past[part][row, :, slot] = new.reshape(HEADS, HEAD_DIM)
            keys, values = past[0][row, :, : slot + 1], past[1][row, :, : slot + 1]
            state = state + _attend(state, keys, values, 0.0) @ self.mix[layer, 0]
            source = row // inputs.width
            cross = inputs.cross_keys[layer][source], inputs.cross_values[layer][source]
            state = state + _attend(state, *cross, inputs.cross_bias[source]) @ self.mix[layer, 1]
            state = np.tanh(state)
        scores = state @ self.head
        scores[EOS] += 0.25 * slot
        return scores

    def _check(self, inputs: StepInputs) -> None:
        rows = len(inputs.tokens)
        layers = self.manifest.paths[inputs.path].layers
        assert 0 <= inputs.candidates < self.manifest.limits.vocab_size
        assert self.ranks or not inputs.candidates
        assert inputs.tokens.dtype == np.int64
        for vector in (inputs.lengths, inputs.new_lengths):
            assert vector.dtype == np.int32
            assert vector.shape == (rows,)
        sources, kept = inputs.cross_bias.shape
        assert sources * inputs.width == rows
        assert inputs.cross_bias.dtype == np.float32
        assert inputs.cross_bias.flags.c_contiguous
        capacity = inputs.past_keys[layers[0]].shape[2]
        assert capacity >= (inputs.lengths + inputs.new_lengths).max()
        assert capacity <= self.manifest.limits.max_target_length
        groups = (
            (sources, kept, (inputs.cross_keys, inputs.cross_values)),
            (rows, capacity, (inputs.past_keys, inputs.past_values)),
        )
        for count, length, pair in groups:
            for blocks in pair:
                for layer, block in enumerate(blocks):
                    expected = length if layer in layers else 0
                    assert block.shape == (count, HEADS, expected, HEAD_DIM)
                    assert block.flags.c_contiguous
                    assert block.dtype == np.float32


def step_outputs(
    logits: np.ndarray, experts: dict[int, np.ndarray] | None = None, candidates: int = 0
) -> StepOutputs:
    """What a decoder step gives that has these `[B, T, V]` logits."""
    largest = logits.max(axis=-1)
    sums = np.exp(logits.astype(np.float64) - largest[..., None]).sum(axis=-1)
    normalisers = (largest + np.log(sums)).astype(np.float32)
    if not candidates:
        return StepOutputs(logits, normalisers, experts or {})
    missing = np.isnan(logits)
    ids = np.lexsort((np.where(missing, 0, -logits), missing), axis=-1)[..., :candidates]
    top = Ranking(np.take_along_axis(logits, ids, axis=-1), ids.astype(np.int32))
    return StepOutputs(logits[..., :0], normalisers, experts or {}, top)


def _attend(state: np.ndarray, keys: np.ndarray, values: np.ndarray, bias: Any) -> np.ndarray:
    """Attention of one query, `[H*h]`, over `[N, L, h]` keys and values."""
    query = state.reshape(HEADS, 1, HEAD_DIM)
    scores = (query * keys.astype(np.float64)).sum(-1) + bias
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return (weights[..., None] * values).sum(1).reshape(-1)
