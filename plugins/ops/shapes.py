"""Symbolic dimensions of an operator's arguments, unified with the shapes of a graph's values."""

from collections.abc import Mapping

import onnx_ir as ir

Dimension = int | ir.SymbolicDim


def is_expression(spec: str) -> bool:
    """Whether a dimension is worked out from others (`H*h`, `d+2+G`, `N/32`) or a number (`1`)."""
    return any(sign in spec for sign in "*+/") or spec.isdigit()


class Dimensions:
    """What is known of each symbol after reading the shapes of a node's inputs.

    A dimension of an argument is a symbol (`B`), a sum or product of symbols and numbers
    (`H*h`, `d+2+G`), of quotients too, which are rounded up (`N/32*32`), `1|B`: either 1
    (broadcast) or the symbol, or `4|8`: either number. Two different numbers for one symbol are a
    mistake; two different names are not, since they may be equal when the graph runs, and then the
    first name stays.
    """

    def __init__(self, known: Mapping[str, int]) -> None:
        self._bound: dict[str, Dimension] = dict(known)

    def bind(self, spec: str, actual: Dimension) -> bool:
        """Unify one dimension with the actual one; False if they cannot be equal."""
        *numbers, spec = spec.split("|")
        if str(actual) in numbers:
            return True
        expected = self.resolve(spec)
        if isinstance(expected, int) and isinstance(actual, int):
            return expected == actual
        unnamed = not isinstance(expected, int) and (expected is None or expected.value is None)
        if unnamed or isinstance(actual, int):
            self._bound[spec] = actual
        return True

    def resolve(self, spec: str) -> Dimension | None:
        """What the dimension is known to be: a number, a name, or None when nothing is known."""
        if not is_expression(spec):
            return self._bound.get(spec)
        total = 0
        for term in spec.split("+"):
            product = 1
            for factor in term.split("*"):
                name, _, divisor = factor.partition("/")
                value = int(name) if name.isdigit() else self._bound.get(name)
                if not isinstance(value, int):
                    return self._bound.get(spec)
                product *= -(-value // int(divisor or 1))
            total += product
        return total

    def describe(self, spec: str) -> str:
        """` with H*h = 512`, for messages; nothing for a plain number."""
        return "" if spec.replace("|", "").isdigit() else f" with {spec} = {self.resolve(spec)}"
