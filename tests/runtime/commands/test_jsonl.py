"""Files of requests to files of results, through `drl-generate --input`."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from drl.runtime import Engine
from drl.runtime.commands.jsonl import Defaults, Job
from tests.runtime.commands.running import error_of, start_generate

Run = Callable[..., Result]

GOOD = [
    {"prompt": "hello", "id": {"any": 1}},
    {"prompt": [5, 6, 7], "path": "full", "max_new_tokens": 3, "min_new_tokens": 3},
    {"prompt": "bye", "temperature": 1.0, "seed": 4, "logprobs": True, "path": 0},
    {"prompt": "中国", "budget": 0.0},
]


def write_lines(path: Path, lines: list[object]) -> Path:
    content = [
        line if isinstance(line, bytes) else json.dumps(line, ensure_ascii=False).encode()
        for line in lines
    ]
    path.write_bytes(b"\n".join(content) + b"\n")
    return path


def test_a_file_of_requests_becomes_a_file_of_results(run: Run, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [GOOD[0], b"", *GOOD[1:], b"  "])
    target = tmp_path / "out.jsonl"
    result = run("--input", str(source), "--output", str(target))
    assert result.exit_code == 0, result.output
    assert result.output == ""
    records = [json.loads(line) for line in target.read_text().splitlines()]
    assert [record["prompt"] for record in records] == [line["prompt"] for line in GOOD]
    assert records[0]["id"] == {"any": 1}
    assert len(records[1]["tokens"]) == 3
    assert records[1]["path"] == "full"
    assert "logprobs" in records[2]
    assert "logprobs" not in records[0]
    assert records[2]["path"] == records[3]["path"] == "fast"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]
    assert target.stat().st_mode & 0o777 == source.stat().st_mode & 0o777
    printed = run("--input", str(source)).stdout
    drop = {"milliseconds"}
    assert [
        {key: value for key, value in json.loads(line).items() if key not in drop}
        for line in printed.splitlines()
    ] == [{key: value for key, value in record.items() if key not in drop} for record in records]


def test_a_line_may_set_every_option_for_itself(run: Run, tmp_path: Path) -> None:
    lines: list[object] = [
        {"prompt": "hello", "num_beams": 3, "num_return_sequences": 2, "top_logprobs": 1},
        {"prompt": "hello", "prefix": "ab", "max_length": 6},
        {"prompt": "hello", "prefix": [38, 39], "do_sample": True, "num_return_sequences": 3},
        {"prompt": "hello", "prefix": None},
        {"prompt": "hello", "forced_decoder_ids": [[1, 38], [2, 39]], "bad_words_ids": [[40]]},
        {"prompt": "hello", "prefix": 3},
    ]
    source = write_lines(tmp_path / "in.jsonl", lines)
    result = run("--input", str(source), "--max-new-tokens", "4", "--prefix", "x")
    beams, text, ids, nothing, forced, wrong = map(json.loads, result.stdout.splitlines())
    assert len(beams["alternatives"]) == 1
    assert len(beams["top_logprobs"][0]) == 1
    assert beams["score"] >= beams["alternatives"][0]["score"]
    assert text["text"].startswith("ab")
    assert len(text["tokens"]) <= 5
    assert ids["tokens"][:2] == [38, 39]
    assert ids["prefix_tokens"] == 2
    assert len(ids["alternatives"]) == 2
    assert "prefix_tokens" not in nothing
    assert forced["prefix_tokens"] == 1
    assert forced["tokens"][1] == 39
    assert "the prefix of the prompt must be" in wrong["error"]


def test_order_is_kept_whatever_ends_first(run: Run, tmp_path: Path) -> None:
    lines: list[object] = [
        {"prompt": [5, 6, index + 2], "max_new_tokens": 1 + (index * 31) % 40, "min_new_tokens": 1}
        for index in range(60)
    ]
    source = write_lines(tmp_path / "in.jsonl", lines)
    records = run("--input", str(source), "--batch-size", "5").stdout.splitlines()
    assert [json.loads(record)["prompt"][2] for record in records] == list(range(2, 62))


def test_wrong_lines_are_named_and_the_rest_is_done(run: Run, tmp_path: Path) -> None:
    wrong: dict[int, tuple[object, str]] = {
        2: (b"not json", "the line is not JSON"),
        3: ([1], 'the line must be an object with a "prompt"'),
        4: ({"text": "x"}, 'with a "prompt"'),
        5: ({"prompt": "x", "max_tokens": 3}, "did you mean 'max_new_tokens'?"),
        6: ({"prompt": "x", "path": "nope"}, "there is no path 'nope'"),
        7: ({"prompt": [5, 10**6]}, "token id 1000000"),
        8: ({"prompt": 5}, "must be a string or a list of token ids, not int"),
        9: (b'{"prompt": "\xff"}', "not UTF-8 at byte 13"),
        10: ({"prompt": "x", "budget": "high"}, "budget must be a number"),
        11: ({"prompt": ""}, "is empty"),
        12: (b'{"prompt": "\\ud83d"}', "not valid Unicode"),
        13: (b"[" * 10_000, "the line is not JSON"),
        14: ({"prompt": None}, "not NoneType"),
        15: ({"prompt": "x", "temperature": 1, "top_k": 2**63}, "top_k must be at most"),
        16: ({"prompt": "x", "budget": 10**400}, "budget must be a number from 0 to 1"),
        17: ({"prompt": "x", "temperature": 10**400}, "temperature must be a number"),
        18: ({"prompt": "x", "repetition_penalty": 1e300}, "repetition_penalty must be"),
    }
    lines = [{"prompt": "first"}, *(line for line, _ in wrong.values()), {"prompt": "last"}]
    source, target = write_lines(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    result = run("--input", str(source), "--output", str(target))
    assert result.exit_code == 1
    assert result.stdout == ""
    *errors, summary = result.stderr.splitlines()
    assert summary == "17 of 19 lines failed"
    for line, (number, (_, message)) in zip(errors, wrong.items(), strict=True):
        assert line.startswith(f"error: {source}, line {number}: ")
        assert message in line
    records = [json.loads(line) for line in target.read_text().splitlines()]
    assert len(records) == 19
    assert records[0]["prompt"] == "first"
    assert records[18]["prompt"] == "last"
    for number, (_, message) in wrong.items():
        assert records[number - 1]["line"] == number
        assert message in records[number - 1]["error"]


def test_an_empty_file_gives_an_empty_file(run: Run, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [])
    assert run("--input", str(source), "--output", str(tmp_path / "out.jsonl")).exit_code == 0
    assert (tmp_path / "out.jsonl").read_text() == ""


def test_places_that_cannot_be_written_are_refused(run: Run, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [GOOD[0]])
    result = run("--input", str(source), "--output", str(tmp_path))
    assert "is a folder; --output names a file" in error_of(result)
    result = run("--input", str(source), "--output", str(tmp_path / "no" / "out.jsonl"))
    assert "is no folder" in error_of(result)
    assert run("--input", str(tmp_path)).exit_code == 1
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_a_full_disk_leaves_nothing_half_written(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = write_lines(tmp_path / "in.jsonl", [GOOD[0]] * 3), tmp_path / "out.jsonl"
    target.write_text("before")

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    result = run("--input", str(source), "--output", str(target))
    assert "No space left on device" in error_of(result)
    assert target.read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_a_device_a_pipe_and_a_link_are_written_through(
    text_bundle: Path, run: Run, tmp_path: Path
) -> None:
    source = write_lines(tmp_path / "in.jsonl", [GOOD[0]])
    real, link = tmp_path / "real.jsonl", tmp_path / "link.jsonl"
    link.symlink_to(real)
    for _ in ("a link to nothing", "a link to a file"):
        assert run("--input", str(source), "--output", str(link)).exit_code == 0
        assert link.is_symlink()
        assert json.loads(real.read_text())["prompt"] == "hello"
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    process = start_generate(text_bundle, "--input", source, "--output", fifo, "--threads", "1")
    assert json.loads(fifo.read_text())["prompt"] == "hello"
    assert process.wait(timeout=60) == 0
    assert fifo.is_fifo()


def test_a_source_may_be_a_pipe_or_standard_input(
    text_bundle: Path, run: Run, tmp_path: Path
) -> None:
    lines = write_lines(tmp_path / "in.jsonl", [GOOD[0], {}, GOOD[1]]).read_bytes()
    result = run("--input", "-", stdin=lines)
    assert len(result.stdout.splitlines()) == 3
    *errors, summary = result.stderr.splitlines()
    assert errors[0].startswith("error: standard input, line 2: ")
    assert summary == "1 of 3 lines failed"
    process = start_generate(
        text_bundle, "--input", "/dev/stdin", "--threads", "1", stdin=subprocess.PIPE
    )
    output, piped = process.communicate(lines, timeout=60)
    assert len(output.splitlines()) == 3
    assert piped.endswith(b"1 of 3 lines failed\n")


def test_a_line_that_fails_on_the_way_does_not_stop_the_others(
    run: Run, text_bundle: Path, tmp_path: Path
) -> None:
    with Engine.from_bundle(text_bundle, threads=1) as engine:
        everything = list(range(engine.bundle.manifest.limits.vocab_size))
    lines: list[object] = [
        {"prompt": "hello", "max_new_tokens": 2},
        {"prompt": "hello", "suppress_tokens": everything},
        {"prompt": "hello", "max_new_tokens": 3},
        {"prompt": "hello", "suppress_tokens": everything, "num_beams": 2},
    ]
    source = write_lines(tmp_path / "in.jsonl", lines)
    result = run("--input", str(source))
    assert result.exit_code == 1
    first, barred, third, beams = map(json.loads, result.stdout.splitlines())
    assert len(first["tokens"]) <= 2
    assert len(third["tokens"]) <= 3
    for number, record in ((2, barred), (4, beams)):
        assert record["line"] == number
        assert "no token is left to choose" in record["error"]
    assert result.stderr.endswith("2 of 4 lines failed\n")


def test_what_is_written_is_forgotten(text_bundle: Path) -> None:
    lines = [json.dumps({"prompt": "hello", "max_new_tokens": 1}).encode()] * 50
    reported: list[int] = []
    with Engine.from_bundle(text_bundle, threads=1, max_batch_size=2) as engine:
        job = Job(
            engine,
            Defaults({}, "auto", 1.0, False),
            report=lambda number, _: reported.append(number),
        )
        records = job.run([*lines, b"wrong", *lines])
        for _ in range(95):
            next(records)
            assert len(job._documents) < 10
        assert reported == [51]
        assert len(list(records)) == 6
    assert (job.total, job.failed, job._documents) == (101, 1, {})


def test_an_interrupt_leaves_nothing_half_written(text_bundle: Path, tmp_path: Path) -> None:
    lines: list[object] = [{"prompt": "hello", "min_new_tokens": 48}] * 20_000
    source, target = write_lines(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    process = start_generate(text_bundle, "--input", source, "--output", target, "--threads", "1")
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".out.jsonl.*.part")) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == b"interrupted\n"
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_a_reader_that_has_had_enough_is_no_error(text_bundle: Path, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [{"prompt": "hello"}] * 200)
    process = start_generate(text_bundle, "--input", source, "--threads", "1")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    process.wait(timeout=60)


def test_what_utf8_cannot_hold_is_passed_on_escaped(run: Run, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(b'{"prompt": "hello", "id": "\\ud83d"}')
    target = tmp_path / "out.jsonl"
    assert run("--input", str(source), "--output", str(target)).exit_code == 0
    assert json.loads(target.read_text())["id"] == "\ud83d"
