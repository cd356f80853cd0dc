"""The eager model of an fp32 bundle, rebuilt from the weights that its canonical graphs read."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_ir as ir
import torch
from torch import Tensor, nn

from drl.export.checkpoint import Checkpoint
from drl.export.exporter import emit_graphs
from drl.export.generation_defaults import GenerationDefaults
from drl.export.model import DualRouterModel, ModelConfig, parameter_shapes
from drl.export.model.group_router import GroupChoice
from drl.export.weights import Maker, WeightPlan
from drl.runtime.bundle import Bundle
from drl.runtime.errors import BundleError, ConfigError
from drl.runtime.manifest import GRAPHS

_LEVEL_ONE = "group_router"
_MOST_INDEXED = 1 << 24  # whole numbers that fp32 tells apart
_MEND = "give --checkpoint FOLDER"

Tables = Mapping[str, GroupChoice]
"""Level-1 routing of every token of the vocabulary, by the embedding that it was made from."""


class TabledModel(DualRouterModel):
    """A model whose level-1 routing is looked up, as in a bundle, which has no prototypes.

    Args:
        config: The model's configuration.
        tables: `[V, G]` log-probabilities and allowed groups for each embedding.
    """

    def __init__(self, config: ModelConfig, tables: Tables) -> None:
        super().__init__(config)
        self._tables = tables

    def embed(
        self, tokens: Tensor, table: nn.Embedding | None = None
    ) -> tuple[Tensor, GroupChoice | None]:
        """See `DualRouterModel.embed`."""
        embedded, groups = super().embed(tokens, table)
        if self.group_router is None:
            return embedded, groups
        target = table is not None and table is self.decoder_embedding
        found = self._tables["decoder_embedding" if target else "embedding"]
        return embedded, GroupChoice(found.log_probs[tokens], found.allowed[tokens])


@torch.no_grad()
def model_of_bundle(bundle: Bundle) -> DualRouterModel:
    """Rebuild the eager model, in evaluation mode, that an fp32 bundle's graphs stand for.

    The plan of the weights file says how each of its tensors was made from the checkpoint. It is
    followed backwards: a tensor that holds a parameter's values in another order gives them back.
    What no graph reads stays 0. Level 1 of the routing is taken as the tables that it was folded
    to.

    Raises:
        BundleError: The bundle holds no canonical graphs, they lack weights that its configuration
            asks for, or its configuration is not one of this version.
    """
    config = configuration(bundle)
    stored = _stored_tensors(bundle)
    plan = WeightPlan()
    emit_graphs(config, plan, "fp32")
    planned = [(str(tensor.value.name), tensor) for tensor in plan.tensors()]
    if missing := [name for name, _ in planned if name not in stored]:
        raise BundleError(
            f"the canonical graphs of {bundle.folder} lack weights of their model: "
            f"{', '.join(missing)}; {_MEND}"
        )
    rebuilt = _Parameters(config)
    for name, tensor in planned:
        found, expected = stored[name], tensor.value
        if tuple(found.shape) != tuple(expected.shape) or found.dtype != expected.dtype:
            raise BundleError(
                f"tensor `{name}` of {bundle.folder} is {found.dtype} {list(found.shape)}, and its "
                f"model has {expected.dtype} {list(expected.shape)}; {_MEND}"
            )
        if not name.startswith(_LEVEL_ONE):
            rebuilt.take(tensor.make, torch.from_numpy(found.numpy().copy()))
    with torch.device("meta"):
        model = TabledModel(config, _tables(config, stored))
    model.load_state_dict(rebuilt.values, assign=True)
    return model.eval()


def configuration(bundle: Bundle) -> ModelConfig:
    """Read the configuration that a bundle was made with.

    Raises:
        BundleError: It is not one of this version.
    """
    try:
        return ModelConfig.from_dict(bundle.manifest.model)
    except ConfigError as error:
        raise BundleError(
            f"bundle.json: model is no configuration of this version ({error}); "
            "export the checkpoint again"
        ) from None


def _stored_tensors(bundle: Bundle) -> dict[str, ir.TensorProtocol]:
    """Return the initializers of all canonical graphs by name."""
    found: dict[str, ir.TensorProtocol] = {}
    for graph in GRAPHS:
        model = ir.load(bundle.canonical_file(graph))
        for name, value in model.graph.initializers.items():
            if value.const_value is not None:
                found.setdefault(name, value.const_value)
    return found


def _tables(config: ModelConfig, stored: Mapping[str, ir.TensorProtocol]) -> Tables:
    if not config.routes_tokens or config.groups == 1:
        return {}
    places = {"embedding": _LEVEL_ONE}
    if not config.shared_embedding:
        places["decoder_embedding"] = f"{_LEVEL_ONE}.decoder_embedding"
    tables = {}
    for embedding, place in places.items():
        names = (f"{place}.log_probs", f"{place}.allowed")
        if all(name in stored for name in names):  # a stack without sparse layers needs none
            parts = (torch.from_numpy(stored[name].numpy().copy()) for name in names)
            tables[embedding] = GroupChoice(*parts)
    return tables


@dataclass
class _Parameters:
    """The parameters of a configuration, filled from tensors made of them.

    Attributes:
        values: Every parameter, fp32, 0 where nothing is known.
    """

    config: ModelConfig
    values: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        """Make room for every parameter."""
        self.values = {n: torch.zeros(s) for n, s in parameter_shapes(self.config).items()}

    def take(self, make: Maker, stored: Tensor) -> None:
        """Put the values of `stored`, which `make` makes from a checkpoint, where they came from.

        Raises:
            ValueError: It is computed from parameters and not made of their values.
        """
        used: list[str] = []
        made = make(self._checkpoint(self.values, used))
        if not used:  # it depends on the configuration alone
            return
        (name,) = set(used)
        parameter = self.values[name]
        if made.untyped_storage().data_ptr() == parameter.untyped_storage().data_ptr():
            made.copy_(stored)
            return
        if parameter.numel() > _MOST_INDEXED:
            raise ValueError(f"`{name}` is too large to be found again in what was gathered of it")
        places = torch.arange(parameter.numel(), dtype=torch.float32).reshape(parameter.shape)
        order = make(self._checkpoint({name: places}, [])).long()
        parameter.view(-1)[order.flatten()] = stored.flatten()
        if not torch.equal(make(self._checkpoint(self.values, [])), stored):
            raise ValueError(f"`{name}` cannot be read back from what was made of it")

    def _checkpoint(self, values: Mapping[str, Tensor], used: list[str]) -> Checkpoint:
        """Return a checkpoint of these values, which notes the names that are read."""

        def read(name: str) -> Tensor:
            used.append(name)
            return values[name]

        shapes = {name: tuple(value.shape) for name, value in values.items()}
        return Checkpoint(self.config, shapes, None, GenerationDefaults({}), read)
