"""The reference pages in docs/ say exactly what the code does, field by field."""

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import onnx_ir as ir
import pytest

from drl.export.model import ModelConfig, PathConfig, PathRouterConfig, parameter_shapes
from drl.plugins.ops import OPERATORS, Argument, Operator
from tests.documents import ROOT, code, tables
from tests.models import DENSE, TINY, tiny_config

BUNDLE_PAGE = ROOT / "docs" / "bundle.md"
CHECKPOINT_PAGE = ROOT / "docs" / "checkpoint.md"
OPERATORS_PAGE = ROOT / "docs" / "operators.md"
TYPE_NAMES = {int: "integer", float: "number", str: "string"}


def leaves(value: Any, path: str = "") -> Iterator[str]:
    """The paths of all leaves of a JSON document, written as docs/bundle.md writes them."""
    if isinstance(value, dict):
        for name, item in value.items():
            # Under these, keys are names that differ from bundle to bundle.
            open_keys = {
                "producer": "<tool>",
                "graphs": "<graph>",
                "canonical": "<graph>",
                "files": "<file>",
                "graphs.<graph>.operators": "<operator>",
            }
            key = open_keys.get(path, name)
            yield from leaves(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for item in value:
            yield from leaves(item, f"{path}[]")
    else:
        yield path


def documented_fields(heading: str) -> dict[str, str]:
    """Field to type of the table under a heading of docs/bundle.md, containers left out."""
    (table,) = [table for table in tables(BUNDLE_PAGE) if table.heading == heading]
    fields = {code(row[0]): row[1] for row in table.rows}
    return {
        name: kind
        for name, kind in fields.items()
        if not any(other.startswith((f"{name}.", f"{name}[]")) for other in fields)
    }


def manifest_of(bundle: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    return document


def test_every_field_of_a_manifest_is_documented_and_no_other(tiny_bundle: Path) -> None:
    document = manifest_of(tiny_bundle)
    document["model"] = None  # its fields are those of docs/checkpoint.md
    document["generation"] = None  # and these are those of GenerationConfig
    assert set(leaves(document)) == set(documented_fields("bundle.json"))


def test_every_field_of_the_parity_file_is_documented_and_no_other(tiny_bundle: Path) -> None:
    document = json.loads((tiny_bundle / "parity.json").read_text(encoding="utf-8"))
    assert set(leaves(document)) == set(documented_fields("parity.json"))


def test_every_field_of_the_parity_of_a_quantised_bundle_is_documented_and_no_other(
    quantized_bundle: Path,
) -> None:
    document = json.loads((quantized_bundle / "parity.json").read_text(encoding="utf-8"))
    assert document["accuracy"] is None
    document["accuracy"] = dict.fromkeys(("pairs", "fp32", "quantized"), 0)
    documented = list(documented_fields("Parity of a quantised bundle"))
    assert set(leaves(document)) == set(documented)
    summary = documented[: documented.index("weights_bytes_fp32") + 1]
    assert list(manifest_of(quantized_bundle)["parity"]) == summary


def test_the_documented_types_are_those_of_a_manifest(tiny_bundle: Path) -> None:
    document = manifest_of(tiny_bundle)
    kinds = {
        "string": str,
        "integer": int,
        "number": int | float,
        "boolean": bool,
        "object": dict,
        "list": list,
        "list of integers": list,
    }
    for field, kind in documented_fields("bundle.json").items():
        values: list[Any] = [document]
        for part in field.split("."):
            name = part.removesuffix("[]")
            values = [
                item
                for value in values
                for item in (value.values() if name.startswith("<") else [value[name]])
            ]
            if part.endswith("[]"):
                values = [item for value in values for item in value]
        assert values, field
        assert all(isinstance(value, kinds[kind]) for value in values), field


def test_the_documented_files_are_those_of_a_bundle(tiny_bundle: Path) -> None:
    (table,) = [t for t in tables(BUNDLE_PAGE) if t.heading == "The bundle format"]
    documented = {code(row[0]) for row in table.rows}
    found = {path.name for path in tiny_bundle.iterdir()}
    assert found == documented - {"tokenizer.json"}  # a bundle of random weights has none


def sizes(config: ModelConfig) -> dict[str, int]:
    """What the symbols of the pages stand for in a model."""
    router = config.path_router
    return {
        "V": config.vocab_size,
        "d": config.d_model,
        "H": config.num_heads,
        "N": config.kv_heads,
        "h": config.head_dim,
        "G": config.groups,
        "E": config.num_experts,
        "f": config.d_expert,
        "P": len(config.paths),
        "r": router.hidden if router else 0,
        "d_ff": config.d_ff,
        "d_shared": config.d_shared,
        "position_buckets": config.position_buckets,
        "position_offset": config.position_offset,
        "L": config.max_source_length,  # the test models read and write as many tokens
    }


def dimensions(cell: str) -> list[str]:
    inner = code(cell).strip("[]")
    return [dimension.strip() for dimension in inner.split(",")] if inner else []


@pytest.mark.parametrize("graph", ["encoder", "bridge", "decoder"])
@pytest.mark.parametrize(
    "fixture", ["tiny_bundle", "portable_bundle", "dense_bundle", "quantized_bundle"]
)
def test_graph_inputs_and_outputs_are_documented_in_order(
    request: pytest.FixtureRequest, fixture: str, graph: str
) -> None:
    document = manifest_of(request.getfixturevalue(fixture))
    config = ModelConfig.from_dict(document["model"])
    found = [table for table in tables(BUNDLE_PAGE) if table.heading == graph]
    for side, table in zip(("inputs", "outputs"), found, strict=True):
        documented = {code(row[0]): (row[1], dimensions(row[2]), row[3]) for row in table.rows}
        seen = []
        for tensor in document["graphs"][graph][side]:
            pattern = re.sub(r"\.\d+$", ".{i}", tensor["name"])
            dtype, shape, _ = documented[pattern]
            assert tensor["dtype"] == dtype
            assert len(tensor["shape"]) == len(shape)
            for symbol, actual in zip(shape, tensor["shape"], strict=True):
                known = sizes(config) | {"1": 1}
                assert not isinstance(actual, int) or symbol == "k" or actual == known[symbol]
            if pattern not in seen:
                seen.append(pattern)
        absent = [name for name in documented if name not in seen]
        assert all(
            "only with" in documented[n][2] or "for every" in documented[n][2] for n in absent
        )
        lowered = {name for name in documented if "`ort-cpu`" in documented[name][2]}
        if fixture != "dense_bundle":
            assert set(absent) == (lowered if fixture == "portable_bundle" else set())
        order = [name for name in documented if name in seen]
        assert [n for n in seen if not n.endswith("{i}")] == [
            n for n in order if not n.endswith("{i}")
        ]


@pytest.mark.parametrize(
    ("kind", "headings"),
    [
        (ModelConfig, ["Sizes and tokens", "Choices", "Routing"]),
        (PathConfig, ["paths[]"]),
        (PathRouterConfig, ["path_router"]),
    ],
)
def test_every_field_of_the_configuration_is_documented_with_its_default(
    kind: type, headings: list[str]
) -> None:
    rows = [row for t in tables(CHECKPOINT_PAGE) if t.heading in headings for row in t.rows]
    documented = {code(row[0]): row[2] for row in rows}
    assert len(rows) == len(documented)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    assert documented.keys() == fields.keys()
    for name, default in documented.items():
        if fields[name].default is dataclasses.MISSING:
            assert default == "required", name
        else:
            expected = fields[name].default
            plain = list(expected) if isinstance(expected, tuple) else expected
            assert json.loads(code(default)) == plain, name


CONFIGS = {
    "tiny": TINY,
    "dense": tiny_config(**DENSE),
    "attention head, untied": tiny_config(
        path_router=PathRouterConfig(head="attention"), tie_embeddings=False
    ),
    "t5": tiny_config(position="t5_bias", activation="gelu_glu"),
    "ungated, no shared expert": tiny_config(activation="relu", d_shared=0),
    "biases": tiny_config(
        shared_embedding=False, bias=True, router_bias=True, norm="layer", embedding_norm=True
    ),
    "learned positions": tiny_config(
        **DENSE, position="learned", position_offset=2, head_bias=True
    ),
    "a bias per layer": tiny_config(position="t5_bias", position_bias_per_layer=True),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_every_tensor_of_a_checkpoint_is_documented_with_its_shape(config: ModelConfig) -> None:
    for name, shape in parameter_shapes(config).items():
        documented = documented_tensors()[tensor_pattern(name)]
        assert [evaluate(spec, sizes(config)) for spec in documented] == list(shape), name


def test_every_documented_tensor_exists() -> None:
    names = {tensor_pattern(n) for config in CONFIGS.values() for n in parameter_shapes(config)}
    assert names == documented_tensors().keys()


def documented_tensors() -> dict[str, list[str]]:
    (table,) = [table for table in tables(CHECKPOINT_PAGE) if table.heading == "Tensors"]
    return {code(row[0]): dimensions(row[1]) for row in table.rows}


def tensor_pattern(name: str) -> str:
    return re.sub(r"\.\d+\.", ".{i}.", re.sub(r"^(encoder|decoder)\.", "{stack}.", name))


def evaluate(spec: str, symbols: dict[str, int]) -> int:
    """The value of a dimension such as `H*h` or `d+2+G`."""
    total = 0
    for term in spec.split("+"):
        product = 1
        for factor in term.split("*"):
            product *= int(factor) if factor.isdigit() else symbols[factor]
        total += product
    return total


def argument_rows(arguments: tuple[Argument, ...]) -> list[tuple[str, str, str]]:
    names = {ir.DataType.FLOAT: "float32", None: "FT"}
    return [
        (
            f"`{argument.name}`" + (" (optional)" if argument.optional else ""),
            names.get(argument.dtype) or str(argument.dtype).lower(),
            f"`[{', '.join(dim.replace('|', ' or ') for dim in argument.dims)}]`",
        )
        for argument in arguments
    ]


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_every_operator_is_documented_as_its_schema_says(operator: Operator) -> None:
    found = {
        table.columns[0]: table.rows
        for table in tables(OPERATORS_PAGE)
        if table.heading == operator.name
    }
    assert [row[:3] for row in found["input"]] == argument_rows(operator.inputs)
    assert [row[:3] for row in found["output"]] == argument_rows(operator.outputs)
    attributes = found.get("attribute", ())
    assert [(code(row[0]), row[1]) for row in attributes] == [
        (attribute.name, TYPE_NAMES[attribute.type]) for attribute in operator.attributes
    ]
    for row, attribute in zip(attributes, operator.attributes, strict=True):
        if attribute.choices:
            assert set(re.findall(r"`(\w+)`", row[2])) == set(attribute.choices)


def test_no_other_operator_is_documented() -> None:
    headings = {table.heading for table in tables(OPERATORS_PAGE) if table.columns[0] == "input"}
    assert headings == OPERATORS.keys()


@pytest.mark.parametrize(
    "page",
    sorted(ROOT.glob("*.md")) + sorted((ROOT / "docs").glob("*.md")),
    ids=lambda page: page.name,
)
def test_links_between_documents_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_make_targets_in_documents_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        named = set(re.findall(r"`make (\w+)`", page.read_text(encoding="utf-8")))
        assert named, page.name
        assert named <= targets, page.name


def test_the_picture_stands_alone() -> None:
    text = (ROOT / "docs" / "architecture.svg").read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    links = re.findall(r"(?:href|src|url)\s*[=(]\s*[\"']?([^\"')\s]+)", text)
    assert all(link.startswith("#") for link in links)
