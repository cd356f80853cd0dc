import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from drl.export import export, save_checkpoint
from drl.export.cli import _describe
from drl.export.exporter import ExportOptions
from drl.export.tokenizers import find_tokenizer
from drl.runtime.bundle import Bundle
from drl.runtime.errors import CheckpointError
from drl.runtime.text import Tokenizer as BundleTokenizer
from tests.models import DENSE, random_model, tiny_config

LINES = (
    "the cat sat on the mat and looked at the moon",
    "a small frog asked its teacher for advice",
    "der kleine Frosch bat seinen Lehrer um Rat",
    "le petit chat regarde la lune au-dessus du toit",
    "numbers like 12, 305 and 7 are cut into pieces",
)
TEXTS = (
    *LINES,
    "  cats   and moons ",
    "Ünknown létters, ﬁne ligatures and １２ wide digits",
    "日本 is not in the vocabulary",
    "x",
)


def _word_tokenizer(words: Sequence[str] = ("a", "b", "</s>")) -> Tokenizer:
    vocabulary = {word: i for i, word in enumerate(["<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


T5_IDS = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}


def _sentencepiece(
    path: Path, kind: str, lines: Sequence[str] = LINES, size: int = 60, **ids: int
) -> list[str]:
    """Train a sentencepiece model; return its pieces."""
    sentencepiece = pytest.importorskip(
        "sentencepiece", reason="sentencepiece is missing, which trains the vocabulary"
    )
    stream = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines * 20),
        model_writer=stream,
        model_type=kind,
        vocab_size=size,
        hard_vocab_limit=False,
        **ids,
        minloglevel=2,
    )
    path.write_bytes(stream.getvalue())
    model = sentencepiece.SentencePieceProcessor(model_proto=stream.getvalue())
    return [model.id_to_piece(i) for i in range(model.get_piece_size())]


def _write(folder: Path, name: str, values: object) -> None:
    (folder / name).write_text(json.dumps(values), encoding="utf-8")


def _found(folder: Path, vocab_size: int = 1000) -> BundleTokenizer:
    found = find_tokenizer(folder, vocab_size)
    assert found.content is not None
    assert "by transformers" in found.note
    return BundleTokenizer(Tokenizer.from_buffer(found.content))


def _reference(folder: Path) -> Any:
    transformers = pytest.importorskip("transformers", reason="the reference is not installed")
    return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _assert_same(ours: BundleTokenizer, theirs: Any, texts: Sequence[str] = TEXTS) -> None:
    for text in texts:
        ids = theirs(text)["input_ids"]
        assert ours.encode(text) == ids, text
        assert ours.decode(ids).strip() == theirs.decode(ids, skip_special_tokens=True).strip()


def test_the_folders_own_tokenizer_is_taken_as_it_is(tmp_path: Path) -> None:
    _word_tokenizer().save(str(tmp_path / "tokenizer.json"))
    found = find_tokenizer(tmp_path, vocab_size=4)
    assert found.content == (tmp_path / "tokenizer.json").read_bytes()
    assert found.note == ""
    assert find_tokenizer(tmp_path, vocab_size=100).content == found.content  # padded for speed


def test_more_tokens_than_the_model_has_are_named(tmp_path: Path) -> None:
    _word_tokenizer().save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CheckpointError, match=r"token ids up to 3 and the model.* ends at 2"):
        find_tokenizer(tmp_path, vocab_size=3)


def test_a_folder_without_one_gives_a_bundle_for_token_ids(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "checkpoint", random_model(tiny_config(**DENSE)))
    report = export(tmp_path / "checkpoint", tmp_path / "bundle", ExportOptions(verify=False))
    bundle = Bundle.load(tmp_path / "bundle")
    assert bundle.tokenizer_file is None
    assert "tokenizer: none in the checkpoint, so prompts are token ids only" in _describe(
        bundle, report
    )


def test_a_bundle_carries_what_was_found(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "checkpoint", random_model(tiny_config(**DENSE)))
    _word_tokenizer().save(str(tmp_path / "checkpoint" / "tokenizer.json"))
    weights = tmp_path / "checkpoint" / "model.safetensors"
    export(weights, tmp_path / "bundle", ExportOptions(verify=False))
    file = Bundle.load(tmp_path / "bundle").tokenizer_file
    assert file is not None
    assert file.read_bytes() == (tmp_path / "checkpoint" / "tokenizer.json").read_bytes()


def test_without_transformers_there_is_none_and_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "spiece.model").write_bytes(b"pieces")
    monkeypatch.setitem(sys.modules, "transformers", None)
    found = find_tokenizer(tmp_path, 100)
    assert found.content is None
    assert "spiece.model was not converted" in found.note
    assert "`pip install transformers sentencepiece`" in found.note


def _code_of_its_own(folder: Path) -> None:
    (folder / "vocab.txt").write_text("a\nb\n")
    mark = folder / "ran"
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass Evil: pass\n")
    auto_map = {"AutoTokenizer": ["evil.Evil", None]}
    _write(folder, "tokenizer_config.json", {"tokenizer_class": "Evil", "auto_map": auto_map})


FAULTS = {
    "damaged": (
        lambda f: (f / "tokenizer.json").write_text('{"version"'),
        "tokenizer.json is no tokenizer",
    ),
    "pointer": (
        lambda f: (f / "tokenizer.json").write_text("version https://git-lfs.github.com/"),
        "tokenizer.json is a git-lfs pointer, not the file; run `git lfs pull`",
    ),
    "code": (_code_of_its_own, "asks for code of the folder (`auto_map`), which is never run"),
    "config": (
        lambda f: [
            (f / name).write_text("[") for name in ("tokenizer_config.json", "spiece.model")
        ],
        "tokenizer_config.json is not valid JSON",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_in_one_line(fault: str, tmp_path: Path) -> None:
    damage, message = FAULTS[fault]
    damage(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        find_tokenizer(tmp_path, 100)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("file", ["spiece.model", "vocab.json", "source.spm"])
def test_a_damaged_vocabulary_is_named_in_one_line(file: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is missing, which converts")
    if file == "source.spm":
        pytest.importorskip(
            "sentencepiece", reason="sentencepiece is missing, which reads this one"
        )
        _write(tmp_path, "vocab.json", {"<unk>": 0, "</s>": 1, "<pad>": 2})
        (tmp_path / "target.spm").write_bytes(b"\xff\xff")
    (tmp_path / file).write_bytes(b"\xff\xff no such thing")
    kind = {"spiece.model": "t5", "vocab.json": "bart", "source.spm": "marian"}[file]
    _write(tmp_path, "config.json", {"model_type": kind})
    with pytest.raises(CheckpointError, match="cannot be converted by transformers") as caught:
        find_tokenizer(tmp_path, 100)
    assert "\n" not in str(caught.value)


def test_byte_level_bpe_is_converted(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is missing, which converts")
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    trained.train_from_iterator(LINES, trainer)
    trained.model.save(str(tmp_path))
    _write(tmp_path, "config.json", {"model_type": "bart"})
    ours = _found(tmp_path)
    _assert_same(ours, _reference(tmp_path))
    assert ours.encode("the cat")[0] == 0
    assert ours.encode("the cat")[-1] == 2
    assert ours.decode(ours.encode(LINES[0])) == LINES[0]


@pytest.mark.parametrize("kind", ["t5", "mt5"])
def test_t5_is_converted(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is missing, which converts")
    sentencepiece = pytest.importorskip("sentencepiece", reason="the reference is not installed")
    _sentencepiece(tmp_path / "spiece.model", "unigram", **T5_IDS)
    _write(tmp_path, "config.json", {"model_type": kind})
    ours = _found(tmp_path)
    _assert_same(ours, _reference(tmp_path))
    original = sentencepiece.SentencePieceProcessor(str(tmp_path / "spiece.model"))
    for text in LINES:
        assert ours.encode(text) == [*original.encode(text), 1]
        assert ours.decode(ours.encode(text)).strip() == text


def test_pegasus_is_converted(tmp_path: Path) -> None:
    _sentencepiece(tmp_path / "spiece.model", "unigram", **T5_IDS)
    _write(tmp_path, "config.json", {"model_type": "pegasus"})
    _assert_same(_found(tmp_path), _reference(tmp_path), LINES)


def _save_marian(folder: Path, kind: str) -> None:
    """Write source and target model, and the vocabulary of both in an order of its own."""
    source = _sentencepiece(folder / "source.spm", kind, LINES[:2] + LINES[4:])
    target = _sentencepiece(folder / "target.spm", kind, LINES[2:4])
    languages = [">>deu<<", ">>fra<<"]
    pieces = sorted({*source, *target} - {"<unk>", "<s>", "</s>"}, reverse=True)
    names = ["</s>", "<unk>", *languages, *pieces, "<pad>"]
    _write(folder, "vocab.json", {name: i for i, name in enumerate(names)})
    _write(folder, "config.json", {"model_type": "marian"})


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_marian_is_converted(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is missing, which reads these")
    _save_marian(tmp_path, kind)
    ours, theirs = _found(tmp_path), _reference(tmp_path)
    texts = [text for text in TEXTS if "日本" not in text]
    _assert_same(ours, theirs, texts)
    prompt = ">>fra<< the small cat"
    assert ours.encode(prompt) == theirs(prompt)["input_ids"]
    assert ours.encode(prompt)[0] == 3
    pieces = theirs.convert_tokens_to_ids(theirs.spm_target.encode(LINES[2], out_type=str))
    assert ours.decode([*pieces, 0]).strip() == LINES[2]


def test_m2m100_is_converted(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is missing, which knows the languages")
    pieces = _sentencepiece(tmp_path / "sentencepiece.bpe.model", "bpe")
    names = ["<s>", "<pad>", "</s>", "<unk>", *pieces[3:][::-1]]
    _write(tmp_path, "vocab.json", {name: i for i, name in enumerate(names)})
    _write(tmp_path, "config.json", {"model_type": "m2m_100"})
    _write(tmp_path, "tokenizer_config.json", {"tokenizer_class": "M2M100Tokenizer"})
    ours, theirs = _found(tmp_path), _reference(tmp_path)
    for text in TEXTS:
        assert ours.encode(text) == theirs(text)["input_ids"], text
    first, *words, last = ours.encode(LINES[0])
    assert (first, last) == (theirs.get_lang_id("en"), 2)
    assert ours.token_id("__en__") == first
    assert ours.decode([first, *words, last]) == LINES[0]


def test_nllb_is_converted_and_puts_its_language_first(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is missing, which knows the languages")
    _sentencepiece(tmp_path / "sentencepiece.bpe.model", "bpe")
    languages = {"additional_special_tokens": ["eng_Latn", "fra_Latn"], "src_lang": "fra_Latn"}
    _write(tmp_path, "tokenizer_config.json", {"tokenizer_class": "NllbTokenizer", **languages})
    _write(tmp_path, "config.json", {"model_type": "m2m_100"})
    ours = _found(tmp_path)
    _assert_same(ours, _reference(tmp_path), LINES)
    french = ours.token_id("fra_Latn")
    assert french is not None
    assert ours.encode("the cat")[0] == french


def test_an_nllb_vocabulary_without_its_languages_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is missing, which knows the languages")
    _sentencepiece(tmp_path / "sentencepiece.bpe.model", "bpe")
    settings = {"tokenizer_class": "NllbTokenizer", "additional_special_tokens": ["fra_Latn"]}
    _write(tmp_path, "tokenizer_config.json", settings)
    with pytest.raises(CheckpointError, match="it has no token 'eng_Latn', its source language"):
        find_tokenizer(tmp_path, 1000)


LANGUAGES = {
    "NllbTokenizer": ("eng_Latn", ["eng_Latn", "a", "b", "</s>"]),
    "NllbTokenizerFast": ("eng_Latn", ["eng_Latn", "a", "b", "</s>"]),
    "MBart50TokenizerFast": ("en_XX", ["en_XX", "a", "b", "</s>"]),
    "MBartTokenizer": ("en_XX", ["a", "b", "</s>", "en_XX"]),
}


@pytest.mark.parametrize("kind", LANGUAGES)
def test_the_source_language_stands_where_its_class_puts_it(kind: str, tmp_path: Path) -> None:
    language, expected = LANGUAGES[kind]
    saved = _word_tokenizer(["a", "b", "</s>", language, "fra"])
    template = processors.TemplateProcessing(
        single=["$A", "</s>", "fra"], special_tokens=[("</s>", 3), ("fra", 5)]
    )
    saved.post_processor = template  # of an older version, and of another language
    saved.save(str(tmp_path / "tokenizer.json"))

    def tokens(**config: object) -> list[str]:
        _write(tmp_path, "tokenizer_config.json", {"tokenizer_class": kind, **config})
        content = find_tokenizer(tmp_path, 6).content
        assert content is not None
        made: list[str] = Tokenizer.from_buffer(content).encode("a b").tokens
        return made

    assert tokens() == expected
    french = ["fra" if token == language else token for token in expected]
    assert tokens(src_lang="fra") == french
    if kind.startswith("Nllb"):
        assert tokens(legacy_behaviour=True) == ["a", "b", "</s>", "eng_Latn"]
    assert tokens(src_lang="nowhere") == ["a", "b", "</s>", "fra"]
