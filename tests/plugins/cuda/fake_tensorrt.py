"""Stands for TensorRT's native library under its own Python code for plugins.

`tensorrt.plugin` is Python, and the package of TensorRT's bindings has it without the native
libraries. Here it runs over the little of the native module that it uses, and `build` calls a
plugin in the order in which TensorRT does.
"""

import enum
import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest


class DataType(enum.Enum):
    FLOAT, HALF, BF16, INT8, INT32, INT64, BOOL, UINT8, FP8, INT4 = range(10)


class DimensionOperation(enum.Enum):
    SUM, PROD, MAX, MIN, SUB, EQUAL, LESS, FLOOR_DIV, CEIL_DIV = range(9)


_OPERATIONS: dict[DimensionOperation, Callable[[int, int], int]] = {
    DimensionOperation.SUM: lambda a, b: a + b,
    DimensionOperation.PROD: lambda a, b: a * b,
    DimensionOperation.MAX: max,
    DimensionOperation.MIN: min,
    DimensionOperation.SUB: lambda a, b: a - b,
    DimensionOperation.EQUAL: lambda a, b: int(a == b),
    DimensionOperation.LESS: lambda a, b: int(a < b),
    DimensionOperation.FLOOR_DIV: lambda a, b: a // b,
    DimensionOperation.CEIL_DIV: lambda a, b: -(-a // b),
}


class IDimensionExpr:
    """An expression of dimensions that have names until the engine runs."""

    def __init__(self, value: int | str | tuple[Any, ...]) -> None:
        self.value = value

    def evaluate(self, sizes: dict[str, int]) -> int:
        if isinstance(self.value, int):
            return self.value
        if isinstance(self.value, str):
            return sizes[self.value]
        operation, left, right = self.value
        return _OPERATIONS[operation](left.evaluate(sizes), right.evaluate(sizes))

    def names(self) -> set[str]:
        if isinstance(self.value, tuple):
            return self.value[1].names() | self.value[2].names()  # type: ignore[no-any-return]
        return {self.value} if isinstance(self.value, str) else set()

    def is_constant(self) -> bool:
        return not self.names()

    def get_constant_value(self) -> int:
        return self.evaluate({})


class IExprBuilder:
    def constant(self, value: int) -> IDimensionExpr:
        return IDimensionExpr(value)

    def operation(
        self, operation: DimensionOperation, left: IDimensionExpr, right: IDimensionExpr
    ) -> IDimensionExpr:
        return IDimensionExpr((operation, left, right))


class _Plain:
    """A native class that Python code only derives from or sets attributes of."""

    def __init__(self, *_: Any) -> None:
        pass


class ISymExpr(_Plain):
    expr: IDimensionExpr


class PluginTensorDesc(_Plain):
    type: DataType
    format: "TensorFormat"
    dims: tuple[int, ...]
    scale = 1.0


class DynamicPluginTensorDesc(_Plain):
    desc: PluginTensorDesc


class TensorFormat(enum.Enum):
    LINEAR = 0


class Dims(list[int]):
    MAX_DIMS = 8


class PluginFieldType(enum.Enum):
    FLOAT16, FLOAT32, FLOAT64, INT8, INT16, INT32, CHAR, DIMS, UNKNOWN, BF16, INT64 = range(11)


@dataclass
class PluginField:
    name: str
    data: Any
    type: PluginFieldType


class _Logger:
    WARNING = "warning"

    def log(self, severity: str, message: str) -> None:
        del severity, message


class _Registry:
    def __init__(self) -> None:
        self._creators: dict[tuple[str, str, str], Any] = {}

    def register_creator(self, creator: Any, namespace: str) -> None:
        self._creators[creator.name, creator.plugin_version, namespace] = creator

    def get_creator(self, name: str, version: str, namespace: str) -> Any:
        return self._creators[name, version, namespace]


def _native() -> ModuleType:
    """The native module, as far as `tensorrt.plugin` uses it."""
    module = ModuleType("tensorrt")
    module.__path__ = []
    registry = _Registry()
    mine = (DataType, DimensionOperation, IDimensionExpr, IExprBuilder, ISymExpr, Dims)
    mine += (PluginTensorDesc, DynamicPluginTensorDesc, TensorFormat, PluginFieldType, PluginField)
    for kind in mine:
        setattr(module, kind.__name__, kind)
    bases = ("IPluginV3", "IPluginV3QuickCore", "IPluginV3QuickBuild", "IPluginV3QuickRuntime")
    for name in (*bases, "IPluginV3QuickAOTBuild", "IPluginCreatorV3Quick", "ITensor"):
        setattr(module, name, type(name, (_Plain,), {}))
    values: dict[str, Any] = {
        "Logger": _Logger,
        "DimsExprs": lambda count: [None] * count,
        "PluginFieldCollection": list,
        "PluginArgType": enum.Enum("PluginArgType", ["INT"]),
        "PluginArgDataType": enum.Enum("PluginArgDataType", ["INT8", "INT16", "INT32"]),
        "TensorRTPhase": enum.Enum("TensorRTPhase", ["BUILD", "RUNTIME"]),
        "QuickPluginCreationRequest": enum.Enum(
            "QuickPluginCreationRequest", ["PREFER_AOT", "PREFER_JIT", "STRICT_AOT", "STRICT_JIT"]
        ),
        "get_plugin_registry": lambda: registry,
        "float32": DataType.FLOAT,
        "float16": DataType.HALF,
        "bfloat16": DataType.BF16,
        "int8": DataType.INT8,
        "int32": DataType.INT32,
        "int64": DataType.INT64,
        "bool": DataType.BOOL,
        "uint8": DataType.UINT8,
        "__version__": "11.0",
    }
    for name, value in values.items():
        setattr(module, name, value)
    return module


def install(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Make `import tensorrt` give this library with the real `tensorrt.plugin`.

    Skips the test where the bindings, which have that, are not installed.
    """
    found = importlib.util.find_spec("tensorrt_bindings")
    if found is None or found.origin is None:
        pytest.skip("TensorRT's Python code is missing; pip install tensorrt-cu13-bindings")
    folder = Path(found.origin).parent / "plugin"
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorrt"]:
        monkeypatch.delitem(sys.modules, name)
    library = _native()
    monkeypatch.setitem(sys.modules, "tensorrt", library)
    spec = importlib.util.spec_from_file_location(
        "tensorrt.plugin", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    plugin = importlib.util.module_from_spec(spec)
    library.plugin = plugin  # type: ignore[attr-defined]
    before = set(sys.modules)
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", plugin)
    spec.loader.exec_module(plugin)
    for name in set(sys.modules) - before:
        if name.startswith("tensorrt."):
            monkeypatch.setitem(sys.modules, name, sys.modules[name])
    return library


@dataclass(frozen=True)
class Built:
    """What a plugin gave TensorRT for one tactic.

    Attributes:
        kernel: Name of the function.
        ptx: Its code.
        grid: Blocks along x and y, as expressions.
        block: Threads of a block.
        shared: Bytes of dynamic shared memory.
        sizes: Further int32 arguments, as expressions.
        types: Types of the outputs.
        shapes: Shapes of the outputs, as expressions.
    """

    kernel: str
    ptx: str
    grid: tuple[IDimensionExpr, IDimensionExpr]
    block: int
    shared: int
    sizes: tuple[IDimensionExpr, ...]
    types: tuple[DataType, ...]
    shapes: tuple[tuple[IDimensionExpr, ...], ...]


def build(
    library: Any,
    name: str,
    inputs: Sequence[tuple[DataType, Sequence[int | str]]],
    attributes: dict[str, Any],
) -> dict[int, Built]:
    """Call the plugin as TensorRT's builder does; what each of its tactics gave.

    Args:
        library: What `install` returned.
        name: The plugin's name in the namespace `drl`.
        inputs: Type and shape of every input; a text is a dimension known at run time.
        attributes: The node's attributes, which become fields.
    """
    refused = {dtype for dtype, _ in inputs} & {DataType.BOOL, DataType.UINT8}
    assert not refused, f"plugins take no {refused}"
    creator = library.get_plugin_registry().get_creator(name, "1", "drl")
    fields = [_field(field.name, attributes[field.name]) for field in creator.field_names]
    request = library.QuickPluginCreationRequest.PREFER_AOT
    plugin = creator.create_plugin(name, "drl", fields, library.TensorRTPhase.BUILD, request)
    types = plugin.get_output_data_types([t for t, _ in inputs], [len(s) for _, s in inputs])
    builder = IExprBuilder()
    given = [[IDimensionExpr(size) for size in shape] for _, shape in inputs]
    shapes = plugin.get_output_shapes(given, [], builder)
    tensors = [_tensor(dtype, shape) for dtype, shape in inputs]
    tensors += [_tensor(dtype, [-1] * len(s)) for dtype, s in zip(types, shapes, strict=True)]
    count = len(inputs)
    combinations = plugin.get_supported_format_combinations(tensors, count)
    assert [c.type for c in combinations] == [t.desc.type for t in tensors]
    assert all(c.format == TensorFormat.LINEAR for c in combinations)
    plugin.configure_plugin(tensors[:count], tensors[count:])
    results = {}
    for tactic in plugin.get_valid_tactics():
        clone = plugin.clone()
        clone.set_tactic(tactic)
        launch, setter = _Plain(), _Sizes()
        clone.get_launch_params(given, tensors, count, launch, setter, builder)
        plain = [t.desc for t in tensors]
        kernel, ptx = clone.get_kernel(plain[:count], plain[count:])
        results[tactic] = _result(kernel, ptx, launch, setter, types, shapes)
    return results


class _Sizes(dict[int, ISymExpr]):
    nbSymExprs = 0  # noqa: N815 - the library's name


def _result(kernel: str, ptx: bytes, launch: Any, setter: _Sizes, types: Any, shapes: Any) -> Built:
    assert len(setter) == setter.nbSymExprs
    ones = (launch.grid_z, launch.block_y, launch.block_z)
    assert [one.expr.get_constant_value() for one in ones] == [1, 1, 1]
    return Built(
        kernel,
        ptx.decode(),
        (launch.grid_x.expr, launch.grid_y.expr),
        launch.block_x.expr.get_constant_value(),
        launch.shared_mem.expr.get_constant_value(),
        tuple(setter[index].expr for index in range(len(setter))),
        tuple(types),
        tuple(tuple(shape) for shape in shapes),
    )


def _field(name: str, value: Any) -> PluginField:
    """A field as the parser makes it of a node's attribute: a string ends in a zero, as in C."""
    if isinstance(value, str):
        text = np.frombuffer(value.encode() + b"\0", np.int8)
        return PluginField(name, text, PluginFieldType.CHAR)
    return PluginField(name, np.array([value], np.int64), PluginFieldType.INT64)


def _tensor(dtype: DataType, shape: Sequence[int | str]) -> DynamicPluginTensorDesc:
    tensor = DynamicPluginTensorDesc()
    tensor.desc = PluginTensorDesc()
    tensor.desc.type, tensor.desc.format = dtype, TensorFormat.LINEAR
    tensor.desc.dims = tuple(size if isinstance(size, int) else -1 for size in shape)
    return tensor
