"""Small random models of BART and the families built after it."""

from pathlib import Path
from typing import Any

import torch

from tests.export.importers.oracle import random_sources
from tests.export.importers.reference import Drawing, Reference, Spec, compute, save_random

SIZES: dict[str, Any] = {
    "vocab_size": 80,
    "d_model": 48,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 3,
    "encoder_ffn_dim": 56,
    "decoder_ffn_dim": 56,
    "max_position_embeddings": 160,
    "forced_eos_token_id": None,
}
LENGTHS = [1, 7, 19, 150, 4, 33, 11, 70]
PRE_NORM = Drawing()
POST_NORM = Drawing(query=4.0, output=1.0)
"""Where norms follow the sums, larger outputs would drown what tells one step from another."""


def spec(
    architecture: str, drawing: Drawing = PRE_NORM, *, dtype: str = "float32", **config: Any
) -> Spec:
    """Return a small model of a class of `transformers`; `config` is set over `SIZES`.

    No token is forced in its generations.
    """
    free = {"forced_bos_token_id": None, "forced_eos_token_id": None, "bad_words_ids": None}
    sources = random_sources(LENGTHS, 75)  # the ids above are special tokens of some families
    return Spec(architecture, SIZES | config, sources, drawing, dtype=dtype, generate=free)


def reference_of_file(spec: Spec, folder: Path) -> Reference:
    """Save a random model, and compute with what `transformers` loads of it, in fp32.

    A table that is not stored is then that of fp32, whatever the weights are rounded to.
    """
    import transformers

    save_random(spec, folder)
    architecture = getattr(transformers, spec.architecture)
    return compute(architecture.from_pretrained(folder, dtype=torch.float32).eval(), spec)
