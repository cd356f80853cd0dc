"""What every emitter works with: the graph under construction, module scopes and weights."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import onnxscript

from drl.export.graph.kv_cache import FP32_CACHE, CacheForm
from drl.export.model import ModelConfig, parameter_shapes
from drl.export.weights import Maker, WeightPlan, reshaped, stored_as_is, transposed

OPSET = 24
IR_VERSION = 11

FLOAT, INT32, INT64, BOOL, UINT8 = (
    ir.DataType.FLOAT,
    ir.DataType.INT32,
    ir.DataType.INT64,
    ir.DataType.BOOL,
    ir.DataType.UINT8,
)
Dims = Sequence[int | str | None]
BranchOutput = tuple[str, ir.DataType, Dims]
Trace = Callable[[], Sequence[ir.Value]]


@dataclass(frozen=True)
class Normed:
    """The RMS norm of `x` `[..., d]`, left to the matrices that read it."""

    x: ir.Value
    weight: ir.Value


States = ir.Value | Normed
"""What a matrix reads: `[..., d]`, with or without a norm that is still to be done."""

AddTo = Callable[[ir.Value | None], ir.Value]
"""Emits a module and adds its output to the value given, if there is one."""


@dataclass(frozen=True)
class HeadValues:
    """What the head makes of states `[B, T, d]`.

    Attributes:
        logits: `[B, T, V]`; in a graph that ranks, `[B, T, 0]` where candidates are asked for.
        normalisers: `[B, T]`, the logarithm of the sum of the logits' exponentials.
        top: In a graph that ranks, the c largest logits `[B, T, c]` and their ids, int32.
    """

    logits: ir.Value
    normalisers: ir.Value
    top: tuple[ir.Value, ir.Value] | None = None


class Emitter(ABC):
    """Builds one graph, mirroring the PyTorch modules.

    Scopes are entered under the modules' own names, so that a weight is asked for by its name
    within its module, and nodes carry the path of the module they came from. What a product with a
    weight becomes depends on the precision: there is a subclass for each kind.

    Attributes:
        config: The model's configuration.
        op: Adds a node to the graph or branch that is being built: `op.MatMul(a, b)`.
    """

    ranks: bool
    """Whether the head can tell the largest logits and leave out the others."""
    fuses: bool
    """Whether operators with native kernels do what stands around a product or an attention."""
    cache: CacheForm = FP32_CACHE
    """The form of keys and values that are inputs or outputs of a graph."""

    def __init__(self, name: str, config: ModelConfig, weights: WeightPlan) -> None:
        self.config = config
        self._weights = weights
        self._shapes = parameter_shapes(config)
        imports = {"": OPSET, "drl": 1}
        self.graph = ir.Graph([], [], nodes=[], opset_imports=imports, name=name)
        self.op = onnxscript.GraphBuilder(self.graph).op
        self._scope: list[str] = []

    @contextmanager
    def scope(self, *modules: str) -> Iterator[None]:
        """Enter the modules of these names, outermost first."""
        builder = self.op.builder
        for module in modules:
            self._scope.append(module)
            builder.push_module(module)
        yield
        for _ in modules:
            self._scope.pop()
            builder.pop_module()

    def input(self, name: str, dtype: ir.DataType, dims: Dims) -> ir.Value:
        """Add a graph input."""
        return self.op.builder.input(name, dtype, list(dims))

    def output(self, name: str, value: ir.Value, dims: Dims, dtype: ir.DataType = FLOAT) -> None:
        """Make `value` a graph output called `name`, with the type that the contract gives."""
        value.type, value.shape = ir.TensorType(dtype), ir.Shape(list(dims))
        self.op.builder.add_output(value, name)

    def has(self, name: str) -> bool:
        """Whether the module in scope has the parameter `name`."""
        return self.path(name) in self._shapes

    def weight(self, name: str) -> ir.Value:
        """Return the parameter `name` of the module in scope, as the checkpoint stores it."""
        return self.weight_of(self.path(name))

    def weight_of(self, path: str) -> ir.Value:
        """Return the parameter with this full name, whatever module is in scope."""
        return self.tensor(path, FLOAT, self._shapes[path], stored_as_is(path))

    def matrix(self, name: str) -> ir.Value:
        """Return the weight `name` of the module in scope, turned from [out, in] to [in, out]."""
        path = self.path(name)
        return self.tensor(path, FLOAT, self.shape(path)[::-1], transposed(path))

    def weight_as(self, name: str, shape: tuple[int, ...]) -> ir.Value:
        """Return the parameter `name` of the module in scope in another shape."""
        path = self.path(name)
        return self.tensor(path, FLOAT, shape, reshaped(path, shape))

    def tensor(
        self, path: str, dtype: ir.DataType, shape: tuple[int, ...], make: Maker
    ) -> ir.Value:
        """Return the tensor of the weights file with this full name, once per graph."""
        stored = self._weights.add(path, dtype, shape, make)
        known = self.graph.initializers.get(path)
        if known is not None:
            return known
        return self.op.builder.initializer(stored, path, qualify=False)

    @abstractmethod
    def linear(self, name: str, x: States, *, residual: ir.Value | None = None) -> ir.Value:
        """Emit the `nn.Linear` called `name`, and the sum with `residual`.

        Maps `[B, T, in]` to `[B, T, out]`.
        """

    @abstractmethod
    def projections(self, x: States) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Emit `q` `[B, T, H·h]`, `k` and `v` `[B, T, N·h]` of the self-attention in scope."""

    @abstractmethod
    def inner(self, x: States) -> ir.Value:
        """Emit the hidden layer of the `FeedForward` in scope, activated: `[B, T, f]`."""

    @abstractmethod
    def experts(
        self,
        x: ir.Value,
        route: tuple[ir.Value, ir.Value],
        residual: ir.Value,
        shared: AddTo | None,
    ) -> ir.Value:
        """Emit the `Experts` in scope, and the sum with the shared expert and the residual.

        Args:
            x: `[B, T, d]`.
            route: Expert ids int32 and gates fp32, both `[B, T, k]`.
            residual: `[B, T, d]`.
            shared: Emits the shared expert, if there is one.
        """

    @abstractmethod
    def embedding(self, table: str, tokens: ir.Value) -> ir.Value:
        """Emit the lookup of `tokens` int64 `[B, T]` in the embedding `table`: `[B, T, d]`."""

    @abstractmethod
    def head(self, states: States, candidates: ir.Value | None) -> HeadValues:
        """Emit the head over `states` `[B, T, d]`.

        Args:
            states: The decoder's output.
            candidates: How many of the largest logits to tell, int64 `[1]`, in a graph that ranks.
        """

    def branch(
        self,
        condition: ir.Value,
        then: Trace,
        otherwise: Trace,
        outputs: Sequence[BranchOutput],
        *,
        name: str,
    ) -> Sequence[ir.Value]:
        """Emit an `If` that runs `then` where `condition` holds, else `otherwise`.

        Args:
            condition: bool `[]`.
            then: Emits the nodes of its branch and returns one value per output.
            otherwise: The same for the other branch.
            outputs: Name, dtype and dimensions of every output.
            name: Name of the node.
        """
        branches = {
            "then_branch": self._subgraph(then, outputs, name, "on"),
            "else_branch": self._subgraph(otherwise, outputs, name, "off"),
        }
        values = self.op.If(condition, **branches, _outputs=len(outputs), _name=name)
        for value, (_, dtype, dims) in zip(values, outputs, strict=True):
            value.type, value.shape = ir.TensorType(dtype), ir.Shape(list(dims))
        return tuple(values)

    def _subgraph(
        self, trace: Trace, outputs: Sequence[BranchOutput], name: str, suffix: str
    ) -> ir.Graph:
        def run(op: onnxscript.OpBuilder) -> Sequence[ir.Value]:
            outer, self.op = self.op, op
            try:
                return trace()
            finally:
                self.op = outer

        declared = [ir.val(f"{name}.{label}.{suffix}", dtype) for label, dtype, _ in outputs]
        graph: Any = self.op.builder.subgraph(run, [], declared, name=f"{name}.{suffix}")
        return graph

    def model(self) -> ir.Model:
        """Return the finished model; of the builder's notes a node keeps its module's path."""
        for node in self.graph.all_nodes():
            namespace = node.metadata_props.get("namespace", "")
            node.metadata_props.clear()
            if namespace:
                node.metadata_props["namespace"] = namespace
        return ir.Model(self.graph, ir_version=IR_VERSION, producer_name="drl")

    def path(self, name: str) -> str:
        """Return the full name of `name` in the module in scope."""
        return ".".join((*self._scope, name))

    def shape(self, path: str) -> tuple[int, ...]:
        """Return the shape of the parameter with this full name, as the checkpoint stores it."""
        return self._shapes[path]
