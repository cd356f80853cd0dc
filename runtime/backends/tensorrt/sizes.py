"""What sizes a bundle's engines take, all of them together."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from drl.runtime.backends.limits import BackendLimits, Limit
from drl.runtime.backends.tensorrt.manifest import ProfileInfo
from drl.runtime.backends.tensorrt.staging import ALIGNMENT
from drl.runtime.backends.tensorrt.store import EngineFolder, with_option
from drl.runtime.errors import BackendError
from drl.runtime.manifest import Manifest

# Dimensions of which a service needs the smallest size, and the option that says it.
_FROM_ONE = {"S": "--source", "T": "--new-tokens", "B": "--batch", "R": "--sources"}

# Sources of about the same length enter and leave a cache without it being laid out anew.
_KEPT_MULTIPLE = 8
_HALF = 2  # bytes of a key or a value
_FEWEST = 2  # tokens of a prefix that is not a step of one token


def kept_multiple(heads: int, head_dim: int) -> int:
    """What the kept states of a cache's sources, K, are rounded up to a multiple of.

    With such a K the keys and values of every source begin where TensorRT takes tensors, so the
    profiles' largest K is a multiple as well.

    Args:
        heads: Of keys and values, N.
        head_dim: Width of a head, h.
    """
    return math.lcm(_KEPT_MULTIPLE, position_multiple(heads, head_dim))


def position_multiple(heads: int, head_dim: int) -> int:
    """What positions must be a multiple of for keys and values of the next row to begin aligned.

    Args:
        heads: Of keys and values, N.
        head_dim: Width of a head, h.
    """
    return ALIGNMENT // math.gcd(ALIGNMENT, heads * head_dim * _HALF)


@dataclass(frozen=True)
class EngineSizes:
    """Sizes that every path's engines take.

    Attributes:
        rows: Rows of a step of one token, B.
        sources: Sources of such a step, R.
        source_length: Tokens of a source, S.
        capacity: Positions of the cache, C.
        command: Builds the engines anew, with the options that they were built with.
    """

    rows: int
    sources: int
    source_length: int
    capacity: int
    command: str

    @classmethod
    def of(cls, folder: EngineFolder, manifest: Manifest) -> "EngineSizes":
        """Read the sizes of the engines of all paths.

        Raises:
            BackendError: An engine is missing, or takes nothing as small as a service needs.
        """
        names = [path.name for path in manifest.paths]
        sources = ["encoder", *(f"bridge.{name}" for name in names)]
        decoders = [f"decoder.{name}" for name in names]
        for name in (*sources, *decoders):
            _check_smallest(folder, name)
        for name in decoders:
            _check_new_tokens(folder, name)
        steps = [
            profile
            for name in decoders
            for profile in folder.engine(name).profiles
            if profile.dims["T"][0] == 1
        ]
        encoding = [profile for name in sources for profile in folder.engine(name).profiles]
        sizes = cls(
            rows=_most(steps, "B"),
            sources=_most(steps, "R"),
            source_length=_most(encoding, "S"),
            capacity=folder.manifest.capacity,
            command=folder.command,
        )
        sizes._check_cache(manifest)
        return sizes

    @property
    def limits(self) -> BackendLimits:
        """What requests are held to."""
        return BackendLimits(
            rows=Limit(self.rows, f"build larger engines: `{self._with('--batch')}`"),
            source_length=Limit(
                self.source_length,
                f"shorten it, or build larger engines: `{self._with('--source')}`",
            ),
            target_length=Limit(
                self.capacity,
                f"shorten it, or build larger engines: `{self._with('--cache', 'POSITIONS')}`",
            ),
        )

    def bucket(self, slots: int, width: int) -> int:
        """The next power of two, as far as the engines go."""
        most = min(self.sources, self.rows // width)
        return max(slots, min(1 << (slots - 1).bit_length(), most))

    def _with(self, option: str, value: str = "MIN,OPT,MAX") -> str:
        return with_option(self.command, option, value)

    def _check_cache(self, manifest: Manifest) -> None:
        """Rows of a cache must begin where TensorRT takes tensors."""
        cache = manifest.cache
        step = position_multiple(cache.kv_heads, cache.head_dim)
        if self.capacity % step:
            raise BackendError(
                f"a cache of {self.capacity} positions is no multiple of {step}, which TensorRT "
                f"needs with {cache.kv_heads} heads of {cache.head_dim}; run "
                f"`{self._with('--cache', 'POSITIONS')}` with another number"
            )


def _check_smallest(folder: EngineFolder, name: str) -> None:
    """Any number of requests may come, of any length: engines must take one and one."""
    profiles = folder.engine(name).profiles
    for dim, option in _FROM_ONE.items():
        least = [profile.dims[dim][0] for profile in profiles if dim in profile.dims]
        if least and min(least) > 1:
            raise BackendError(
                f"the engine of {name} takes no {dim} below {min(least)}, and requests may come "
                f"one by one; run `{with_option(folder.command, option, '1,OPT,MAX')}`"
            )


def _check_new_tokens(folder: EngineFolder, name: str) -> None:
    """Prefixes have any number of tokens, and so has what is left of one that is cut."""
    spans = [profile.dims["T"] for profile in folder.engine(name).profiles]
    several = [least for least, _, most in spans if most > 1]
    if several and min(several) > _FEWEST:
        raise BackendError(
            f"the engine of {name} takes no T of {_FEWEST}, and prefixes may have so many tokens; "
            f"run `{with_option(folder.command, '--new-tokens', '1,OPT,MAX')}`"
        )


def _most(profiles: Iterable[ProfileInfo], dim: str) -> int:
    return min(profile.dims[dim][2] for profile in profiles)
