import dataclasses
import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE

from drl.export import ExportOptions, export
from drl.export.evaluation import Pair, check_pairs, count_right, read_pairs
from drl.export.quantization_report import Accuracy
from drl.export.tokenizers import FoundTokenizer
from drl.runtime.errors import ExportError

CHECKPOINT = Path(__file__).parents[2] / "examples" / "numbers"
PAIRS = [
    Pair("translate to Chinese: one hundred and five", "一百零五", "pairs, line 1"),
    Pair("what is 12 plus 30?", "42", "pairs, line 2"),
    Pair("repeat ab three times", " ababab\n", "pairs, line 3"),
    Pair("repeat ab three times", "abab", "pairs, line 4"),
]
pytestmark = pytest.mark.filterwarnings("ignore:.* many times slower:RuntimeWarning")


def write(path: Path, pairs: list[Pair]) -> Path:
    lines = [json.dumps({"source": pair.source, "target": pair.target}) for pair in pairs]
    path.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return path


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "byte order mark"])
def test_pairs_are_read_line_by_line(mark: str, tmp_path: Path) -> None:
    file = write(tmp_path / "pairs.jsonl", PAIRS)
    file.write_text(mark + file.read_text(encoding="utf-8"), encoding="utf-8")
    assert read_pairs(file) == [
        dataclasses.replace(pair, place=f"{file}, line {number}")
        for number, pair in enumerate(PAIRS, 1)
    ]


@pytest.mark.parametrize(
    "line", ["[", "[1]", '{"source": "a"}', '{"source": "a", "target": 3}', "7"]
)
def test_a_wrong_line_is_named(line: str, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"source": "a", "target": "b"}\n\n' + line + "\n")
    with pytest.raises(ExportError, match=r"pairs\.jsonl, line 3: not"):
        read_pairs(file)


def test_a_file_without_pairs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ExportError, match="holds no pairs"):
        read_pairs(tmp_path / "empty")
    with pytest.raises(ExportError, match="missing cannot be read: No such file or directory; "):
        read_pairs(tmp_path / "missing")
    with pytest.raises(ExportError, match="binary cannot be read: byte 0 is not UTF-8"):
        read_pairs(tmp_path / "binary")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (" ", "the source is empty"),
        ("seven " * 400, r"the source has \d+ tokens and the model reads \d+; shorten it"),
        ("\ud800", "the text is not valid Unicode"),
    ],
    ids=["empty", "long", "half a pair"],
)
def test_an_input_that_the_model_cannot_take_is_named_before_anything_is_made(
    source: str, reason: str, tmp_path: Path
) -> None:
    file = write(tmp_path / "pairs.jsonl", [*PAIRS, Pair(source, "x", "")])
    stages: list[str] = []
    options = ExportOptions(precision="int8", evaluate=file)
    with pytest.raises(ExportError, match=rf"pairs\.jsonl, line 5: {reason}"):
        export(CHECKPOINT, tmp_path / "bundle", options, stages.append)
    assert stages == ["load"]


def test_a_source_without_tokens_is_refused() -> None:
    bare = Tokenizer(BPE({"a": 0}, [])).to_str().encode()
    check_pairs([Pair("a", "x", "here")], FoundTokenizer(bare), 1)
    with pytest.raises(ExportError, match="here: the source has no tokens"):
        check_pairs([Pair("b", "x", "here")], FoundTokenizer(bare), 1)


def test_the_report_counts_what_both_bundles_answer_right(tmp_path: Path) -> None:
    options = ExportOptions(precision="int8", evaluate=write(tmp_path / "pairs.jsonl", PAIRS))
    report = export(CHECKPOINT, tmp_path / "bundle", options).quantization
    assert report is not None
    assert report.accuracy is not None
    assert report.accuracy == Accuracy(pairs=4, fp32=3, quantized=3)
    assert count_right(tmp_path / "bundle", PAIRS) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "pairs.jsonl"]
    stored = json.loads((tmp_path / "bundle" / "parity.json").read_text(encoding="utf-8"))
    assert stored["accuracy"] == {"pairs": 4, "fp32": 3, "quantized": 3}


def test_a_checkpoint_without_a_tokenizer_has_nothing_to_evaluate(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    options = ExportOptions(precision="int8", evaluate=write(tmp_path / "pairs.jsonl", PAIRS))
    stages: list[str] = []
    with pytest.raises(ExportError, match=r"there is no tokenizer .* leave --evaluate out"):
        export(tiny_checkpoint, tmp_path / "bundle", options, stages.append)
    assert stages == ["load"]
    assert not (tmp_path / "bundle").exists()
