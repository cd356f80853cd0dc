"""What an importer says: our configuration, and where each of our tensors comes from."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from drl.export.model import ModelConfig
from drl.export.tensor_files import Shape, TensorFiles

Make = Callable[[Sequence[Tensor]], Tensor]


@dataclass(frozen=True)
class Source:
    """One of our tensors in terms of foreign ones.

    Attributes:
        names: The foreign tensors it is made of.
        make: Makes it; also called with tensors of no data, to learn the shape.
    """

    names: tuple[str, ...]
    make: Make = field(repr=False)

    def shape(self, shapes: Mapping[str, Shape]) -> Shape:
        """Return the shape that our tensor would have; its foreign tensors must be in `shapes`."""
        return tuple(self.make([torch.empty(shapes[n], device="meta") for n in self.names]).shape)

    def read(self, files: TensorFiles) -> Tensor:
        """Make our tensor from a checkpoint's files."""
        return self.make([files.read(name) for name in self.names])


@dataclass(frozen=True)
class Import:
    """A foreign checkpoint as one of ours.

    Attributes:
        config: The model's configuration.
        tensors: Our names to their sources; a name is one of `parameter_shapes(config)`.
        ignored: Foreign tensors that carry nothing of their own, such as position tables that
            follow from the configuration.
        copies: Foreign tensors to the ones that they must equal, for those that are stored twice.
    """

    config: ModelConfig
    tensors: Mapping[str, Source]
    ignored: Collection[str] = ()
    copies: Mapping[str, str] = field(default_factory=dict)


Importer = Callable[[Mapping[str, Any], Collection[str]], Import]
"""Takes a parsed `config.json` and the names of the foreign tensors."""


def same(name: str) -> Source:
    """Take a tensor as it is."""
    return Source((name,), lambda tensors: tensors[0])


def flat(name: str) -> Source:
    """Take a tensor in one dimension, as for a bias stored as `[1, V]`."""
    return Source((name,), lambda tensors: tensors[0].flatten())


def rows(name: str, part: int, parts: int) -> Source:
    """Take one of several equal parts of a tensor's first dimension."""
    return Source((name,), lambda tensors: tensors[0].chunk(parts)[part])


def stacked(names: Sequence[str], *, transpose: bool) -> Source:
    """Stack one tensor per expert; with `transpose`, from [out, in] to [in, out] each."""

    def make(tensors: Sequence[Tensor]) -> Tensor:
        return torch.stack([tensor.T if transpose else tensor for tensor in tensors])

    return Source(tuple(names), make)


def first_of(present: Collection[str], *names: str) -> str:
    """Return the first name that is present, else the first: it will be reported as missing."""
    return next((name for name in names if name in present), names[0])
