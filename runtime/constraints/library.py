"""The library that decides which tokens may follow, imported when a request first needs it.

It is llguidance because (measured with 1.9.1, against xgrammar 0.2.8):
- it needs no other package and 8 MB; xgrammar needs PyTorch, transformers and Triton, over 1 GB;
- a schema of 20 fields compiles in 2 ms whatever the vocabulary, in 138 ms (32,000 tokens) and
  1,120 ms (250,000 tokens) with xgrammar; a mask takes 3 to 6 µs on average, there 12 to 18 µs.
"""

import importlib
from typing import Any

from drl.runtime.errors import BackendError

_INSTALL = 'install it with `pip install "drl[constraints]"`'


def import_llguidance() -> Any:
    """The `llguidance` module. Raises `BackendError` if it is missing or broken."""
    try:
        return importlib.import_module("llguidance")
    except ModuleNotFoundError as error:
        if error.name != "llguidance":
            raise BackendError(f"llguidance is incomplete ({error}); {_INSTALL}") from error
        raise BackendError(
            f"json_schema, regex and grammar need llguidance, which is not installed; {_INSTALL}"
        ) from None
    except ImportError as error:
        raise BackendError(f"llguidance does not load ({error}); {_INSTALL}") from error
