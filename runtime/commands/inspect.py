"""`drl-inspect`: what is in a bundle."""

import json
import re
from pathlib import Path

import click

from drl.runtime.bundle import MANIFEST_NAME, Bundle
from drl.runtime.commands.common import clean_errors, file_size, table
from drl.runtime.manifest import GraphInfo, Manifest, TensorInfo


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print bundle.json, checked.")
@click.option("--no-hash-check", is_flag=True, help="Do not read the files to compare hashes.")
@clean_errors
def main(bundle: Path, as_json: bool, no_hash_check: bool) -> None:
    """Check BUNDLE and show its model, paths, graphs, operators, files and parity."""
    loaded = Bundle.load(bundle, verify_hashes=not no_hash_check)
    if as_json:
        document = json.loads((bundle / MANIFEST_NAME).read_text(encoding="utf-8"))
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        click.echo(_report(loaded))


def _report(bundle: Bundle) -> str:
    manifest = bundle.manifest
    sections = [
        ("Bundle", _overview(bundle)),
        ("Model", _model(manifest)),
        ("Paths", _paths(manifest)),
        *((f"Graph {name}", _graph(graph)) for name, graph in manifest.graphs.items()),
        ("Files", _files(manifest)),
        ("Parity with PyTorch", _parity(manifest)),
    ]
    return "\n\n".join(
        f"{click.style(title, bold=True)}\n{_indent(body)}" for title, body in sections
    )


def _overview(bundle: Bundle) -> str:
    manifest = bundle.manifest
    versions = ", ".join(f"{name} {version}" for name, version in manifest.producer.items())
    limits = manifest.limits
    return table(
        [
            ("folder", str(bundle.folder)),
            ("format", f"{manifest.format_version}"),
            ("target", f"{manifest.target}, {manifest.precision}"),
            ("weights", f"{file_size(_weight_bytes(manifest))} of {manifest.precision}"),
            ("size", file_size(bundle.size)),
            ("made with", versions),
            ("vocabulary", f"{limits.vocab_size} tokens"),
            ("tokenizer", "yes" if bundle.tokenizer_file else "no: prompts are token ids"),
            ("longest source", f"{limits.max_source_length} tokens"),
            ("longest target", f"{limits.max_target_length} tokens"),
            ("cache per token", f"{_cache_per_token(manifest)} on the longest path"),
        ]
    )


def _weight_bytes(manifest: Manifest) -> int:
    """Bytes of the files that are neither graphs nor text."""
    graphs = {graph.file for graph in manifest.graphs.values()} | set(manifest.canonical.values())
    return sum(
        info.bytes
        for name, info in manifest.files.items()
        if name not in graphs and not name.endswith(".json")
    )


def _cache_per_token(manifest: Manifest) -> str:
    """What self-attention keys and values of one token of one sequence take."""
    layers = max(len(path.layers) for path in manifest.paths)
    return f"{file_size(layers * manifest.cache.position_bytes)} of {manifest.cache.dtype}"


def _model(manifest: Manifest) -> str:
    rows = [
        (name, json.dumps(value, ensure_ascii=False))
        for name, value in manifest.model.items()
        if name != "paths"
    ]
    return table(rows) if rows else "no configuration recorded"


def _paths(manifest: Manifest) -> str:
    rows = [("", "name", "cost", "decoder layers", "experts", "kept states")]
    for index, path in enumerate(manifest.paths):
        rows.append(
            (
                str(index),
                path.name,
                f"{path.cost:.2f}",
                " ".join(map(str, path.layers)),
                str(path.experts_per_token),
                f"{path.keep_ratio:.0%}",
            )
        )
    router = manifest.path_router
    chooser = "the dearest path within the budget"
    if router is not None:
        chooser = f"a {router.head} router"
        if router.head == "greedy":
            chooser += f" with threshold {router.threshold:g}"
    return f"{table(rows)}\nauto is chosen by {chooser}"


def _graph(graph: GraphInfo) -> str:
    operators = sorted(graph.operators.items(), key=lambda item: (-item[1], item[0]))
    # A no-break space holds a name and its count together while lines are wrapped.
    listed = ", ".join(f"{name}\xa0{count}" for name, count in operators)
    summary = f"{graph.nodes} nodes" + (f": {listed}" if listed else "")
    lines = [click.wrap_text(summary, width=96).replace("\xa0", " ")]
    for label, tensors in (("inputs", graph.inputs), ("outputs", graph.outputs)):
        lines.append(label)
        lines.append(_indent(table(_tensor_rows(tensors))) if tensors else "  none")
    return "\n".join(lines)


def _tensor_rows(tensors: tuple[TensorInfo, ...]) -> list[tuple[str, str, str]]:
    """A row per tensor; those that differ in their layer's number alone share one."""
    layers: dict[tuple[str, str, str], list[str]] = {}
    for tensor in tensors:
        match = re.fullmatch(r"(.+)\.(\d+)", tensor.name)
        name, number = match.groups() if match else (tensor.name, "")
        shape = "[" + ", ".join(_dimension(size, number) for size in tensor.shape) + "]"
        layers.setdefault((name, tensor.dtype, shape), []).append(number)
    return [
        (name if numbers == [""] else f"{name}.{{{','.join(numbers)}}}", dtype, shape)
        for (name, dtype, shape), numbers in layers.items()
    ]


def _dimension(size: int | str | None, layer: str) -> str:
    """A dimension; one of a layer's own, such as `C.2` of a layer that paths skip, as `C.i`."""
    if isinstance(size, str) and layer and size.endswith(f".{layer}"):
        return size.removesuffix(layer) + "i"
    return "?" if size is None else str(size)


def _files(manifest: Manifest) -> str:
    rows = [
        (name, file_size(info.bytes), info.sha256[:16]) for name, info in manifest.files.items()
    ]
    return table(rows, right=(1,))


def _parity(manifest: Manifest) -> str:
    if manifest.parity is None:
        return "not checked (exported with --no-verify)"
    rows = [
        (name, json.dumps(value, ensure_ascii=False)) for name, value in manifest.parity.items()
    ]
    return table(rows)


def _indent(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
