"""From logits to the next token: penalties and bars, sampling, log-probabilities.

Each works on all rows of a batch at once and treats every row as if it were alone.
"""

from drl.runtime.processors.chain import apply_processors, build_processors
from drl.runtime.processors.foreign import processor_name
from drl.runtime.processors.protocol import (
    BarringProcessor,
    DecodingState,
    LogitsProcessor,
    OccasionalProcessor,
)
from drl.runtime.processors.sampling import Sampler, choose_places, drawable, to_probabilities
from drl.runtime.processors.top import largest, log_sum_exp

__all__ = [
    "BarringProcessor",
    "DecodingState",
    "LogitsProcessor",
    "OccasionalProcessor",
    "Sampler",
    "apply_processors",
    "build_processors",
    "choose_places",
    "drawable",
    "largest",
    "log_sum_exp",
    "processor_name",
    "to_probabilities",
]
