"""Sources through the encoder, and the path that each of them takes."""

from collections.abc import Sequence

import numpy as np

from drl.runtime.backends.protocol import Backend, Encoding
from drl.runtime.manifest import Manifest
from drl.runtime.paths import choose_path
from drl.runtime.request import Request


def encode(backend: Backend, manifest: Manifest, requests: Sequence[Request]) -> Encoding:
    """Encode the sources of requests together, right-padded to the longest."""
    prompts = [request.tokens for request in requests]
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    tokens = np.full((len(prompts), lengths.max()), manifest.tokens.pad, np.int64)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    budgets = np.array([request.budget for request in requests], np.float32)
    return backend.encode(tokens, lengths, budgets, any(item.with_experts for item in requests))


def route(manifest: Manifest, request: Request, encoding: Encoding, row: int) -> int:
    """The path of a request: its own choice, or that of the path router for its row."""
    if request.path is not None:
        return request.path
    logits = None if encoding.path_logits is None else encoding.path_logits[row]
    costs = [path.cost for path in manifest.paths]
    return choose_path(costs, manifest.path_router, logits, request.budget)
