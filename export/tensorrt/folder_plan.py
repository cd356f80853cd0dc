"""What to do about the engines for one GPU: which to build, to keep and to remove, and why."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from drl.export.tensorrt.engine_folder import other_version, read_earlier, target_folder
from drl.export.tensorrt.options import BuildOptions
from drl.export.tensorrt.plan import Wanted
from drl.export.tensorrt.reasons import reason_to_build, reason_to_remove
from drl.runtime.backends.tensorrt.manifest import EngineManifest
from drl.runtime.bundle import Bundle


@dataclass(frozen=True)
class FolderPlan:
    """What to do for one GPU.

    Attributes:
        target: Its compute capability.
        folder: Where its engines belong.
        earlier: What lies there, if it can be read.
        reasons: Why to build each engine that must be, by the graph's name.
        removals: Why each engine must go that was not asked for.
    """

    target: str
    folder: Path
    earlier: EngineManifest | None
    reasons: Mapping[str, str]
    removals: Mapping[str, str]


def plan_folder(bundle: Bundle, options: BuildOptions, wanted: Wanted, target: str) -> FolderPlan:
    """Compare what lies in a bundle for a GPU with what was asked for."""
    flavour, here = wanted.flavour, wanted.library_version
    folder = target_folder(bundle, flavour, here, target)
    earlier = read_earlier(folder)
    selected = [name for name in wanted.graphs if _asked_for(name, options.paths)]
    reasons = {name: reason_to_build(wanted, name, earlier, folder) for name in selected}
    before = other_version(bundle, flavour, here, target)
    if earlier is None and before is not None:
        reasons = dict.fromkeys(selected, f"library {before} → {here}")
    if options.force:
        reasons = {name: reason or "--force" for name, reason in reasons.items()}
    removals = {}
    if earlier is not None:
        others = [name for name in earlier.engines if name not in selected]
        removals = {name: reason_to_remove(wanted, name, earlier, folder) for name in others}
    return FolderPlan(
        target,
        folder,
        earlier,
        {name: reason for name, reason in reasons.items() if reason},
        {name: reason for name, reason in removals.items() if reason},
    )


def _asked_for(graph: str, paths: Sequence[str]) -> bool:
    _, _, path = graph.partition(".")
    return not paths or not path or path in paths
