"""The processors that a request's options ask for, one after the other."""

from collections.abc import Sequence
from typing import cast

from drl.runtime.arrays import Float32
from drl.runtime.errors import RequestError, shorten
from drl.runtime.generation import GenerationConfig
from drl.runtime.processors.bias import Biases, SequenceBias, bar_words
from drl.runtime.processors.forcing import ForcedBos, ForcedEos, ForcedTokens
from drl.runtime.processors.foreign import ForeignProcessor
from drl.runtime.processors.length import ExponentialDecay, MinLength, MinNewTokens
from drl.runtime.processors.ngrams import EncoderNoRepeatNGram, NoRepeatNGram
from drl.runtime.processors.penalties import EncoderRepetitionPenalty, RepetitionPenalty
from drl.runtime.processors.protocol import BuiltInProcessor, DecodingState, LogitsProcessor
from drl.runtime.processors.suppression import SuppressAtBegin, SuppressTokens
from drl.runtime.processors.values import RemoveInvalidValues


def build_processors(
    config: GenerationConfig, eos: int, extra: Sequence[LogitsProcessor] = ()
) -> tuple[LogitsProcessor, ...]:
    """The processors of a request, in transformers' order.

    Args:
        config: The options.
        eos: The end-of-sequence token; the stop tokens of the config are end tokens as well.
        extra: Processors of the user and of constraints. They come last: what they bar must stay
            barred.

    Returns:
        The processors, hashable and equal if they do the same. `renormalize_logits` is not among
        them: in transformers it comes after the sampling filters, and matters to nothing but the
        scores of beams.

    Raises:
        RequestError: An extra processor cannot be called.
    """
    for processor in extra:
        if not callable(processor):
            raise RequestError(
                f"a processor must be callable with (state, scores), not {shorten(processor)}"
            )
    ends = tuple(dict.fromkeys((eos, *config.stop_token_ids)))
    chain: list[LogitsProcessor] = [*_weights_and_bars(config, ends)]
    chain += _lengths_and_forced(config, ends)
    chain += [_checked(processor) for processor in extra]
    return tuple(chain)


def _weights_and_bars(config: GenerationConfig, ends: tuple[int, ...]) -> list[LogitsProcessor]:
    chain: list[LogitsProcessor] = []
    if config.sequence_bias:
        chain.append(SequenceBias(cast(Biases, config.sequence_bias)))
    if config.encoder_repetition_penalty != 1.0:
        chain.append(EncoderRepetitionPenalty(config.encoder_repetition_penalty))
    if config.repetition_penalty != 1.0:
        chain.append(RepetitionPenalty(config.repetition_penalty))
    if config.no_repeat_ngram_size:
        chain.append(NoRepeatNGram(config.no_repeat_ngram_size))
    if config.encoder_no_repeat_ngram_size:
        chain.append(EncoderNoRepeatNGram(config.encoder_no_repeat_ngram_size))
    words = bar_words(config.bad_words_ids, ends)
    if words:
        chain.append(words)
    return chain


def _lengths_and_forced(config: GenerationConfig, ends: tuple[int, ...]) -> list[LogitsProcessor]:
    chain: list[LogitsProcessor] = []
    if config.min_length:
        chain.append(MinLength(config.min_length, ends))
    if config.min_new_tokens:
        chain.append(MinNewTokens(config.min_new_tokens, ends))
    if config.forced_bos_token_id is not None:
        chain.append(ForcedBos(config.forced_bos_token_id))
    if config.forced_eos_token_id is not None:
        forced = config.forced_eos_token_id
        chain.append(ForcedEos((forced,) if isinstance(forced, int) else tuple(forced)))
    if config.remove_invalid_values:
        chain.append(RemoveInvalidValues())
    if config.exponential_decay_length_penalty is not None:
        start, factor = config.exponential_decay_length_penalty
        chain.append(ExponentialDecay(start, factor, ends))
    if config.suppress_tokens:
        chain.append(SuppressTokens(tuple(config.suppress_tokens)))
    if config.begin_suppress_tokens:
        forced_first = config.forced_bos_token_id is not None
        chain.append(SuppressAtBegin(tuple(config.begin_suppress_tokens), forced_first))
    if config.forced_decoder_ids:
        chain.append(ForcedTokens(tuple(config.forced_decoder_ids)))
    return chain


def apply_processors(
    processors: Sequence[LogitsProcessor], state: DecodingState, scores: Float32
) -> Float32:
    """Run the processors on `[R, V]` scores, which may be changed in place, and return the result.

    Raises:
        RequestError: A processor that is not built in failed, or returned something other than
            `[R, V]` float32 scores without NaN. The message names its class.
    """
    for processor in processors:
        scores = _checked(processor)(state, scores)
    return scores


def _checked(processor: LogitsProcessor) -> LogitsProcessor:
    """The processor itself if its results need no check or get one already."""
    if isinstance(processor, BuiltInProcessor | ForeignProcessor):
        return processor
    return ForeignProcessor(processor)
