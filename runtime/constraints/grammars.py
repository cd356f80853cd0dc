"""The constraint options as grammars in llguidance's JSON form.

Each allows one space at the beginning: tokens of SentencePiece write it before the first word, and
the clean-up of results trims it. None lets the library force the tokens of what it knows must come:
how a text is cut into tokens is the model's choice.
"""

import json
from typing import Any

_OPTIONS = '%llguidance {"no_forcing": true}\n'
_NAME = "constraint"
# What an indented or a spaced document has between its tokens once it is cleaned up.
_JSON_SPACE = r"[ \n]"


def lark_grammars(source: str, *others: dict[str, Any]) -> str:
    """A grammar in Lark's notation, and other named grammars that it may refer to."""
    return json.dumps({"grammars": [{"lark_grammar": _OPTIONS + source}, *others]})


def from_schema(schema: str) -> str:
    """The documents of a JSON schema, with at most one space or line break between tokens.

    Args:
        schema: JSON text. What it says under the key `x-guidance` about white space and separators
            goes before the default.

    Raises:
        ValueError: The schema is nested too deeply.
    """
    try:
        document = json.loads(schema)
        if isinstance(document, dict):
            document.setdefault("x-guidance", {"whitespace_pattern": _JSON_SPACE})
        return _after_space({"json_schema": document})
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def from_grammar(grammar: str) -> str:
    """The texts of a grammar in llguidance's variant of Lark's notation."""
    return _after_space({"lark_grammar": grammar})


def from_regex(escaped: str, clean: str = "") -> str:
    """The texts that match a regular expression as a whole, and another one if it is given.

    Args:
        escaped: The expression as it stands between the slashes of a Lark terminal.
        clean: The other one, in the same form.
    """
    both = f" & /{clean}/" if clean else ""
    return lark_grammars(f"start: TEXT\nTEXT: / ?/ BODY\nBODY: /{escaped}/{both}")


def _after_space(grammar: dict[str, Any]) -> str:
    return lark_grammars(f'start: " "? @{_NAME}', {"name": _NAME, **grammar})
