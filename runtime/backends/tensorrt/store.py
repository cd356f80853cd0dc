"""The engines that a bundle holds: which fit this machine, checked before any is deserialised.

Deserialising an engine of another library version, GPU or model fails late, and may end the
process. So everything that the manifest tells is compared first.
"""

import hashlib
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from drl.runtime.backends.tensorrt.library import (
    FIRST_PORTABLE,
    FLAVOURS,
    SHORT_NAMES,
    Flavour,
    builds_without_gpu,
    release,
    title,
)
from drl.runtime.backends.tensorrt.manifest import (
    ENGINES_FOLDER,
    EngineInfo,
    EngineManifest,
    bundle_digest,
    folder_name,
)
from drl.runtime.bundle import Bundle
from drl.runtime.errors import BackendError, BundleError

_FOLDER = re.compile(r"(tensorrt|rtx)-(.+)-sm(\d+)(\d)")
# What a dimension is called in messages, and the option of `drl-build` that bounds it.
_DIMENSIONS = {
    "B": ("batch", "--batch"),
    "R": ("sources", "--sources"),
    "S": ("source length", "--source"),
    "K": ("kept states", "--source"),
    "T": ("new tokens", "--new-tokens"),
}
# An option that says the same thing in another way, so it must go.
_RIVALS = {"--beams": "--sources", "--sources": "--beams"}


@dataclass(frozen=True)
class EngineFolder:
    """Engines that fit a bundle and a machine.

    Attributes:
        folder: Where they lie.
        manifest: What it says of them.
        command: Builds them anew, with the options that they were built with.
    """

    folder: Path
    manifest: EngineManifest
    command: str

    def engine(self, name: str) -> EngineInfo:
        """The engine of a graph, as `encoder` or `decoder.full`.

        Raises:
            BackendError: It was not built.
        """
        if name not in self.manifest.engines:
            _, _, path = name.partition(".")
            choice = f" --path {shlex.quote(path)}" if path else ""
            raise BackendError(
                f"{self.folder} holds no engine of {name}; run `{self.command}{choice}`"
            )
        return self.manifest.engines[name]

    def file(self, name: str) -> Path:
        """The file of a graph's engine. Raises `BackendError` if it was not built."""
        return self.folder / self.engine(name).file

    def read(self, name: str) -> bytes:
        """Read the engine of a graph, and see that it is what the manifest describes.

        Raises:
            BackendError: It was not built, or its file is damaged.
        """
        engine, path = self.engine(name), self.file(name)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise self._damaged(name, _unreadable(error)) from None
        if fault := _size_fault(len(content), engine):
            raise self._damaged(name, fault)
        if hashlib.sha256(content).hexdigest() != engine.sha256.lower():
            raise self._damaged(name, _OTHER_CONTENT)
        return content

    def _damaged(self, name: str, fault: str) -> BackendError:
        return BackendError(f"the engine of {name} in {self.folder} {fault}; run `{self.command}`")

    def profile_of(self, name: str, dims: Mapping[str, int]) -> int:
        """The number of the profile of a graph's engine that takes these sizes.

        Raises:
            BackendError: None does.
        """
        return profile_of(self.engine(name), dims, self.command)


@dataclass(frozen=True)
class _Found:
    """An engine folder by its name alone."""

    folder: Path
    flavour: Flavour
    version: str
    compute_capability: str


def find_engines(
    bundle: Bundle,
    flavour: Flavour | None,
    compute_capability: str,
    library_versions: Mapping[Flavour, str],
) -> EngineFolder:
    """Find the engines of a bundle for a GPU and the installed libraries.

    Manifest and sizes are checked; what is in the files is checked when they are read.

    Args:
        bundle: Whose engines.
        flavour: Of TensorRT; None takes the first of the installed ones that has engines.
        compute_capability: Of the GPU, as `8.9`.
        library_versions: Of the installed flavours.

    Raises:
        BackendError: There are none, they are for another GPU, library or bundle, or a file is
            missing or cut short. The message has the command that mends it.
        BundleError: `engines.json` of the folder for this machine is damaged or of a newer format.
    """
    wanted = [name for name in FLAVOURS if name in library_versions and flavour in (None, name)]
    if not wanted:
        missing = title(flavour) if flavour else "TensorRT"
        raise BackendError(f"{missing} is not installed; see `drl-doctor`")
    present = list(engine_folders(bundle))
    unreadable: list[str] = []
    for name in wanted:
        chosen = _choose(present, name, library_versions[name], compute_capability, unreadable)
        if chosen is not None:
            return _check(bundle, chosen)
    fault = _nothing_fits(bundle, present, wanted, library_versions, compute_capability)
    raise BackendError("; ".join([*unreadable, str(fault)]))


def engine_folders(bundle: Bundle) -> Iterator[_Found]:
    """Every engine folder of a bundle, by its name alone."""
    root = bundle.folder / ENGINES_FOLDER
    if not root.is_dir():
        return
    by_short_name = {short: flavour for flavour, short in SHORT_NAMES.items()}
    for folder in sorted(root.iterdir()):
        if (match := _FOLDER.fullmatch(folder.name)) and folder.is_dir():
            short, version, major, minor = match.groups()
            yield _Found(folder, by_short_name[short], version, f"{major}.{minor}")


def build_command(
    bundle: Path, flavour: Flavour, arguments: Sequence[str] = (), compute_capability: str = ""
) -> str:
    """The command that builds a bundle's engines.

    Args:
        bundle: Its folder.
        flavour: Of TensorRT.
        arguments: Further options, as a manifest has them.
        compute_capability: Of the GPU; none for that of the machine where the command runs.
    """
    words = ["drl-build", str(bundle), "--flavour", SHORT_NAMES[flavour]]
    if compute_capability:
        words += ["--compute-capability", compute_capability]
    return shlex.join([*words, *arguments])


def with_option(command: str, option: str, value: str) -> str:
    """A command of `build_command` with an option in the place of what it says of the same."""
    words = shlex.split(command)
    for name in (option, _RIVALS.get(option)):
        if name in words:
            place = words.index(name)
            del words[place : place + 2]
    return shlex.join([*words, option, value])


def profile_of(
    engine: EngineInfo, dims: Mapping[str, int], command: str = "drl-build BUNDLE"
) -> int:
    """The number of the first profile that takes these sizes, the narrowest in T before others.

    Args:
        engine: Of any graph.
        dims: Size of each named dimension, as `{"B": 8, "T": 1}`; names that a profile does not
            have are ignored.
        command: Named in the message; the option that mends it is added.

    Raises:
        BackendError: None does: the message names the dimension and its limit.
    """
    faults = []
    order = sorted(
        range(len(engine.profiles)), key=lambda i: engine.profiles[i].dims.get("T", (0, 0, 0))[2]
    )
    for number in order:
        limits = engine.profiles[number].dims
        wrong = [n for n, size in dims.items() if n in limits and not _within(size, limits[n])]
        if not wrong:
            return number
        faults.append((len(wrong), number, wrong))
    _, number, (name, *_) = min(faults)
    raise BackendError(
        _beyond(engine, name, dims[name], engine.profiles[number].dims[name], command)
    )


def _within(size: int, limits: tuple[int, int, int]) -> bool:
    return limits[0] <= size <= limits[2]


def _beyond(
    engine: EngineInfo, name: str, size: int, limits: tuple[int, int, int], command: str
) -> str:
    graph = engine.file.removesuffix(".engine")
    label, option = _DIMENSIONS.get(name, (name, ""))
    if name == "B" and not graph.startswith("decoder"):
        label, option = "sources", "--sources"  # these graphs have a row for each source
    least, usual, most = limits
    if size > most:
        fault = f"exceeds {most}, the most that the engine of {graph} takes"
        change = f"{least},{usual},{size}"
    else:
        fault = f"is below {least}, the least that the engine of {graph} takes"
        change = f"{size},{usual},{most}"
    if name == "K":
        change = "MIN,OPT,MAX"  # K follows from the source length
    mend = f"run `{with_option(command, option, change)}`" if option else "build it again"
    return f"{label} {name} = {size} {fault}; {mend}"


def _choose(
    present: list[_Found],
    flavour: Flavour,
    version: str,
    compute_capability: str,
    unreadable: list[str],
) -> _Found | None:
    """The folder made for exactly this machine, else one whose engines are made to move.

    What is wrong with manifests that cannot be read is added to `unreadable`.
    """
    exact = folder_name(flavour, version, compute_capability)
    for found in present:
        if found.folder.name == exact:
            return found
    for found in present:
        if found.flavour != flavour:
            continue
        try:
            if _moves(found, version, compute_capability):
                return found
        except BundleError as error:
            unreadable.append(f"{found.folder}: {error}")
    return None


def _moves(found: _Found, version: str, compute_capability: str) -> bool:
    options = EngineManifest.load(found.folder).options
    built, here = release(found.version), release(version)
    ampere = min(release(found.compute_capability), release(compute_capability)) >= FIRST_PORTABLE
    fits_version = built == here or (
        options.version_compatible and built[0] == here[0] and built <= here
    )
    same_gpu = found.compute_capability == compute_capability
    return fits_version and (same_gpu or (options.hardware_compatible and ampere))


def _check(bundle: Bundle, found: _Found) -> EngineFolder:
    manifest = EngineManifest.load(found.folder)
    target = found.compute_capability if builds_without_gpu(found.flavour) else ""
    repeat = build_command(bundle.folder, found.flavour, manifest.arguments, target)
    if manifest.folder_name != found.folder.name:
        raise BackendError(
            f"{found.folder} holds engines of {manifest.folder_name}, so it was renamed or mixed "
            f"up; run `{repeat}`"
        )
    if manifest.bundle != bundle_digest(bundle.manifest):
        raise BackendError(
            f"the engines in {found.folder} were built from another export of this bundle; "
            f"run `{repeat}`"
        )
    for name, engine in manifest.engines.items():
        if fault := file_fault(found.folder / engine.file, engine, verify_hash=False):
            raise BackendError(f"the engine of {name} in {found.folder} {fault}; run `{repeat}`")
    return EngineFolder(found.folder, manifest, repeat)


def file_fault(path: Path, engine: EngineInfo, verify_hash: bool = True) -> str | None:
    """What is wrong with an engine's file, or None."""
    try:
        if fault := _size_fault(path.stat().st_size, engine):
            return fault
        if verify_hash:
            with path.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            if digest != engine.sha256.lower():
                return _OTHER_CONTENT
    except OSError as error:
        return _unreadable(error)
    return None


_OTHER_CONTENT = "is damaged: its SHA-256 differs"


def _size_fault(size: int, engine: EngineInfo) -> str | None:
    if size == engine.bytes:
        return None
    return f"is damaged: it has {size} bytes instead of {engine.bytes}"


def _unreadable(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "is missing"
    return f"cannot be read ({error.strerror})"


def _nothing_fits(
    bundle: Bundle,
    present: list[_Found],
    wanted: list[Flavour],
    versions: Mapping[Flavour, str],
    compute_capability: str,
) -> BackendError:
    """Say how the nearest engines differ from what this machine needs."""
    flavour = wanted[0]
    command = build_command(bundle.folder, flavour)
    near = [found for found in present if found.flavour in wanted]
    for found in near:
        if found.compute_capability == compute_capability:
            name = title(found.flavour)
            return BackendError(
                f"the engines of {bundle.folder} were built with {name} {found.version}, and "
                f"{versions[found.flavour]} is installed; "
                f"run `{build_command(bundle.folder, found.flavour, _arguments(found))}`"
            )
    if near:
        others = ", ".join(sorted({found.compute_capability for found in near}, key=release))
        return BackendError(
            f"the engines of {bundle.folder} are for compute capability {others}, and this GPU "
            f"has {compute_capability}; "
            f"run `{build_command(bundle.folder, near[0].flavour, _arguments(near[0]))}`"
        )
    if present:
        others = title(present[0].flavour)
        names = " or ".join(title(name) for name in wanted)
        return BackendError(
            f"the engines of {bundle.folder} are for {others}, and not for {names}; run `{command}`"
        )
    return BackendError(f"{bundle.folder} has no TensorRT engines; run `{command}`")


def _arguments(found: _Found) -> tuple[str, ...]:
    """What the engines of a folder were built with, as far as it tells."""
    try:
        return EngineManifest.load(found.folder).arguments
    except BundleError:
        return ()
