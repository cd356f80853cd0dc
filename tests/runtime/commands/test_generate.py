"""`drl-generate`: arguments, lines and files in; text and JSON out; one line for every mistake."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from drl.runtime import Bundle, Engine, GenerationConfig, GenerationResult
from drl.runtime.backends.ort_device import OrtDeviceBackend
from drl.runtime.commands.generate import main
from tests.runtime.backends.fake_device import fake_backend
from tests.runtime.commands.running import error_of, start_generate

Run = Callable[..., Result]


@pytest.fixture
def expected(text_bundle: Path) -> Callable[..., GenerationResult]:
    """What the engine gives for a prompt."""

    def generate(prompt: str, path: str = "auto", **options: Any) -> GenerationResult:
        with Engine.from_bundle(text_bundle, threads=1) as engine:
            return engine.generate([prompt], GenerationConfig(**options), path=path)[0]

    return generate


def test_arguments_give_a_line_each(run: Run, expected: Callable[..., GenerationResult]) -> None:
    result = run("hello", "中国", "--temperature", "1.2", "--seed", "3", "--max-new-tokens", "9")
    assert result.exit_code == 0, result.output
    options = {"temperature": 1.2, "seed": 3, "max_new_tokens": 9}
    texts = [expected(prompt, **options).text for prompt in ("hello", "中国")]
    assert any(texts)
    assert result.stdout == "".join(f"{text}\n" for text in texts)
    assert result.stderr == ""


def test_lines_of_standard_input_are_prompts(run: Run) -> None:
    result = run("--path", "fast", stdin="hello\n\n  \n中国\r\nlast".encode())
    assert result.stdout == run("hello", "中国", "last", "--path", "fast").stdout
    assert result.exit_code == 0


def test_json_tells_everything_asked_for(
    run: Run, expected: Callable[..., GenerationResult]
) -> None:
    arguments = ["--path", "2", "--max-new-tokens", "4", "--min-new-tokens", "4"]
    plain = json.loads(run("hello", "--json", *arguments).stdout)
    wanted = expected("hello", "full", max_new_tokens=4, min_new_tokens=4)
    assert plain["prompt"] == "hello"
    assert plain["text"] == wanted.text
    assert plain["tokens"] == wanted.tokens
    assert plain["path"] == "full"
    assert plain["finish_reason"] == "length"
    assert plain["steps"] == 4
    assert len(plain["path_logits"]) == 3
    assert plain["milliseconds"]["total"] > 0
    assert plain.keys().isdisjoint({"logprobs", "top_logprobs", "experts"})
    more = ["--top-logprobs", "2", "--experts"]
    full = json.loads(run("hello", "--json", *arguments, *more).stdout)
    assert full["logprobs"] == pytest.approx(wanted.logprobs, abs=1e-5)
    assert [len(top) for top in full["top_logprobs"]] == [2] * 4
    assert len(full["experts"]["encoder"]["1"]) == plain["prompt_tokens"]
    assert len(full["experts"]["decoder"]["3"]) == 4


def test_streamed_text_is_the_same(run: Run) -> None:
    options = ["hello", "中国", "--temperature", "1.2", "--seed", "5"]
    assert run(*options, "--stream").stdout == run(*options).stdout


def test_notes_tell_path_and_time(run: Run) -> None:
    line = run("hello", "--path", "balanced", "-v").stdout
    assert "[balanced, " in line
    assert line.rstrip().endswith("ms]")
    assert "[balanced, " in run("hello", "--path", "balanced", "-v", "--stream").stdout


def test_stop_strings_and_stop_tokens_are_options(
    run: Run, expected: Callable[..., GenerationResult]
) -> None:
    whole = expected("hello", temperature=1.2, seed=3)
    arguments = ["hello", "--json", "--temperature", "1.2", "--seed", "3"]
    stopped = json.loads(run(*arguments, "--stop-token-id", str(whole.tokens[3])).stdout)
    assert stopped["tokens"] == whole.tokens[: whole.tokens.index(whole.tokens[3])]
    stopped = json.loads(run(*arguments, "--stop", whole.text[2], "--stop", "zzz").stdout)
    assert stopped["text"] == whole.text[: whole.text.index(whole.text[2])].rstrip()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hello", "--path", "fats"], "there is no path 'fats'; did you mean 'fast'?"),
        (["hello", "--budget", "2"], "budget must be a number from 0 to 1"),
        ([""], "the prompt is empty"),
        (["a", " "], "prompt 2: the prompt is empty"),
        (["x" * 60], "the prompt has 61 tokens and the model reads 48; shorten it"),
        (["a", "--max-new-tokens", "49"], "max_new_tokens 49 exceeds the model's cache of 48"),
        (["a", "--top-k", "3"], "generation options: top_k needs do_sample=True"),
        (["a", "--top-p", "2", "--seed", "-1"], "top_p must be"),
        (["a", "--threads", "0"], "threads must be at least 1"),
        (["a", "--batch-size", "0"], "max_batch_size must be at least 1"),
        (["--input", "/nowhere.jsonl"], "/nowhere.jsonl: No such file"),
    ],
)
def test_a_mistake_is_one_line_and_status_1(
    text_bundle: Path, arguments: list[str], message: str
) -> None:
    result = CliRunner().invoke(main, [str(text_bundle), *arguments])
    assert message in error_of(result)
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("stdin", "message"),
    [
        (b"ok\nbad \xff\n", "standard input, line 2: not UTF-8 at byte 5"),
        (b"ok\n" + b"x" * 60, "standard input, line 2: the prompt has 61 tokens"),
        (b"\n\n", "standard input holds no prompt"),
        (b"", "standard input holds no prompt"),
    ],
)
def test_a_wrong_line_of_standard_input_is_named(run: Run, stdin: bytes, message: str) -> None:
    result = run(stdin=stdin)
    assert message in error_of(result)
    assert result.stdout == ""


def test_a_missing_bundle_is_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, [str(tmp_path / "missing"), "hello"])
    assert "there is no bundle at" in error_of(result)


@pytest.mark.parametrize(
    "arguments",
    [
        ["a", "--input", "x"],
        ["a", "--output", "x"],
        ["a", "--stream", "--json"],
        ["--stream", "--input", "x"],
        ["a", "--temperature", "warm"],
        ["a", "--experts"],
        ["a", "--logprobs"],
        ["a", "--top-logprobs", "2"],
        ["a", "--stream", "--experts"],
        ["--input", "x", "--verbose"],
    ],
)
def test_options_that_exclude_each_other_are_a_usage_error(run: Run, arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_json_at_a_terminal_prompt_is_a_usage_error(text_bundle: Path) -> None:
    import pty

    master, slave = pty.openpty()
    process = start_generate(text_bundle, "--json", stdin=slave)
    os.close(slave)
    os.write(master, b"\x04")
    output, errors = process.communicate(timeout=60)
    os.close(master)
    assert (process.returncode, output) == (2, b"")
    assert b"--json needs TEXT" in errors


def test_closed_standard_input_is_one_line(text_bundle: Path) -> None:
    for arguments in ((), ("--input", "-")):
        process = start_generate(text_bundle, *arguments, preexec_fn=lambda: os.close(0))
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 1
        assert errors.startswith(b"error: standard input is closed")
        assert errors.count(b"\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("from_file", [False, True])
def test_output_that_cannot_be_written_is_one_line(
    text_bundle: Path, tmp_path: Path, from_file: bool
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt": "hello"}\n')
    arguments = ["--input", source] if from_file else ["hello"]
    with Path("/dev/full").open("wb") as full:
        process = start_generate(text_bundle, *arguments, stdout=full)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    place = b"standard output" if from_file else b"cannot write the output"
    assert errors == b"error: " + place + b": No space left on device\n"


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_terminal_is_answered_line_by_line_and_shown_path_and_time(text_bundle: Path) -> None:
    import pty

    master, slave = pty.openpty()
    process = start_generate(text_bundle, "--threads", "1", stdin=slave)
    os.close(slave)
    os.write(master, b"hello\n" + b"x" * 60 + b"\nagain\n\x04")
    output, errors = process.communicate(timeout=60)
    os.close(master)
    assert process.returncode == 0
    assert len(output.decode().splitlines()) == 2
    assert errors.decode().count("> ") == 4
    assert "error: the prompt has 61 tokens" in errors.decode()


def test_several_results_are_lines_and_in_json_alternatives(
    run: Run, expected: Callable[..., GenerationResult]
) -> None:
    options = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 8, "min_new_tokens": 4}
    results = [expected(prompt, **options) for prompt in ("hello", "中国")]
    arguments = ["--num-beams", "3", "--num-return-sequences", "2"]
    arguments += ["--max-new-tokens", "8", "--min-new-tokens", "4"]
    lines = [each.text for result in results for each in (result, *result.alternatives)]
    assert run("hello", "中国", *arguments).stdout == "".join(f"{line}\n" for line in lines)
    assert run("hello", "中国", *arguments, "--stream").stdout.splitlines() == lines
    record = json.loads(run("hello", "--json", "--logprobs", *arguments).stdout)
    (alternative,) = record["alternatives"]
    (wanted,) = results[0].alternatives
    assert record["score"] == pytest.approx(results[0].score, abs=1e-5)
    assert alternative["score"] == pytest.approx(wanted.score, abs=1e-5)
    assert alternative["logprobs"] == pytest.approx(wanted.logprobs, abs=1e-5)
    assert {name: alternative[name] for name in ("text", "tokens", "finish_reason")} == {
        "text": wanted.text,
        "tokens": wanted.tokens,
        "finish_reason": wanted.finish_reason,
    }


def test_with_notes_several_results_are_numbered(run: Run) -> None:
    arguments = ["hello", "--num-beams", "3", "--num-return-sequences", "2", "-v"]
    for lines in (run(*arguments).stdout, run(*arguments, "--stream").stdout):
        for rank, line in enumerate(lines.splitlines(), 1):
            assert line.startswith(f"{rank}. ")
            assert ", score -" in line
        assert rank == 2
    sampled = ["hello", "--temperature", "1", "--seed", "3", "--num-return-sequences", "3"]
    streamed = run(*sampled, "--stream").stdout
    assert streamed == run(*sampled).stdout
    assert len(json.loads(run(*sampled, "--json").stdout)["alternatives"]) == 2


def test_a_prefix_begins_each_result(run: Run) -> None:
    line = run("hello", "--prefix", "ab c", "--max-new-tokens", "3").stdout
    assert line.startswith("ab c")
    record = json.loads(run("hello", "--prefix", "ids:38,39", "--json").stdout)
    assert record["tokens"][:2] == [38, 39]
    assert record["prefix_tokens"] == 2
    assert "prefix_tokens" not in json.loads(run("hello", "--json").stdout)


def test_text_obeys_a_constraint(run: Run) -> None:
    pytest.importorskip("llguidance")
    assert run("hello", "--regex", "[ab]{3}c").stdout[3:] == "c\n"


def test_time_that_ran_out_is_told(run: Run) -> None:
    arguments = ["hello", "--min-new-tokens", "40", "--max-time", "1e-6"]
    assert run(*arguments, "-v").stdout.endswith(" ms, out of time]\n")
    assert json.loads(run(*arguments, "--json").stdout)["finish_reason"] == "time"


def test_a_device_that_there_is_not_is_one_line(run: Run) -> None:
    result = run("hello", "--device", "tpu")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: there is no device 'tpu'; this version runs on cpu, cu")


def test_the_device_is_the_engine_s(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    def open_fake(bundle: Bundle, device: str, threads: int | None) -> OrtDeviceBackend:
        opened.append((device, threads))
        return fake_backend(bundle)

    arguments = ["hello", "--max-new-tokens", "9"]
    expected = run(*arguments).stdout
    monkeypatch.setattr("drl.runtime.engine.open_backend", open_fake)
    ours = run(*arguments, "--device", "cuda:1")
    assert ours.exit_code == 0, ours.output
    assert opened == [("cuda:1", 1)]
    assert ours.stdout == expected
