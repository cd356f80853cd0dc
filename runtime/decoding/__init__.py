"""From the decoder's logits to texts: greedy, sampled, or by beam search.

`SequenceGroup` is a request in progress, with a `Sequence` per text. `TokenSelector` and
`BeamSelector` choose the next tokens for all slots of a lane; `TokenHistory` is what their logits
processors read.
"""

from drl.runtime.decoding.beam_selector import BeamSelector
from drl.runtime.decoding.history import TokenHistory
from drl.runtime.decoding.sequence import Sequence
from drl.runtime.decoding.sequence_group import SequenceGroup
from drl.runtime.decoding.slot import Choice, Selector, Slot
from drl.runtime.decoding.token_selector import TokenSelector

__all__ = [
    "BeamSelector",
    "Choice",
    "Selector",
    "Sequence",
    "SequenceGroup",
    "Slot",
    "TokenHistory",
    "TokenSelector",
]
