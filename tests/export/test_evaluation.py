import json
from pathlib import Path

import pytest

from drl.export import ExportOptions, export
from drl.export.evaluation import Pair, count_right, read_pairs
from drl.export.quantization_report import Accuracy
from drl.runtime.errors import ExportError

CHECKPOINT = Path(__file__).parents[2] / "examples" / "numbers"
PAIRS = [
    Pair("translate to Chinese: one hundred and five", "一百零五"),
    Pair("what is 12 plus 30?", "42"),
    Pair("repeat ab three times", " ababab\n"),
    Pair("repeat ab three times", "abab"),
]
pytestmark = pytest.mark.filterwarnings("ignore:.* many times slower:RuntimeWarning")


def write(path: Path, pairs: list[Pair]) -> Path:
    lines = [json.dumps({"source": pair.source, "target": pair.target}) for pair in pairs]
    path.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return path


def test_pairs_are_read_line_by_line(tmp_path: Path) -> None:
    assert read_pairs(write(tmp_path / "pairs.jsonl", PAIRS)) == PAIRS


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
    for name in ("missing", "binary"):
        with pytest.raises(ExportError, match="cannot be read"):
            read_pairs(tmp_path / name)


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
    with pytest.raises(ExportError, match="no tokenizer"):
        export(tiny_checkpoint, tmp_path / "bundle", options)
    assert not (tmp_path / "bundle").exists()
