"""The kernels as TensorRT plugins, with TensorRT's decorators for plugins in Python.

Each has an ahead-of-time implementation: TensorRT takes the kernel's PTX, its launch parameters as
expressions of dimensions, and the sizes that it gets as further arguments. An engine then needs
neither Python nor this package. Which tiling runs is a tactic, so TensorRT times them.
"""

import importlib
import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from drl.plugins.cuda.compile import compile_ptx
from drl.plugins.cuda.errors import CudaKernelError
from drl.plugins.cuda.kernels import (
    CombineKernel,
    ExpertRouteKernel,
    FloatType,
    InnerKernel,
    Kernel,
)
from drl.plugins.cuda.plugin_nodes import NAMESPACE, PluginForm
from drl.plugins.cuda.tiling import BLOCK, MAX_EXPERTS, WIDE, Tiling

# Tactics by TensorRT's numbers, which begin at 1.
_PRODUCT_TACTICS = {
    1: Tiling(8, 1),
    2: Tiling(4, 1),
    3: Tiling(2, 1),
    4: Tiling(8, 4),
    5: Tiling(4, 4),
    6: WIDE,
}
_ONE_TACTIC = {1: WIDE}


@dataclass(frozen=True)
class _Launch:
    """A kernel with its grid and its sizes, as numbers or expressions."""

    kernel: Kernel
    grid: tuple[Any, Any]
    sizes: tuple[Any, ...]


def register(library: ModuleType, forms: Iterable[PluginForm], architecture: int) -> None:
    """Register the plugins of these forms with TensorRT.

    A plugin is registered once in a process; the ones that are there already are passed over.

    Args:
        library: The module `tensorrt`.
        forms: What `use_plugins` found in the graph.
        architecture: Compute capability to compile for, without the point; the least one that the
            engine is to run on.

    Raises:
        CudaKernelError: This TensorRT takes no such plugins.
    """
    try:
        plugin = importlib.import_module(f"{library.__name__}.plugin")
    except ImportError as error:
        raise CudaKernelError(
            f"{library.__name__} takes no plugins written in Python; use TensorRT 11 or later, "
            "or build without plugins"
        ) from error
    if not hasattr(plugin, "aot_impl"):
        version = getattr(library, "__version__", "of this version")
        raise CudaKernelError(
            f"TensorRT {version} takes no plugins that are compiled ahead of time; use 11 or "
            "later, or build without plugins"
        )
    for form in forms:
        if not hasattr(getattr(plugin.op, NAMESPACE, None), form.name):
            _Plugin(library, plugin, form, architecture).register()


class _Plugin:
    """One plugin: the functions that TensorRT calls, with the signatures that it expects."""

    def __init__(
        self, library: ModuleType, plugin: ModuleType, form: PluginForm, architecture: int
    ) -> None:
        self._library, self._plugin, self._form = library, plugin, form
        self._architecture = architecture

    def register(self) -> None:
        """Hand the three functions to TensorRT."""
        plugin: Any = self._plugin
        name = f"{NAMESPACE}::{self._form.name}"
        # TensorRT reads these as annotations; they are made of its own classes.
        generic: Any = tuple
        described = generic[(plugin.TensorDesc,) * self._outputs]
        made = generic[str, str, plugin.KernelLaunchParams, plugin.SymExprs]
        tunes = list[plugin.AutoTuneCombination]
        plugin.register(name)(self._signed(self._describe, [], described))
        plugin.autotune(name)(self._signed(self._tune, ["outputs"], tunes))
        plugin.aot_impl(name)(self._signed(self._implement, ["outputs", "tactic"], made))

    def _signed(self, function: Callable[..., Any], more: Sequence[str], returns: Any) -> Any:
        """The function with the signature `(inputs…, attribute, more…)` that TensorRT reads."""
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        tensor = self._plugin.TensorDesc
        parameters = [inspect.Parameter(n, kind, annotation=tensor) for n in self._form.inputs]
        if self._form.attribute is not None:
            of_type = int if self._form.attribute == "k" else str
            parameters.append(inspect.Parameter(self._form.attribute, kind, annotation=of_type))
        parameters += [inspect.Parameter(name, kind) for name in more]
        signature = inspect.Signature(parameters, return_annotation=returns)

        def call(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind(*args, **kwargs).arguments
            # The parser hands over a string with the zero that ends it in C.
            return function(
                {n: v.rstrip("\0") if isinstance(v, str) else v for n, v in given.items()}
            )

        call.__signature__ = signature  # type: ignore[attr-defined]
        return call

    @property
    def _outputs(self) -> int:
        return 2 if self._form.operator == "ExpertRoute" else 1

    def _describe(self, given: dict[str, Any]) -> tuple[Any, ...]:
        """Shapes and types of the outputs."""
        made, library = self._plugin.from_shape_expr, self._library
        if self._form.operator == "ExpertRoute":
            hidden = given["hidden"].shape_expr
            shape = (hidden[0], hidden[1], given["k"])
            return made(shape, library.int32), made(shape, library.float32)
        if self._form.operator == "RoutedFFNInner":
            ids, up = given["expert_ids"].shape_expr, given["up"].shape_expr
            return (made((ids[0], ids[1], ids[2], up[2]), given["hidden"].dtype),)
        inner, down = given["inner"].shape_expr, given["down"].shape_expr
        return (made((inner[0], inner[1], down[2]), given["inner"].dtype),)

    def _tune(self, given: dict[str, Any]) -> list[Any]:
        """The types as they are, linear layouts, and every tiling as a tactic."""
        described = [given[name] for name in self._form.inputs] + list(given["outputs"])
        types = ", ".join(self._type_name(tensor.dtype) for tensor in described)
        return [self._plugin.AutoTuneCombination(types, "LINEAR", list(self._tactics(given)))]

    def _tactics(self, given: dict[str, Any]) -> dict[int, Tiling]:
        if self._form.operator == "ExpertRoute":
            return _ONE_TACTIC
        if self._form.operator == "RoutedFFNCombine" and not self._single(given):
            return {n: t for n, t in _PRODUCT_TACTICS.items() if t.columns <= 4 or t.wide}
        return _PRODUCT_TACTICS

    def _single(self, given: dict[str, Any]) -> bool:
        places = given["expert_ids"].shape_expr[2]
        return bool(places.is_constant and places.constant_value() == 1)

    def _implement(self, given: dict[str, Any]) -> tuple[str, str, Any, Any]:
        """The kernel, its PTX, how to launch it, and its sizes."""
        launch = self._launch(given)
        source = launch.kernel.source
        ptx = compile_ptx(source, self._architecture)
        x, y = launch.grid
        parameters = self._plugin.KernelLaunchParams(grid_x=x, grid_y=y, block_x=BLOCK)
        sizes = self._plugin.SymExprs.from_tuple(launch.sizes)
        return source.entry, ptx, parameters, sizes

    def _launch(self, given: dict[str, Any]) -> _Launch:
        shapes = {name: given[name].shape_expr for name in self._form.inputs}
        if self._form.operator == "ExpertRoute":
            hidden, weight = shapes["hidden"], shapes["weight"]
            route = ExpertRouteKernel(self._float(given["hidden"]), "bias" in given)
            groups = shapes["group_log_probs"][2]
            self._check_experts(weight[1])
            sizes = (hidden[2], weight[1], groups, given["k"])
            return _Launch(route, route.grid(hidden[0] * hidden[1]), sizes)
        tactics = self._tactics(given)
        tiling = tactics.get(given["tactic"], next(iter(tactics.values())))
        minimum = self._plugin.min
        ids = shapes["expert_ids"]
        tokens = ids[0] * ids[1]
        if self._form.operator == "RoutedFFNInner":
            up, dtype = shapes["up"], self._half(given["hidden"])
            self._check_experts(up[0])
            inner = InnerKernel(dtype, dtype, given["activation"], tiling, "up_bias" in given)
            grid = inner.grid(tokens * ids[2], up[0], up[2], minimum)
            return _Launch(inner, grid, (tokens, ids[2], up[0], up[1], up[2]))
        down, dtype = shapes["down"], self._half(given["inner"])
        self._check_experts(down[0])
        combine = CombineKernel(dtype, dtype, tiling, self._single(given), "down_bias" in given)
        grid = combine.grid(tokens, down[0], down[2], minimum)
        return _Launch(combine, grid, (tokens, ids[2], down[0], down[1], down[2]))

    def _check_experts(self, experts: Any) -> None:
        if not experts.is_constant or experts.constant_value() > MAX_EXPERTS:
            count = experts.constant_value() if experts.is_constant else "a dynamic number of"
            raise CudaKernelError(
                f"the plugin {self._form.name} takes at most {MAX_EXPERTS} experts, and the graph "
                f"has {count}; build without plugins"
            )

    def _half(self, tensor: Any) -> Any:
        dtype = self._float(tensor)
        if dtype == "fp32":
            raise CudaKernelError(
                f"the plugin {self._form.name} multiplies in fp16 or bf16, but the graph has fp32; "
                "lower it to one of these, or build without plugins"
            )
        return dtype

    def _float(self, tensor: Any) -> FloatType:
        types: dict[Any, FloatType] = {
            self._library.float32: "fp32",
            self._library.float16: "fp16",
            self._library.bfloat16: "bf16",
        }
        return types[tensor.dtype]

    def _type_name(self, dtype: Any) -> str:
        """The type as TensorRT's tuner names it."""
        library = self._library
        names = {
            library.float32: "FP32",
            library.float16: "FP16",
            library.bfloat16: "BF16",
            library.int32: "INT32",
        }
        return names[dtype]
