"""A bundle's vocabulary and the constraints compiled for it."""

import re
import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from drl.runtime.constraints import grammars
from drl.runtime.constraints.failures import impossible
from drl.runtime.constraints.matcher import Matcher, MatcherTokens
from drl.runtime.constraints.processor import ConstraintProcessor, Places
from drl.runtime.constraints.progress import Constraint, Progress
from drl.runtime.constraints.tidiness import CLEAN, Tidiness
from drl.runtime.constraints.vocabulary import Vocabulary
from drl.runtime.errors import RequestError
from drl.runtime.generation import GenerationConfig
from drl.runtime.options.rules import CONSTRAINTS
from drl.runtime.text import Tokenizer

_MAX_COMPILED = 32
_MAX_BLANKS = 8
_PLACE = re.compile(r"^at \d+\(\d+\): ")


@dataclass(frozen=True, eq=False)
class _Prepared:
    """What all constraints of a bundle share."""

    vocabulary: Vocabulary
    tokens: MatcherTokens
    tidiness: Tidiness


class ConstraintCompiler:
    """Turns the options `json_schema`, `regex` and `grammar` into logits processors.

    Nothing is imported or computed before the first request with such an option. The latest
    constraints are kept compiled. May be called from several threads.

    What is generated is the text that the caller gets, but for white space at its ends that is
    trimmed from every result:
    - `json_schema`: a JSON document of the schema (draft 2020-12, the part that llguidance knows;
      the rest is refused). Properties come in the schema's order, and between the tokens of the
      document stands at most one space or line break.
    - `regex`: a text that matches as a whole. The notation is that of Rust's crate `regex`: like
      Python's, without look-around and back-references.
    - `grammar`: a sentence of a grammar in llguidance's variant of Lark's notation.

    A text that a limit or a stop string cuts off is only the beginning of one.

    Args:
        tokenizer: The bundle's tokenizer, or None if it has none.
        vocab_size: The number of the model's logits, which may exceed the tokenizer's vocabulary.
        eos: The end-of-sequence token.
    """

    def __init__(self, tokenizer: Tokenizer | None, vocab_size: int, eos: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos = eos
        self._lock = threading.Lock()
        self._compiled: OrderedDict[tuple[str, str], Progress] = OrderedDict()

    def processor(self, config: GenerationConfig) -> ConstraintProcessor | None:
        """A processor for one request, or None if its options hold it to nothing.

        Raises:
            BackendError: llguidance is missing.
            RequestError: The bundle has no tokenizer, or one whose tokens have no text of their
                own; the option is wrong; or this model cannot even begin a text that meets it.
        """
        given = [(name, getattr(config, name)) for name in CONSTRAINTS]
        found = [(name, str(value)) for name, value in given if value is not None]
        if not found:
            return None
        with self._lock:
            start = self._start(*found[0])
        positions = {position for position, _ in config.forced_decoder_ids}
        if config.forced_bos_token_id is not None:
            positions.add(1)
        forced = Places(frozenset(positions), config.forced_eos_token_id is not None)
        ends = (self._eos, *config.stop_token_ids)
        return ConstraintProcessor(start, ends, forced, config.num_beams > 1)

    def _start(self, option: str, value: str) -> Progress:
        """No text yet within a constraint; compiled if it is new."""
        key = (option, value)
        if key not in self._compiled:
            self._compiled[key] = self._compile(option, value)
            if len(self._compiled) > _MAX_COMPILED:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(key)
        return self._compiled[key]

    @cached_property
    def _prepared(self) -> _Prepared:
        if self._tokenizer is None:
            raise RequestError(
                "json_schema, regex and grammar need a tokenizer, and this bundle has none; "
                "export the model with its tokenizer.json"
            )
        vocabulary = Vocabulary.read(self._tokenizer, self._vocab_size)
        tokens = MatcherTokens(vocabulary)
        return _Prepared(vocabulary, tokens, Tidiness(tokens))

    def _compile(self, option: str, value: str) -> Progress:
        try:
            matcher = self._matcher(option, value)
        except ValueError as error:
            reason = str(error)
            if option == "regex":
                reason = _PLACE.sub("", reason)  # the place in the grammar around it
            raise RequestError(f"{option} is not understood: {reason}") from None
        prepared = self._prepared
        # A regular expression is compiled such that it matches nothing else but tidy texts.
        tidiness = None if option == "regex" else prepared.tidiness
        start = Progress(Constraint(option, prepared.vocabulary, tidiness), matcher)
        for first in (start, *_after_blanks(start)):
            if first.dead:
                raise self._reason(first)
        return start

    def _matcher(self, option: str, value: str) -> Matcher:
        tokens = self._prepared.tokens
        if option == "json_schema":
            return tokens.compile(grammars.from_schema(value))
        if option == "grammar":
            return tokens.compile(grammars.from_grammar(value))
        escaped = tokens.escape_regex(value)
        tokens.compile(grammars.from_regex(escaped))  # for an error about what the user wrote
        return tokens.compile(grammars.from_regex(escaped, CLEAN))

    def _reason(self, start: Progress) -> RequestError:
        """The error for a constraint that this model cannot begin to meet."""
        waits = start.matcher.next_bytes()
        if start.constraint.option == "regex" and not waits and not start.matcher.error:
            return RequestError(
                "regex matches no text that results can have, in which white space is one space, "
                "a line break or a blank line, and only within the text; change the regex"
            )
        return impossible(start, "")


def _after_blanks(start: Progress) -> list[Progress]:
    """What follows each first token, if white space is all that these can write."""
    pieces = start.constraint.vocabulary.pieces
    tokens = np.flatnonzero(np.unpackbits(start.allowed, bitorder="little")).tolist()
    if len(tokens) > _MAX_BLANKS or any(pieces[token].strip() for token in tokens):
        return []
    return [following for token in tokens if (following := start.after(token))]
