"""Why an engine must be built: what differs between the one that is there and the one asked for."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from drl.export.tensorrt.plan import Wanted
from drl.runtime.backends.tensorrt.manifest import EngineInfo, EngineManifest, ProfileInfo
from drl.runtime.backends.tensorrt.store import file_fault

_PLACES = ("min", "opt", "max")


def reason_to_build(wanted: Wanted, name: str, earlier: EngineManifest | None, folder: Path) -> str:
    """Say why the engine of a graph must be built, or nothing if it is up to date.

    Args:
        wanted: What was asked for.
        name: The graph's name.
        earlier: What lies in the folder already.
        folder: Holds it.
    """
    if earlier is None or name not in earlier.engines:
        return "new"
    profiles = _profiles(earlier.engines[name], wanted.graphs[name].profiles)
    return ", ".join([*_unfit(wanted, name, earlier, folder), *profiles])


def reason_to_remove(wanted: Wanted, name: str, earlier: EngineManifest, folder: Path) -> str:
    """Say why an engine that nobody asked for cannot stay, or nothing if it still fits."""
    if name not in wanted.graphs:
        return "path removed"
    return ", ".join(_unfit(wanted, name, earlier, folder))


def _unfit(wanted: Wanted, name: str, earlier: EngineManifest, folder: Path) -> Iterator[str]:
    yield from _graph(wanted, name, earlier)
    yield from _plugins(wanted, name, earlier)
    for field in dataclasses.fields(wanted.options):
        before, now = (getattr(of, field.name) for of in (earlier.options, wanted.options))
        if before != now:
            yield f"{field.name.replace('_', '-')} {_switch(before)} → {_switch(now)}"
    engine = earlier.engines[name]
    if fault := file_fault(folder / engine.file, engine):
        yield "engine file missing" if fault == "is missing" else "engine file damaged"


def _graph(wanted: Wanted, name: str, earlier: EngineManifest) -> Iterator[str]:
    """Say why a graph is another one. Only options that it feels are to blame."""
    if earlier.engines[name].graph_sha256 == wanted.graphs[name].sha256:
        return
    changes = []
    if earlier.precision != wanted.precision:
        changes.append(f"precision {earlier.precision} → {wanted.precision}")
    if name.startswith("decoder"):
        if earlier.capacity != wanted.capacity:
            changes.append(f"cache {earlier.capacity} → {wanted.capacity}")
        if earlier.candidates != wanted.candidates:
            changes.append(f"candidates {earlier.candidates} → {wanted.candidates}")
    if bool(earlier.plugins) != bool(wanted.plugins):
        changes.append(f"plugins {_switch(earlier.plugins)} → {_switch(wanted.plugins)}")
    yield from changes or ["graph changed"]


def _plugins(wanted: Wanted, name: str, earlier: EngineManifest) -> Iterator[str]:
    used = [form.name for form in wanted.graphs[name].plugins]
    same_graph = earlier.engines[name].graph_sha256 == wanted.graphs[name].sha256
    if same_graph and any(earlier.plugins.get(n) != wanted.plugins[n] for n in used):
        yield "plugins changed"


def _profiles(engine: EngineInfo, wanted: tuple[ProfileInfo, ...]) -> Iterator[str]:
    if engine.profiles == wanted:
        return
    changes: dict[str, None] = {}
    if [profile.name for profile in engine.profiles] == [profile.name for profile in wanted]:
        for before, now in zip(engine.profiles, wanted, strict=True):
            for dim in now.dims.keys() & before.dims.keys():
                if change := _change(before.dims[dim], now.dims[dim]):
                    changes[f"profile {dim} {change}"] = None
    yield from sorted(changes) or ["profiles changed"]


def _change(before: tuple[int, ...], now: tuple[int, ...]) -> str:
    """Tell one changed place by its name, and several as a whole."""
    changed = [i for i in range(len(_PLACES)) if before[i] != now[i]]
    if len(changed) == 1:
        (place,) = changed
        return f"{_PLACES[place]} {before[place]} → {now[place]}"
    return f"{_text(before)} → {_text(now)}" if changed else ""


def _text(sizes: tuple[int, ...]) -> str:
    return ",".join(map(str, sizes))


def _switch(value: object) -> str:
    return "on" if value else "off"
