"""The tokenizer: byte-level BPE in which every word of the tasks is one token.

A Split pre-tokenizer isolates the known words and otherwise every single character, so digits,
letters of a pattern and Chinese characters are one token each; any other text falls back to
bytes. Decoding restores the text exactly.

    python -m examples.numbers.tokens        writes tokenizer.json beside this file
"""

from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from examples.numbers.language import (
    CHINESE_DIGITS,
    CHINESE_UNITS,
    ENGLISH_SCALES,
    ENGLISH_SMALL,
    ENGLISH_TENS,
)
from examples.numbers.tasks import REPEAT_WORDS

PAD, EOS, START = 0, 1, 2
SPECIAL_TOKENS = ["<pad>", "<eos>", "<start>"]
TOKENIZER_FILE = Path(__file__).with_name("tokenizer.json")

_NUMBER_WORDS = [*ENGLISH_SMALL, *ENGLISH_TENS, "hundred", *ENGLISH_SCALES]
_PROMPT_STARTS = ["translate", "what", "repeat"]
_PROMPT_WORDS = ["to", "Chinese", "is", "plus", "minus", "times", "and", "English"]
_CHINESE = CHINESE_DIGITS + "".join(CHINESE_UNITS) + "万" + "翻译成英中文加减乘等于多少" + "：？"


def build_tokenizer() -> Tokenizer:
    """The tokenizer, trained on its word list until each word is a single token."""
    words = {*_NUMBER_WORDS, *_PROMPT_STARTS, *_PROMPT_WORDS}
    longest_first = sorted(words, key=lambda word: (-len(word), word))
    ones = "|".join(ENGLISH_SMALL[1:10])
    pattern = Regex(
        # What is to be repeated is spelled, even where it happens to be a word.
        r"(?<!repeat)(?<!repeat )"
        rf"(?:(?<=ty)-(?:{ones})|(?: |(?<![A-Za-z]))(?:{'|'.join(longest_first)}))(?![A-Za-z])"
        r"|[\s\S]"
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,  # never reached: there is nothing left to merge long before
        min_frequency=1,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", EOS)]
    )
    return tokenizer


def _corpus() -> list[str]:
    return [
        *_NUMBER_WORDS,
        *_PROMPT_STARTS,
        *(f": {word}" for word in (*_NUMBER_WORDS, *_PROMPT_WORDS)),
        *(f"{tens}-{one}" for tens in ENGLISH_TENS for one in ENGLISH_SMALL[1:10]),
        *(f": {word} times" for word in REPEAT_WORDS),
        *_CHINESE,
    ]


def load_tokenizer(path: Path = TOKENIZER_FILE) -> Tokenizer:
    """The tokenizer of the shipped model."""
    return Tokenizer.from_file(str(path))


if __name__ == "__main__":
    build_tokenizer().save(str(TOKENIZER_FILE))
    print(f"{TOKENIZER_FILE}: {load_tokenizer().get_vocab_size()} tokens")
