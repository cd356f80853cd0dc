"""Read dataclasses of a configuration from parsed JSON, noting all mistakes, not the first."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal


def read_fields(
    cls: type, values: Mapping[str, Any], where: str, mistakes: list[str]
) -> dict[str, Any]:
    """Read the fields of dataclass `cls` from `values`, appending what is wrong to `mistakes`."""
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    built: dict[str, Any] = {}
    for name, value in values.items():
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            hint = f" (did you mean `{near[0]}`?)" if near else ""
            mistakes.append(f"unknown field `{where}{name}`{hint}")
            continue
        built[name] = _convert(value, hints[name], where + name, mistakes)
    for name, field in fields.items():
        if name not in values and field.default is dataclasses.MISSING:
            mistakes.append(f"missing field `{where}{name}`")
    return built


def _convert(value: Any, hint: Any, where: str, mistakes: list[str]) -> Any:
    """Check one JSON value against a type hint; lists become tuples, objects dataclasses."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        hint = next(argument for argument in arguments if argument is not type(None))
        return _convert(value, hint, where, mistakes)
    if origin is tuple and isinstance(value, list | tuple):
        item = arguments[0]
        return tuple(_convert(v, item, f"{where}[{i}]", mistakes) for i, v in enumerate(value))
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, Mapping):
        before = len(mistakes)
        built = read_fields(hint, value, where + ".", mistakes)
        return hint(**built) if len(mistakes) == before else None
    if origin is Literal:
        if value not in arguments:
            mistakes.append(f"`{where}` is {value!r}, not one of {', '.join(arguments)}")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(hint, type) or not isinstance(value, hint) or _is_stray_bool(value, hint):
        wanted = {tuple: "list", int: "whole number", float: "number"}.get(origin or hint, hint)
        name = wanted if isinstance(wanted, str) else getattr(wanted, "__name__", str(wanted))
        mistakes.append(f"`{where}` is {value!r}, not a {name}")
    return value


def _is_stray_bool(value: Any, hint: type) -> bool:
    return isinstance(value, bool) and hint is not bool
