"""What the decoder works on: slots of a lane, and what a step makes of them."""

from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from drl.runtime.arrays import Int64
from drl.runtime.backends.protocol import StepOutputs
from drl.runtime.decoding.history import TokenHistory
from drl.runtime.decoding.sequence import Sequence
from drl.runtime.decoding.sequence_group import SequenceGroup


class Slot(NamedTuple):
    """A sequence, or a beam search, with the request that it belongs to."""

    group: SequenceGroup
    sequence: Sequence


@dataclass(frozen=True)
class Choice:
    """What to feed the decoder next.

    Attributes:
        tokens: `[B]` a token per row.
        copies: (from, to): rows that go on from another row of their slot.
        ended: Slots that are done.
    """

    tokens: Int64
    copies: list[tuple[int, int]] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)


class Selector(Protocol):
    """Chooses the next tokens of a changing set of slots."""

    def set_slots(self, slots: Items[Slot]) -> None:
        """Name the slots of the following steps, in their order."""

    def candidates(self, history: TokenHistory) -> int:
        """How many of each row's likeliest tokens the next choice needs; 0 for whole rows."""

    def choose(self, outputs: StepOutputs, history: TokenHistory) -> Choice | None:
        """Take the decoder's word on the next token of each row.

        Args:
            outputs: `[B, 1, V]` logits or, where `candidates` is above 0, at least so many of the
                likeliest tokens.
            history: The rows so far.

        Returns:
            The choice. None if it depends on tokens that are not among the candidates, which is
            rare: nothing has been chosen, and the step must be taken again with whole rows.
        """

    def release(self) -> None:
        """Give working memory back until the next step."""
