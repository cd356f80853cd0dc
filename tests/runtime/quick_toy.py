"""A toy without arithmetic, for tests of thousands of requests: a table of logits.

As in `ToyBackend`, rows are exact and apart: the next token depends on the source and on every
token before, which are hashed into the cache, so that a row that is moved or copied wrongly says
other things.
"""

from pathlib import Path

import numpy as np

from drl.runtime import Engine
from drl.runtime.arrays import Float32, Int32, Int64
from drl.runtime.backends import CrossAttention, Encoding, StepInputs, StepOutputs
from drl.runtime.manifest import Manifest
from tests.runtime.comparing import HookedBackend
from tests.runtime.toy import EOS, HEAD_DIM, HEADS, LAYERS, WIDTH, step_outputs, toy_bundle

STATES = 1021


def quick_engine(folder: Path, max_batch_size: int = 16) -> tuple[Engine, "QuickBackend"]:
    bundle = toy_bundle(folder)
    backend = QuickBackend(bundle.manifest)
    return Engine(bundle, backend, max_batch_size), backend


class QuickBackend(HookedBackend):
    """See the module. About one token in eight is an end."""

    def __init__(self, manifest: Manifest) -> None:
        super().__init__(manifest)
        random = np.random.default_rng(0)
        self.table = random.normal(size=(STATES, manifest.limits.vocab_size)).astype(np.float32)
        self.table[:, EOS] = np.where(random.random(STATES) < 0.12, 9, -2)

    def encode(
        self, tokens: Int64, lengths: Int32, budget: Float32, with_experts: bool = False
    ) -> Encoding:
        inside = np.arange(tokens.shape[1]) < lengths[:, None]
        weights = np.arange(1, tokens.shape[1] + 1) * inside
        states = np.zeros((*tokens.shape, WIDTH), np.float32)
        states[:, 0, 0] = (tokens * weights).sum(1) % STATES
        logits = self.table[states[:, 0, 0].astype(int), : len(self.manifest.paths)]
        experts = {1: np.stack([tokens % 5, tokens % 3], -1).astype(np.int32)}
        saliency = np.zeros(tokens.shape, np.float32)
        return Encoding(states, lengths, saliency, logits, experts if with_experts else {})

    def bridge(self, encoding: Encoding, path: int) -> CrossAttention:
        rows, layers = len(encoding.lengths), self.manifest.paths[path].layers
        blocks = tuple(
            np.zeros((rows, HEADS, 2 if layer in layers else 0, HEAD_DIM), np.float32)
            for layer in range(LAYERS)
        )
        blocks[layers[0]][:, 0, 0, 0] = encoding.states[:, 0, 0]
        bias = np.zeros((rows, 2), np.float32)
        return CrossAttention(bias, np.full(rows, 2, np.int32), blocks, blocks)

    def step(self, inputs: StepInputs) -> StepOutputs:
        if self.before_step is not None:
            self.before_step(len(self.stepped_rows))
        if self.fail_at_step is not None:
            error, self.fail_at_step = self.fail_at_step, None
            raise error
        rows, new = inputs.tokens.shape
        self.stepped_rows.append((inputs.path, rows))
        self.candidates.append(inputs.candidates)
        layer = self.manifest.paths[inputs.path].layers[0]
        past = inputs.past_keys[layer]
        source = inputs.cross_keys[layer][np.arange(rows) // inputs.width, 0, 0, 0].astype(int)
        logits = np.full((rows, new, self.table.shape[1]), np.nan, np.float32)
        for place in range(new):
            row = np.nonzero(inputs.new_lengths > place)[0]
            slot = inputs.lengths[row] + place
            before = np.where(slot > 0, past[row, 0, slot - 1, 0], 0).astype(int)
            state = (31 * before + 7 * inputs.tokens[row, place] + source[row] + slot) % STATES
            past[row, 0, slot, 0] = state
            logits[row, place] = self.table[state]
        experts = {}
        if inputs.with_experts:
            ids = np.stack([inputs.tokens % 7, inputs.tokens % 2], -1).astype(np.int32)
            experts = {each: ids + each for each in self.manifest.paths[inputs.path].layers}
        return step_outputs(logits, experts, inputs.candidates)
