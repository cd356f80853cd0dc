"""Tokens that are barred everywhere, or as the first token."""

from dataclasses import dataclass

from drl.runtime.processors.protocol import BarringProcessor, Lengths

_FOREVER = 1 << 62  # no row is as long


@dataclass(frozen=True)
class SuppressTokens(BarringProcessor):
    """Bars tokens at every position."""

    tokens: tuple[int, ...]

    @property
    def barred(self) -> tuple[int, ...]:
        """See `BarringProcessor`."""
        return self.tokens

    def span(self, prompt: Lengths) -> tuple[Lengths, Lengths]:
        """Always."""
        return 0 * prompt, 0 * prompt + _FOREVER


@dataclass(frozen=True)
class SuppressAtBegin(BarringProcessor):
    """Bars tokens as the first that is free: after the prompt, or after a forced first token.

    Attributes:
        tokens: The tokens to bar.
        after_forced: A first token is forced where the prompt is nothing but the start token.
    """

    tokens: tuple[int, ...]
    after_forced: bool

    @property
    def barred(self) -> tuple[int, ...]:
        """See `BarringProcessor`."""
        return self.tokens

    def span(self, prompt: Lengths) -> tuple[Lengths, Lengths]:
        """While the next token is the first that is free."""
        begin = prompt + (prompt <= 1) if self.after_forced else prompt
        return begin, begin + 1
