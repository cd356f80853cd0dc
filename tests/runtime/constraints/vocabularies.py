"""Tokenizers of the kinds that models bring, small ones, and generation with random scores."""

from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from drl.runtime.arrays import Float32
from drl.runtime.constraints import ConstraintCompiler, ConstraintProcessor
from drl.runtime.detokenizer import decode_text
from drl.runtime.generation import GenerationConfig
from drl.runtime.processors.protocol import DecodingState
from drl.runtime.text import Tokenizer

PAD, EOS, UNK = 0, 1, 2
SPECIAL = ["<pad>", "</s>", "<unk>"]
NUMBERS = Path(__file__).parents[3] / "examples" / "numbers" / "tokenizer.json"
PADDING_IDS = 5  # ids of the model beyond the tokenizer's vocabulary

WORDS = """The quick brown fox jumps over the lazy dog, and then over 1234567890 more dogs.
one two three four five six seven eight nine ten plus minus times is what red green blue
Names: Ada, Grace, Linus; dates 2024-01-31; codes AB-1234 and XY-0099; café, naïve, 日本 東京
"""
DOCUMENTS = """{"name": "Ada", "age": 36, "tags": ["red", "blue"], "ok": true, "none": null}
{"x": -1.5e+10, "y": [], "z": {"w": false}, "unit": "café", "date": "2024-01-31"}
"""


def _special(tokenizer: FastTokenizer) -> FastTokenizer:
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def unigram(text: str = WORDS + DOCUMENTS) -> FastTokenizer:
    """Like T5's: SentencePiece's model, words that begin with a space marker, no bytes."""
    tokenizer = FastTokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=180, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(text.splitlines(), trainer)
    return _special(tokenizer)


def unigram_with_bytes() -> FastTokenizer:
    """The same with a token for each byte, for what the vocabulary cannot write."""
    trained = unigram()
    size = trained.get_vocab_size()
    entries = [(trained.id_to_token(token) or "", -1.0 - token) for token in range(size)]
    entries += [(f"<0x{byte:02X}>", -1000.0) for byte in range(256)]
    tokenizer = FastTokenizer(models.Unigram(entries, UNK, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return _special(tokenizer)


def byte_level() -> FastTokenizer:
    """Like BART's: pairs of bytes merged."""
    tokenizer = FastTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((WORDS + DOCUMENTS).splitlines(), trainer)
    return tokenizer


def word_piece() -> FastTokenizer:
    """Like BERT's: words, and `##` before what goes on with one."""
    words = ["one", "two", "three", "##teen", "##s", "four", "plus", ".", ",", "a", "##b"]
    vocabulary = {word: token for token, word in enumerate([*SPECIAL, *words])}
    tokenizer = FastTokenizer(models.WordPiece(vocabulary, unk_token="<unk>"))
    tokenizer.decoder = decoders.WordPiece()
    return _special(tokenizer)


def word_level() -> FastTokenizer:
    """Whole words, with a space between any two. The unknown token is not marked as special."""
    words = ["one", "two", "three", "plus", "minus", "is"]
    vocabulary = {word: token for token, word in enumerate([*SPECIAL, *words])}
    tokenizer = FastTokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.add_special_tokens(SPECIAL[:2])
    return tokenizer


KINDS = {
    "unigram": unigram,
    "unigram_with_bytes": unigram_with_bytes,
    "byte_level": byte_level,
    "numbers": lambda: FastTokenizer.from_file(str(NUMBERS)),
    "word_piece": word_piece,
    "word_level": word_level,
}
WRITING_JSON = ["unigram", "unigram_with_bytes", "byte_level", "numbers"]


@cache
def tokenizer_of(kind: str) -> Tokenizer:
    return Tokenizer(KINDS[kind]())


@cache
def compiler_of(kind: str) -> ConstraintCompiler:
    return compiler(tokenizer_of(kind))


def compiler(tokenizer: Tokenizer) -> ConstraintCompiler:
    return ConstraintCompiler(tokenizer, tokenizer.vocab_size + PADDING_IDS, EOS)


def processor(kind: str, config: GenerationConfig) -> ConstraintProcessor:
    made = compiler_of(kind).processor(config)
    assert made is not None
    return made


def size_of(kind: str) -> int:
    return tokenizer_of(kind).vocab_size + PADDING_IDS


def state(rows: Iterable[list[int]], prompt: int = 1, most: int = 1000) -> DecodingState:
    """The rows of one step, each with its start token."""
    rows = list(rows)
    tokens = np.full((len(rows), max(map(len, rows))), -1, np.int64)
    for row, ids in enumerate(rows):
        tokens[row, : len(ids)] = ids
    count = len(rows)
    return DecodingState(
        tokens=tokens,
        lengths=np.array([len(ids) for ids in rows], np.int64),
        prompt_lengths=np.full(count, prompt, np.int64),
        max_lengths=np.full(count, most, np.int64),
        sources=np.full((count, 1), EOS, np.int64),
        source_lengths=np.ones(count, np.int64),
    )


def allowed(made: ConstraintProcessor, size: int, tokens: list[int]) -> list[int]:
    """The tokens that may follow generated tokens."""
    scores = made(state([[PAD, *tokens]]), np.zeros((1, size), np.float32))
    return np.flatnonzero(scores[0] == 0).tolist()


def drive(
    made: ConstraintProcessor, size: int, draw: np.random.Generator, most: int = 300
) -> list[int]:
    """Generated tokens of a model that knows nothing, without the end token."""
    tokens = [PAD]
    for _ in range(most):
        scores: Float32 = draw.normal(size=(1, size)).astype(np.float32)
        scores[0, EOS] += 2.0  # so that it ends
        token = int(made(state([tokens]), scores)[0].argmax())
        assert scores[0, token] > -np.inf
        if token == EOS:
            return tokens[1:]
        tokens.append(token)
    raise AssertionError(f"no end after {most} tokens: {tokens}")


def texts(kind: str, config: GenerationConfig, count: int, seed: int = 0) -> list[str]:
    """Results of so many requests, as the caller gets them."""
    draw = np.random.default_rng(seed)
    return [
        decode_text(tokenizer_of(kind), drive(processor(kind, config), size_of(kind), draw))
        for _ in range(count)
    ]
