import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from drl.export import load_checkpoint, save_checkpoint
from drl.export.model import DualRouterModel, parameter_shapes
from drl.export.rename import expand_rename, read_rename
from drl.runtime.errors import CheckpointError
from tests.models import TINY

OURS = tuple(parameter_shapes(TINY))


def _renamed(model: DualRouterModel, folder: Path, name: Callable[[str], str]) -> None:
    """Save a checkpoint whose tensors have other names."""
    save_checkpoint(folder, model)
    tensors = {name(ours): value.contiguous() for ours, value in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")


def _theirs(ours: str) -> str:
    if ours == "embedding.weight":
        return "words"
    return "net." + ours.replace("layers.", "blocks.").replace("self_attention.", "attn.")


RENAME = {
    "embedding.weight": "words",
    **{ours: _theirs(ours) for ours in OURS if "layers." in ours},
    "group_router.*": "net.group_router.*",
    "path_router.*": "net.path_router.*",
    "*coder.norm.weight": "net.*coder.norm.weight",
}


@pytest.mark.parametrize("given", ["mapping", "file"])
def test_a_checkpoint_with_other_names_loads(
    given: str, tiny_model: DualRouterModel, tmp_path: Path
) -> None:
    _renamed(tiny_model, tmp_path, _theirs)
    rename = RENAME
    if given == "file":
        (tmp_path / "map.json").write_text(json.dumps(RENAME))
        rename = read_rename(tmp_path / "map.json")
    checkpoint = load_checkpoint(tmp_path, rename)
    for name, expected in tiny_model.state_dict().items():
        assert torch.equal(checkpoint.tensor(name), expected), name


def test_a_prefix_is_taken_off_by_one_pattern(tiny_model: DualRouterModel, tmp_path: Path) -> None:
    _renamed(tiny_model, tmp_path, lambda name: f"module.{name}")
    with pytest.raises(CheckpointError, match=r"missing: embedding\.weight"):
        load_checkpoint(tmp_path)
    checkpoint = load_checkpoint(tmp_path, {"*": "module.*"})
    assert torch.equal(checkpoint.tensor("embedding.weight"), tiny_model.embedding.weight)


@given(st.lists(st.sampled_from(OURS), unique=True), st.text("ab.*", max_size=4))
def test_a_pattern_keeps_the_text_that_it_stands_for(tensors: list[str], prefix: str) -> None:
    prefix = prefix.replace("*", "")
    theirs = [f"{prefix}{name}" for name in tensors]
    if tensors:
        expected = dict(zip(tensors, theirs, strict=True))
        assert expand_rename({"*": f"{prefix}*"}, tensors, theirs) == expected


def test_an_exact_name_goes_before_a_pattern() -> None:
    rename = {"a.*": "b.*", "a.x": "c"}
    assert expand_rename(rename, ["a.x", "a.y"], ["b.x", "b.y", "c"]) == {"a.x": "c", "a.y": "b.y"}


FAULTS: dict[str, tuple[dict[str, str], str]] = {
    "unknown own name": (
        {"encoder.norm.weigt": "words"},
        "the model has no tensor `encoder.norm.weigt` (nearest: encoder.norm.weight)",
    ),
    "pattern without a match": (
        {"encoder.blocks.*": "net.encoder.blocks.*"},
        "the model has no tensors like `encoder.blocks.*`",
    ),
    "unknown foreign name": (
        {"embedding.weight": "word"},
        "the checkpoint has no tensor `word` (nearest: words)",
    ),
    "unknown names by a pattern": (
        {"group_router.*": "router.*"},
        "the checkpoint has no tensor `router.prototypes` (nearest: net.group_router.prototypes)",
    ),
    "wildcards that differ": (
        {"*.layers.*": "net.*"},
        "`*.layers.*` and `net.*` differ in how many * they have",
    ),
    "two patterns": (
        {"encoder.*": "net.encoder.*", "*.norm.weight": "words*"},
        "`encoder.*` and `*.norm.weight` both rename encoder.norm.weight",
    ),
    "many at once": ({"decoder.*": "*"}, " more"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_mistake_is_named_in_one_line(
    fault: str, tiny_model: DualRouterModel, tmp_path: Path
) -> None:
    rename, message = FAULTS[fault]
    _renamed(tiny_model, tmp_path, _theirs)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path, rename)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


FILES = {
    "[": "is not valid JSON",
    "": "is not valid JSON",
    '["a"]': "holds a list, not an object of our names to theirs",
    '{"embedding.weight": 3}': "the name given for `embedding.weight` is no text",
}


@pytest.mark.parametrize("text", FILES)
def test_a_file_that_is_no_map_is_named_in_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    path.write_text(text)
    with pytest.raises(CheckpointError) as caught:
        read_rename(path)
    assert str(caught.value).startswith(f"{path}")
    assert FILES[text] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.json", tmp_path):
        with pytest.raises(CheckpointError, match="cannot be read"):
            read_rename(path)


def test_the_command_takes_a_map(tiny_model: DualRouterModel, tmp_path: Path) -> None:
    _renamed(tiny_model, tmp_path / "theirs", _theirs)
    (tmp_path / "map.json").write_text(json.dumps(RENAME))
    (tmp_path / "bad.json").write_text('{"embedding": "words"}')

    def run(name: str) -> subprocess.CompletedProcess[str]:
        code = "from drl.export.cli import main; main()"
        arguments = [tmp_path / "theirs", tmp_path / "bundle", "--rename", tmp_path / name]
        command = [sys.executable, "-c", code, *map(str, arguments), "--no-verify"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    bad = run("bad.json")
    assert bad.returncode == 1
    assert bad.stderr.splitlines()[-1].startswith("error: renaming tensors: the model has no")
    missing = run("nothing.json")
    assert missing.returncode == 1
    assert missing.stderr.startswith("error: ")
    assert not (tmp_path / "bundle").exists()
    assert run("map.json").returncode == 0
    assert (tmp_path / "bundle" / "bundle.json").exists()
