"""The contents of `bundle.json`, read into dataclasses with every field checked.

Within one format version fields may be added, so unknown ones are ignored; a change that an older
reader would get wrong raises `FORMAT_VERSION`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from drl.runtime.errors import BundleError, DrlError
from drl.runtime.fields import Document, Fields

FORMAT = "drl-bundle"
FORMAT_VERSION = 1
CACHE_DTYPES = {"float32": 4, "float16": 2, "int8": 1}
"""Types of keys and values, and their bytes."""
GRAPHS = ("encoder", "bridge", "decoder")
PRECISIONS = ("fp32", "int8", "int8-block", "int4", "int4+int8-head")
_QUANTISED = "drl.Quantized"

RouterHead = Literal["linear", "attention", "greedy"]
T = TypeVar("T")


@dataclass(frozen=True)
class TensorInfo:
    """One graph input or output; a dimension is a number or a name such as `"B"`."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]


@dataclass(frozen=True)
class GraphInfo:
    """One graph file: its contract, its node count, and its nodes per operator if recorded."""

    file: str
    nodes: int
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    operators: Mapping[str, int]


def expert_outputs(tensors: Iterable[TensorInfo], stack: str) -> dict[int, str]:
    """Sparse layer number to the name of the output with its expert ids.

    Args:
        tensors: A graph's outputs.
        stack: `encoder` or `decoder`.
    """
    prefix = f"{stack}_experts."
    named = (tensor.name for tensor in tensors if tensor.name.startswith(prefix))
    return {int(name.removeprefix(prefix)): name for name in named}


@dataclass(frozen=True)
class PathInfo:
    """A decoding path: which decoder layers run, with how many experts, over which states."""

    name: str
    layers: tuple[int, ...]
    experts_per_token: int
    keep_ratio: float
    cost: float


@dataclass(frozen=True)
class RouterInfo:
    """How path logits become a choice; `threshold` belongs to the `greedy` head."""

    head: RouterHead
    threshold: float


@dataclass(frozen=True)
class TokenIds:
    """The token ids with a meaning of their own."""

    pad: int
    eos: int
    start: int


@dataclass(frozen=True)
class Limits:
    """Vocabulary size, longest source, and the positions of the decoder's KV cache."""

    vocab_size: int
    max_source_length: int
    max_target_length: int


@dataclass(frozen=True)
class CacheInfo:
    """The shape of the KV cache: `[rows, kv_heads, capacity, row_width]` per decoder layer.

    Encoder states that the decoder attends to lie alike. int8 has `scale_bytes` behind the numbers
    of a head at one position.
    """

    decoder_layers: int
    kv_heads: int
    head_dim: int
    dtype: str
    scale_bytes: int = 0

    @property
    def row_width(self) -> int:
        """Elements of a head at one position."""
        return self.head_dim + self.scale_bytes

    @property
    def position_bytes(self) -> int:
        """Bytes that one layer's keys and values take at one position."""
        return 2 * self.kv_heads * self.row_width * CACHE_DTYPES[self.dtype]


@dataclass(frozen=True)
class FileInfo:
    """Size in bytes and SHA-256 (lower-case hexadecimal) of a bundle's file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Everything `bundle.json` says. `paths` is ordered by cost, cheapest first.

    `canonical` names the files of the graphs as they were before the target's passes; it is empty
    if the bundle does not hold them.
    """

    format_version: int
    producer: Mapping[str, Any]
    target: str
    precision: str
    model: Mapping[str, Any]
    tokens: TokenIds
    limits: Limits
    cache: CacheInfo
    paths: tuple[PathInfo, ...]
    path_router: RouterInfo | None
    generation: Mapping[str, Any]
    graphs: Mapping[str, GraphInfo]
    canonical: Mapping[str, str]
    files: Mapping[str, FileInfo]
    parity: Mapping[str, Any] | None

    @property
    def quantised(self) -> bool:
        """Whether graphs have operators that only the native kernels make fast."""
        names = (name for graph in self.graphs.values() for name in graph.operators)
        return any(name.startswith(_QUANTISED) for name in names)


REPAIR = "run `drl-export` again"
_DOCUMENT = Document("bundle.json", REPAIR)


def _wrong(place: str, label: str, value: object) -> DrlError:
    return _DOCUMENT.wrong(place, label, value)


def _either(choices: Iterable[str]) -> str:
    values = tuple(choices)
    return f"{', '.join(values[:-1])} or {values[-1]}"


def check_format(document: object) -> None:
    """Raise `BundleError` unless `document` is a bundle manifest this version can read."""
    fields = Fields(_DOCUMENT, document)
    if fields.items.get("format") != FORMAT:
        found = fields.items.get("format")
        raise BundleError(f"bundle.json is not a DRL bundle (format {found!r}, not {FORMAT!r})")
    version = fields.integer("format_version", 1)
    if version > FORMAT_VERSION:
        raise BundleError(
            f"the bundle has format {version} and this drl reads up to {FORMAT_VERSION}; "
            "upgrade with `pip install --upgrade drl`, or export it again with this version"
        )


def parse_manifest(document: object) -> Manifest:
    """Read a decoded `bundle.json`. Raises `BundleError` naming the first field that is wrong."""
    check_format(document)
    root = Fields(_DOCUMENT, document)
    cache = root.object("cache")
    manifest = Manifest(
        format_version=root.integer("format_version"),
        producer=root.object("producer").items,
        target=root.text("target"),
        precision=root.text("precision"),
        model=root.object("model").items,
        tokens=_integers(TokenIds, root.object("tokens"), ("pad", "eos", "start"), 0),
        limits=_integers(
            Limits,
            root.object("limits"),
            ("vocab_size", "max_source_length", "max_target_length"),
            1,
        ),
        cache=CacheInfo(
            decoder_layers=cache.integer("decoder_layers", 1),
            kv_heads=cache.integer("kv_heads", 1),
            head_dim=cache.integer("head_dim", 1),
            dtype=cache.text("dtype"),
            scale_bytes=cache.integer("scale_bytes") if "scale_bytes" in cache.items else 0,
        ),
        paths=tuple(_path(item, index) for index, item in enumerate(root.array("paths"))),
        path_router=_router(root),
        generation=root.object("generation").items if "generation" in root.items else {},
        graphs={name: _graph(root.object("graphs").object(name)) for name in GRAPHS},
        canonical=_canonical(root),
        files=_files(root.object("files")),
        parity=root.object("parity").items if root.items.get("parity") is not None else None,
    )
    _check_tokens(manifest)
    if manifest.precision not in PRECISIONS:
        raise _wrong("precision", _either(PRECISIONS), manifest.precision)
    if manifest.cache.dtype not in CACHE_DTYPES:
        raise _wrong("cache.dtype", _either(CACHE_DTYPES), manifest.cache.dtype)
    _check_paths(manifest)
    _check_graph_files(manifest)
    return manifest


def _integers(kind: type[T], fields: Fields, names: tuple[str, ...], minimum: int) -> T:
    return kind(**{name: fields.integer(name, minimum) for name in names})


def _path(value: object, index: int) -> PathInfo:
    fields = Fields(_DOCUMENT, value, f"paths[{index}]")
    layers = fields.array("layers")
    if not layers or any(isinstance(i, bool) or not isinstance(i, int) for i in layers):
        raise _wrong(f"paths[{index}].layers", "an array of decoder layer numbers", layers)
    keep_ratio = fields.share("keep_ratio")
    if keep_ratio == 0:
        raise _wrong(f"paths[{index}].keep_ratio", "above 0", keep_ratio)
    return PathInfo(
        name=fields.text("name"),
        layers=tuple(layers),
        experts_per_token=fields.integer("experts_per_token"),
        keep_ratio=keep_ratio,
        cost=fields.share("cost"),
    )


def _router(root: Fields) -> RouterInfo | None:
    if root.items.get("path_router") is None:
        return None
    fields = root.object("path_router")
    head = fields.text("head")
    if head not in ("linear", "attention", "greedy"):
        raise _wrong("path_router.head", "linear, attention or greedy", head)
    threshold = fields.share("threshold") if "threshold" in fields.items else 0.5
    return RouterInfo(head=head, threshold=threshold)  # type: ignore[arg-type]


def _graph(fields: Fields) -> GraphInfo:
    operators = fields.items.get("operators") or {}
    return GraphInfo(
        file=fields.text("file"),
        nodes=fields.integer("nodes"),
        inputs=_tensors(fields, "inputs"),
        outputs=_tensors(fields, "outputs"),
        operators=Fields(_DOCUMENT, operators, f"{fields.place}.operators").items,
    )


def _canonical(root: Fields) -> dict[str, str]:
    if not root.items.get("canonical"):
        return {}
    fields = root.object("canonical")
    return {name: fields.text(name) for name in GRAPHS}


def _tensors(fields: Fields, name: str) -> tuple[TensorInfo, ...]:
    tensors = []
    for index, item in enumerate(fields.array(name)):
        tensor = Fields(_DOCUMENT, item, f"{fields.place}.{name}[{index}]")
        shape = tuple(tensor.array("shape"))
        tensors.append(TensorInfo(tensor.text("name"), tensor.text("dtype"), shape))
    return tuple(tensors)


def _files(fields: Fields) -> dict[str, FileInfo]:
    files = {}
    for name in fields.items:
        entry = fields.object(name)
        files[name] = FileInfo(entry.integer("bytes"), entry.text("sha256"))
    return files


def _check_tokens(manifest: Manifest) -> None:
    vocab_size = manifest.limits.vocab_size
    for name, token in vars(manifest.tokens).items():
        if token >= vocab_size:
            raise _wrong(f"tokens.{name}", f"below limits.vocab_size, {vocab_size}", token)


def _check_paths(manifest: Manifest) -> None:
    """Paths are what the host indexes with: hold them to the graph before anything runs."""
    names = [path.name for path in manifest.paths]
    if not names:
        raise BundleError(f"bundle.json names no path; {REPAIR}")
    if len(set(names)) < len(names):
        raise BundleError(f"bundle.json has two paths of one name; {REPAIR}")
    for path in manifest.paths:
        if not all(0 <= layer < manifest.cache.decoder_layers for layer in path.layers):
            raise BundleError(
                f"bundle.json: path {path.name!r} names a decoder layer outside "
                f"0..{manifest.cache.decoder_layers - 1}; {REPAIR}"
            )
    costs = [path.cost for path in manifest.paths]
    if costs != sorted(costs):
        raise BundleError(f"bundle.json: paths must come cheapest first; {REPAIR}")


def _check_graph_files(manifest: Manifest) -> None:
    named = {f"graphs.{name}": graph.file for name, graph in manifest.graphs.items()}
    named |= {f"canonical.{name}": file for name, file in manifest.canonical.items()}
    for place, file in named.items():
        if file not in manifest.files:
            raise BundleError(
                f"bundle.json: {place} is in {file!r}, which `files` does not list; {REPAIR}"
            )
