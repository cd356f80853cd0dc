"""Generation options on the command line: each becomes its field, over a file, over the bundle."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from drl.runtime import Engine, GenerationConfig
from drl.runtime.commands.generate import main
from drl.runtime.commands.generate_options import generate_options
from drl.runtime.commands.given import Given
from tests.runtime.commands.running import error_of

Run = Callable[..., Result]

# Parameters of the command that are no options of generation.
OTHERS = {
    *("source", "target", "as_json", "stream", "verbose", "prefix", "experts"),
    *("path", "budget", "budget_ms", "device", "threads", "batch_size", "no_hash_check", "help"),
}


@pytest.fixture(scope="module")
def engine(text_bundle: Path) -> Iterator[Engine]:
    with Engine.from_bundle(text_bundle, threads=1, verify_hashes=False) as engine:
        yield engine


def given(*arguments: str) -> Given:
    found: list[Given] = []

    @click.command()
    @generate_options
    def command(**parameters: Any) -> None:
        generation = {name: v for name, v in parameters.items() if name not in OTHERS}
        found.append(Given.read(generation))

    result = CliRunner().invoke(command, arguments, standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return found[0]


def spelled(engine: Engine, text: str) -> tuple[int, ...]:
    assert engine.tokenizer is not None
    return tuple(engine.tokenizer.encode(text, special_tokens=False))


def test_every_field_can_be_given() -> None:
    names = {
        {"bad_words": "bad_words_ids"}.get(str(parameter.name), parameter.name)
        for parameter in main.params
        if isinstance(parameter, click.Option)
    }
    fields = set(GenerationConfig.__dataclass_fields__)
    assert names == fields | (OTHERS - {"help"}) | {"config"}


def test_nothing_given_is_the_bundle_s_way_without_log_probabilities(engine: Engine) -> None:
    assert given().options(engine) == {"logprobs": False}


@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        ("--max-length 9", "max_length", 9),
        ("--min-length 3", "min_length", 3),
        ("--max-time 1.5", "max_time", 1.5),
        ("--num-beams 4", "num_beams", 4),
        ("--length-penalty -1", "length_penalty", -1.0),
        ("--early-stopping true", "early_stopping", True),
        ("--early-stopping false", "early_stopping", False),
        ("--early-stopping never", "early_stopping", "never"),
        ("--num-return-sequences 2", "num_return_sequences", 2),
        ("--do-sample", "do_sample", True),
        ("--no-sample", "do_sample", False),
        ("--typical-p 0.5", "typical_p", 0.5),
        ("--eta-cutoff 0.001", "eta_cutoff", 0.001),
        ("--no-repeat-ngram-size 3", "no_repeat_ngram_size", 3),
        ("--renormalize-logits", "renormalize_logits", True),
        ("--remove-invalid-values", "remove_invalid_values", True),
        ("--stop-token-id 4 --stop-token-id 5", "stop_token_ids", (4, 5)),
        ("--stop a --stop b", "stop_strings", ("a", "b")),
        ("--suppress-tokens 7 --suppress-tokens A", "suppress_tokens", [7, "A"]),
        ("--begin-suppress-tokens 7", "begin_suppress_tokens", [7]),
        ("--forced-bos 7", "forced_bos_token_id", 7),
        ("--forced-eos A", "forced_eos_token_id", "A"),
        ("--forced-decoder-ids 1 7 --forced-decoder-ids 2 A", "forced_decoder_ids", [7, "A"]),
        (
            "--exponential-decay-length-penalty 3 1.5",
            "exponential_decay_length_penalty",
            (3, 1.5),
        ),
        ("--bad-words ids:3,4 --bad-words ids:5", "bad_words_ids", [(3, 4), (5,)]),
        ("--sequence-bias ids:3,4 -2.5", "sequence_bias", [((3, 4), -2.5)]),
        ("--regex [ab]+", "regex", "[ab]+"),
        ('--json-schema {"type":"integer"}', "json_schema", '{"type":"integer"}'),
        ("--grammar start:A", "grammar", "start:A"),
    ],
)
def test_an_option_becomes_its_field(
    engine: Engine, arguments: str, field: str, value: Any
) -> None:
    options = given(*arguments.split()).options(engine)
    letter = engine.token_id("A")
    if value == "A":
        value = letter
    elif field == "forced_decoder_ids":
        value = [(1, 7), (2, letter)]
    elif isinstance(value, list):
        value = [letter if item == "A" else item for item in value]
    assert options == {field: value, "logprobs": False}


def test_a_text_is_meant_at_the_beginning_and_after_a_space(engine: Engine) -> None:
    both = [spelled(engine, "ab"), spelled(engine, " ab")]
    assert both[0] != both[1]
    words = ("--bad-words", "ab", "--bad-words", "ab", "--bad-words", " ab")
    bad = given(*words).options(engine)["bad_words_ids"]
    assert bad[:2] == both
    assert len(bad) == len(set(bad)) == 3
    bias = given("--sequence-bias", "ab", "3").options(engine)["sequence_bias"]
    assert bias == [(ids, 3.0) for ids in both]


def test_top_logprobs_bring_log_probabilities_with_them(engine: Engine) -> None:
    assert given("--top-logprobs", "2").options(engine) == {"top_logprobs": 2, "logprobs": True}
    assert given("--logprobs").options(engine) == {"logprobs": True}


def test_the_command_line_goes_before_the_file_and_the_file_before_the_bundle(
    engine: Engine, tmp_path: Path
) -> None:
    file = tmp_path / "generation.json"
    file.write_text(json.dumps({"num_beams": 4, "length_penalty": 2.0, "max_new_tokens": 9}))
    options = given("--config", str(file), "--num-beams", "2").options(engine)
    expected = {"num_beams": 2, "length_penalty": 2.0, "max_new_tokens": 9, "logprobs": False}
    assert options == expected
    options = given("--config", str(file), "--temperature", "1", "--max-length", "5")
    assert options.options(engine) == {"temperature": 1.0, "max_length": 5, "logprobs": False}
    defaults = {"max_new_tokens": 3, "forced_bos_token_id": 7}
    config = GenerationConfig.from_defaults(defaults, given("--config", str(file)).options(engine))
    assert (config.max_new_tokens, config.forced_bos_token_id) == (9, 7)


def test_schemas_and_grammars_are_read_from_files(engine: Engine, tmp_path: Path) -> None:
    schema, grammar = tmp_path / "a schema.json", tmp_path / "C: =.lark"
    schema.write_text('{"type": "string"}')
    grammar.write_text('start: "é"', encoding="utf-8")
    options = given("--json-schema", str(schema)).options(engine)
    assert options["json_schema"] == '{"type": "string"}'
    assert given("--grammar", str(grammar)).options(engine)["grammar"] == 'start: "é"'
    long = f'start: "{"x" * 5000}"'
    assert given("--grammar", long).options(engine)["grammar"] == long


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-beams", "0"], "num_beams must be an integer of at least 1, not 0"),
        (["--top-p", "2", "--seed", "-1"], "top_p must be a number above 0 and at most 1, not 2.0"),
        (["--num-return-sequences", "3"], "num_return_sequences 3 needs sampling"),
        (["--num-beams", "2", "--num-return-sequences", "3"], "3 exceeds num_beams 2"),
        (["--early-stopping", "true"], "early_stopping needs num_beams of at least 2"),
        (["--top-k", "3", "--no-sample"], "do_sample=False contradicts top_k"),
        (["--regex", "a", "--grammar", "start:A"], "regex, grammar exclude each other"),
        (["--forced-bos", "no such"], "there is no token 'no such' in the bundle's vocabulary"),
        (["--suppress-tokens", "99999"], "suppress_tokens: 99999 is out of range"),
        (["--bad-words", "ids:3,x"], "'ids:3,x' holds no token ids; write them as ids:3,4"),
        (["--bad-words", " "], "' ' has no tokens to bar or to favour"),
        (["--prefix", "ids:x"], "'ids:x' holds no token ids"),
        (["--prefix", "x" * 60], "the prefix of the prompt has 60 tokens"),
        (["--forced-decoder-ids", "0", "7"], "position 0 is the start token"),
        (["--json-schema", "none.json"], "none.json: No such file or directory"),
        (["--json-schema", "{"], "json_schema is not valid JSON"),
        (["--grammar", "none.lark"], "none.lark: No such file or directory"),
        (["--config", "none.json"], "none.json: No such file or directory"),
    ],
)
def test_a_mistake_is_one_line_and_status_1(run: Run, arguments: list[str], message: str) -> None:
    result = run("hello", *arguments)
    assert message in error_of(result)
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not valid JSON"),
        (b"[1]", "holds a list, not an object of options"),
        (b"\xff", "is not UTF-8"),
        (b'{"num_beam": 3}', "unknown generation option 'num_beam' (did you mean 'num_beams'?)"),
        (b'{"num_beams": "3"}', "num_beams must be an integer"),
        (
            b'{"num_beams": 3, "eos_token_id": 1, "transformers_version": "5"}',
            "'transformers_version' (drl-export reads a folder's generation_config.json",
        ),
    ],
)
def test_a_wrong_file_of_options_is_named(
    run: Run, tmp_path: Path, content: bytes, message: str
) -> None:
    file = tmp_path / "generation.json"
    file.write_bytes(content)
    error = error_of(run("hello", "--config", str(file)))
    assert error.startswith(str(file))
    assert message in error


@pytest.mark.parametrize(
    "arguments",
    [
        ["--early-stopping", "maybe"],
        ["--sequence-bias", "a", "b"],
        ["--forced-decoder-ids", "a", "b"],
        ["--exponential-decay-length-penalty", "1"],
        ["--num-beams", "many"],
    ],
)
def test_what_is_no_number_is_a_usage_error(run: Run, arguments: list[str]) -> None:
    assert run("hello", *arguments).exit_code == 2
