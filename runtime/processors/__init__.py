"""From logits to the next token: penalties and bars, sampling, log-probabilities.

Each works on all rows of a batch at once and treats every row as if it were alone.
"""

from drl.runtime.processors.selector import Selection, TokenSelector

__all__ = ["Selection", "TokenSelector"]
