"""What every backend that can be compared gives: itself, and its graphs changed by passes."""

from abc import ABC, abstractmethod

from drl.export.verification.graph_backend import GraphBackend
from drl.export.verification.graph_runner import Passes
from drl.runtime.backends import Backend
from drl.runtime.bundle import Bundle


class Candidate(ABC):
    """A backend that a bundle can be compared on.

    Args:
        bundle: The bundle.

    Attributes:
        bundle: The bundle.
        precision: What the backend computes in.
    """

    name: str
    precision: str = "fp32"

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle

    @abstractmethod
    def check(self) -> None:
        """See whether it can be opened here.

        Raises:
            BackendError: It is not available; the message says what mends it.
            BundleError: The bundle lacks what it is made from.
            ExportError: The model does not fit its precision.
        """

    @abstractmethod
    def open(self) -> Backend:
        """Open it as it is used.

        Raises:
            BackendError: It does not load.
            ExportError: It cannot be made from the bundle.
        """

    @abstractmethod
    def open_with(self, passes: Passes) -> GraphBackend:
        """Open it over graphs with passes run over them. Raises what `open` does."""

    def close(self) -> None:  # noqa: B027 - most keep nothing
        """Give back what was made to open it."""
