"""Why a constraint cannot be met, in one line."""

import numpy as np

from drl.runtime.constraints.progress import Progress, too_complex
from drl.runtime.errors import RequestError

_SHOWN_TEXT = 40
_SHOWN_BYTES = 5


def impossible(progress: Progress, text: str, barred: bool = False) -> RequestError:
    """The error for a text that can neither go on nor end.

    Args:
        progress: The text within the constraint.
        text: The text.
        barred: Whether the constraint allows tokens that all have the score -inf.
    """
    option = progress.constraint.option
    waits = progress.matcher.next_bytes()  # before `error`, which it sets
    if progress.matcher.error:
        return too_complex(option, progress.matcher.error)
    failed = f"{option} cannot be met {_place(text)}: "
    if barred:
        return RequestError(
            f"{failed}other options or processors bar every token that it allows; change them, "
            "such as min_new_tokens or suppress_tokens"
        )
    if np.any(progress.untidy):
        return RequestError(
            f"{failed}only white space or characters can follow that the clean-up of results "
            f"changes or removes; change the {option}"
        )
    if waits:
        return RequestError(
            f"{failed}it needs {_bytes(waits)}, and no token of this model's vocabulary writes "
            f"that; change the {option}, or use a model that can write it"
        )
    return RequestError(f"{failed}it allows no text; change the {option}")


def _place(text: str) -> str:
    text = text.lstrip(" ")
    if not text:
        return "at the beginning"
    shown = text if len(text) <= _SHOWN_TEXT else "..." + text[3 - _SHOWN_TEXT :]
    return f"after {shown!r}"


def _bytes(values: bytes) -> str:
    """The first of the bytes that are waited for, as characters where they are some."""
    # White space may come in many places and is seldom what is missing.
    order = sorted(values, key=lambda value: value <= 0x20)
    shown = [repr(chr(value)) if value < 0x80 else f"the byte 0x{value:02X}" for value in order]
    more = len(shown) - _SHOWN_BYTES
    if more > 0:
        return f"{', '.join(shown[:_SHOWN_BYTES])} or one of {more} other bytes"
    return " or ".join(filter(None, (", ".join(shown[:-1]), shown[-1])))
