"""Generation that is held to a JSON schema, a regular expression or a grammar.

`ConstraintCompiler` turns these options of a request into a logits processor that bars the tokens
with which the text would leave the constraint. Needs the extra `constraints`.
"""

from drl.runtime.constraints.compiler import ConstraintCompiler
from drl.runtime.constraints.processor import ConstraintProcessor

__all__ = ["ConstraintCompiler", "ConstraintProcessor"]
