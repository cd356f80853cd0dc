"""What all graphs of a backend run with."""

from dataclasses import dataclass

from drl.runtime.arrays import BackendArray
from drl.runtime.backends.device import Device
from drl.runtime.backends.tensorrt.contexts import Activations, Context, LoadedEngine
from drl.runtime.backends.tensorrt.staging import ALIGNMENT
from drl.runtime.backends.tensorrt.store import EngineFolder


@dataclass(frozen=True, eq=False)
class Plan:
    """The device and what lies there for every engine.

    Attributes:
        device: Runs everything.
        folder: The engines' files and sizes.
        activations: What contexts work in.
    """

    device: Device
    folder: EngineFolder
    activations: Activations

    def aligned(self, array: BackendArray, purpose: str) -> tuple[int, BackendArray]:
        """The address of a tensor to bind, and what keeps it: a copy, if it begins in between."""
        address = self.device.address(array)
        if address % ALIGNMENT == 0:
            return address, array
        copy = self.device.empty(array.shape, array.dtype, purpose)
        self.device.copy(array, copy)
        return self.device.address(copy), copy


class Contexts:
    """The contexts of an engine that are shared by all that it runs: one for each profile."""

    def __init__(self, plan: Plan, engine: LoadedEngine) -> None:
        self._plan = plan
        self.engine = engine
        self._contexts: dict[int, Context] = {}

    def get(self, dims: dict[str, int]) -> Context:
        """The context of the profile for these sizes, made when it is first asked for.

        Raises:
            BackendError: No profile takes them; the message names the dimension and its limit.
        """
        return self.of(self.profile(dims))

    def profile(self, dims: dict[str, int]) -> int:
        """The profile for these sizes. Raises `BackendError` if there is none."""
        return self._plan.folder.profile_of(self.engine.name, dims)

    def of(self, profile: int) -> Context:
        """The context of a profile."""
        if profile not in self._contexts:
            self._contexts[profile] = self.engine.context(profile, self._plan.activations)
        return self._contexts[profile]

    def new(self, profile: int) -> Context:
        """A context that will run the same step over and over, and captures it if it can."""
        return self.engine.context(profile, self._plan.activations, captures=True)

    def clear(self) -> None:
        """Drop the contexts."""
        self._contexts.clear()
