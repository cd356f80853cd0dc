"""Tokenizers over a sentencepiece model that `transformers` has in Python only: Marian, M2M100.

They cut text by the sentencepiece model and look the pieces up in a vocabulary of their own. The
same is built here from the parts of a `tokenizer.json`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram
from tokenizers.processors import TemplateProcessing

_NORMAL, _UNIGRAM, _BPE = 1, 1, 2  # of sentencepiece's piece types and model types
_SPACE = "▁"
_NEVER = -1e6
"""Log-probability of what stands in the vocabulary but is no piece of the source's model."""


def convert_slow(slow: Any) -> Tokenizer:
    """Convert a slow tokenizer of `transformers` that keeps a sentencepiece model.

    Raises:
        ImportError: A package that reads sentencepiece models is missing.
        ValueError: It has no sentencepiece model, or one that cannot be expressed.
    """
    model = _read_model(slow)
    languages: dict[str, int] = getattr(slow, "lang_token_to_id", {})
    vocabulary: dict[str, int] = slow.get_vocab() | languages
    unknown = str(slow.unk_token)
    pieces = {piece.piece: piece.score for piece in model.pieces if piece.type == _NORMAL}
    if model.trainer_spec.model_type == _UNIGRAM:
        tokenizer = _unigram(pieces, vocabulary, unknown)
    elif model.trainer_spec.model_type == _BPE:
        tokenizer = _bpe(pieces, vocabulary, unknown)
    else:
        raise ValueError("its sentencepiece model is neither unigram nor BPE")
    tokenizer.normalizer = _normalizer(model.normalizer_spec)
    prepend = "always" if model.normalizer_spec.add_dummy_prefix else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, prepend)
    tokenizer.decoder = decoders.Metaspace(_SPACE, prepend)
    tokenizer.add_special_tokens(
        [
            AddedToken(token, normalized=False, special=True)
            for token in sorted(
                {*_special(slow, vocabulary), *languages}, key=vocabulary.__getitem__
            )
        ]
    )
    tokenizer.post_processor = _template(slow)
    return tokenizer


def _read_model(slow: Any) -> Any:
    """Return the sentencepiece model of the source, as a parsed protocol buffer."""
    from transformers.convert_slow_tokenizer import import_protobuf

    files = [*getattr(slow, "spm_files", ()), getattr(slow, "spm_file", None)]
    path = next((file for file in files if file), None)
    if path is None:
        raise ValueError(f"{type(slow).__name__} has no tokenizer.json and cannot be given one")
    read: Any = import_protobuf
    model = read().ModelProto()
    with open(path, "rb") as file:
        model.ParseFromString(file.read())
    return model


def _unigram(pieces: Mapping[str, float], vocabulary: Mapping[str, int], unknown: str) -> Tokenizer:
    """Return the unigram model over the whole vocabulary, in the order of its ids.

    A piece without an id is left out: text is cut into smaller ones instead of the unknown token.
    """
    names = {token: name for name, token in vocabulary.items()}
    size = max(names) + 1
    listed = [names.get(token, f"<unused {token}>") for token in range(size)]
    scored = [(name, pieces.get(name, _NEVER)) for name in listed]
    return Tokenizer(Unigram(scored, unk_id=vocabulary[unknown], byte_fallback=False))


def _bpe(pieces: Mapping[str, float], vocabulary: Mapping[str, int], unknown: str) -> Tokenizer:
    """Return the BPE model; two pieces merge into any third, the likeliest first."""
    if lost := [piece for piece in pieces if piece not in vocabulary]:
        raise ValueError(f"{len(lost)} pieces of its BPE model, as {lost[0]!r}, have no token id")
    merges = [
        (piece[:cut], piece[cut:])
        for piece in sorted(pieces, key=lambda piece: -pieces[piece])
        for cut in range(1, len(piece))
        if piece[:cut] in pieces and piece[cut:] in pieces
    ]
    model = BPE(dict(vocabulary), merges, unk_token=unknown, fuse_unk=True)
    return Tokenizer(model)


def _normalizer(settings: Any) -> Any:
    """Return the sentencepiece model's own normalisation of text and of white space."""
    steps: list[Any] = []
    if settings.precompiled_charsmap:
        steps.append(normalizers.Precompiled(settings.precompiled_charsmap))
    if settings.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    return normalizers.Sequence(steps)


def _special(slow: Any, vocabulary: Mapping[str, int]) -> Iterator[str]:
    """Yield the tokens that are no text: end, padding, languages."""
    for name in vocabulary:
        language = name.startswith(">>") and name.endswith("<<")  # Marian's target languages
        if language or name in slow.all_special_tokens:
            yield name


def _template(slow: Any) -> TemplateProcessing:
    """Return what the tokenizer puts before and after a text."""
    mark = -1
    ids: list[int] = slow.build_inputs_with_special_tokens([mark])
    names = ["$A" if token == mark else slow.convert_ids_to_tokens(token) for token in ids]
    tokens = [(name, token) for name, token in zip(names, ids, strict=True) if token != mark]
    return TemplateProcessing(single=names, special_tokens=tokens)
