"""Token probabilities of one row by transformers' sampling filters, one after the other."""

import numpy as np
import torch
from transformers import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from drl.runtime import GenerationConfig


def expected_probabilities(
    scores: np.ndarray, config: GenerationConfig, least: int = 1
) -> np.ndarray:
    """`[V]` probabilities in double precision, in the order of transformers' `generate`."""
    keep = {"min_tokens_to_keep": least}
    chain = LogitsProcessorList([TemperatureLogitsWarper(float(config.temperature or 1.0))])
    if config.top_k:
        chain.append(TopKLogitsWarper(config.top_k, **keep))
    if config.top_p is not None and config.top_p < 1:
        chain.append(TopPLogitsWarper(config.top_p, **keep))
    if config.min_p is not None:
        chain.append(MinPLogitsWarper(config.min_p, **keep))
    if config.typical_p is not None and config.typical_p < 1:
        chain.append(TypicalLogitsWarper(config.typical_p, **keep))
    if config.epsilon_cutoff:
        chain.append(EpsilonLogitsWarper(config.epsilon_cutoff, **keep))
    if config.eta_cutoff:
        chain.append(EtaLogitsWarper(config.eta_cutoff, **keep))
    row = torch.from_numpy(scores.astype(np.float64))[None]
    return torch.softmax(chain(torch.zeros(1, 1, dtype=torch.int64), row), -1)[0].numpy()
