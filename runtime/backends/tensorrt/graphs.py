"""CUDA graphs of decoder steps: what a step puts on the stream, launched again as a whole.

A graph holds the addresses and shapes that it was captured with, and it holds for as long as the
execution context that it was captured from is left alone. So every graph has a context of its own,
and is found again by all that it depends on. The same holds where contexts capture by themselves:
such a context captures anew whenever it is bound to something else.
"""

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable

from drl.runtime.backends.device import Device
from drl.runtime.errors import BackendError

# Most graphs at a time. Each keeps a context, which has memory of its own beside activations.
MOST_GRAPHS = 32
# A step is captured when it comes up so often; a capture costs some dozens of steps.
CAPTURED_AT = 3
_REMEMBERED = 512

Work = Callable[[], None]


class StepGraphs:
    """The graphs of all decoders of a backend, the least recently used ones dropped.

    Args:
        device: Captures.
        most: Most graphs at a time.
        captured_at: How often a step must have come up.
        by_context: Whether contexts capture by themselves, so that a step needs no more than a
            context of its own.
    """

    def __init__(
        self,
        device: Device,
        most: int = MOST_GRAPHS,
        captured_at: int = CAPTURED_AT,
        *,
        by_context: bool = False,
    ) -> None:
        self._device = device
        self._most = most
        self._captured_at = captured_at
        self._by_context = by_context
        self._seen: OrderedDict[Hashable, int] = OrderedDict()
        self._graphs: OrderedDict[Hashable, tuple[Work, Work]] = OrderedDict()
        self._refused: OrderedDict[Hashable, None] = OrderedDict()
        self._told = False

    def __len__(self) -> int:
        return len(self._graphs)

    def run(self, key: Hashable, plain: Work, prepare: Callable[[], Work]) -> None:
        """Put a step on the stream: as a graph, if it is one already.

        Args:
            key: Everything that the step depends on: path, shapes, addresses.
            plain: Puts it on the stream from the context that all steps share.
            prepare: Makes a context for this step alone, and returns what puts the step on the
                stream from it. Called at most once for as long as the graph is kept, and no more
                for a step of which no graph can be made: that one runs plainly.

        Raises:
            BackendError: The step cannot be run.
        """
        found = self._graphs.get(key)
        if found is not None:
            self._graphs.move_to_end(key)
            found[0]()
        elif key not in self._refused and self._count(key) >= self._captured_at:
            if not self._capture(key, prepare):
                plain()
        else:
            plain()

    def clear(self) -> None:
        """Drop all graphs, and the contexts that they were captured from."""
        self._graphs.clear()
        self._seen.clear()
        self._refused.clear()

    def _count(self, key: Hashable) -> int:
        count = self._seen.pop(key, 0) + 1
        self._seen[key] = count
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        return count

    def _capture(self, key: Hashable, prepare: Callable[[], Work]) -> bool:
        """Run a step and capture it; say whether the step has run.

        TensorRT does what new shapes ask for in the first run, which must not be captured. That run
        is the step itself: a capture puts nothing on the stream.
        """
        ran = False
        try:
            work = prepare()
            work()
            self._device.synchronize()  # what a run allocates is not to happen within a capture
            ran = True
            launch = work if self._by_context else self._device.capture(work).launch
        except BackendError as error:
            self._refuse(key, error)
            return ran
        self._seen.pop(key, None)
        self._graphs[key] = launch, work  # the work keeps the context
        if len(self._graphs) > self._most:
            self._graphs.popitem(last=False)
        return True

    def _refuse(self, key: Hashable, error: BackendError) -> None:
        """Go on without a graph of a step. Others may have one, for example in less memory."""
        self._seen.pop(key, None)
        self._refused[key] = None
        if len(self._refused) > _REMEMBERED:
            self._refused.popitem(last=False)
        if not self._told:
            self._told = True
            warnings.warn(
                f"some decoder steps run without CUDA graphs, which is slower: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
