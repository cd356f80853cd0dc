"""Beam search over one source: which hypotheses go on, which are complete, when to stop.

The rules are those of `transformers`, so that tokens and scores can be compared: of `(e + 1) * W`
candidates, `e` being the number of end tokens and `W` of beams, the best `W` may complete a
hypothesis and the best `W` that do not end go on; a hypothesis scores the sum of its
log-probabilities over its length to the power of the length penalty (Wu et al. 2016, "Google's
Neural Machine Translation System", in the simpler form that became common).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from drl.runtime.arrays import Int32
from drl.runtime.detokenizer import Detokenizer
from drl.runtime.generation import GenerationConfig
from drl.runtime.results import FinishReason, TopLogprobs
from drl.runtime.text import Tokenizer

# The score of beams that do not take part: all but one at the start, where all are the same.
UNUSED = -1e9
_LIVE = UNUSED / 2


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """A token of one or more hypotheses; the tokens before it are its ancestors.

    Attributes:
        parent: The token before; None for the root, which stands for start token and prefix.
        token: The token, -1 for the root.
        logprob: Its log-probability under the model.
        top: The likeliest tokens in its place, where asked for.
        experts: `[1, k]` experts per layer of the step that chose it, where asked for.
        detokenizer: The text so far, where stop strings are looked for.
    """

    parent: "Node | None"
    token: int
    logprob: float | None = None
    top: TopLogprobs | None = None
    experts: Mapping[int, Int32] | None = None
    detokenizer: Detokenizer | None = None

    def chain(self) -> list["Node"]:
        """The nodes from the first generated token to this one."""
        nodes = []
        node: Node | None = self
        while node is not None and node.parent is not None:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]


class Candidate(NamedTuple):
    """A way to go on: a score that includes the new token, a row, and the token."""

    score: float
    row: int
    token: int


@dataclass(frozen=True)
class Hypothesis:
    """A finished text: its score, its last token, and why it ended."""

    score: float
    node: Node
    reason: FinishReason


class Beams:
    """The beam search of one source: one search, or several that are kept apart.

    Several are diverse beam search (Vijayakumar et al. 2018, "Diverse Beam Search"): groups of
    beams that search one after the other at each step, each with a penalty on the tokens that the
    groups before it have just taken.

    Attributes:
        searches: One per group, of as many rows each.
    """

    def __init__(
        self, config: GenerationConfig, ends: Mapping[int, FinishReason], limit: int
    ) -> None:
        width = config.num_beams // config.num_beam_groups
        self.searches = [
            BeamSearch(config, width, ends, limit) for _ in range(config.num_beam_groups)
        ]
        self._stop_strings = config.stop_strings
        self._settled: Node | None = None

    @property
    def done(self) -> bool:
        """Whether no better hypothesis can be found."""
        return all(search.done for search in self.searches)

    def watch_text(self, tokenizer: Tokenizer, prefix: Sequence[int]) -> None:
        """Look for the stop strings, if there are any, in the text that follows a prefix."""
        if self._stop_strings:
            detokenizer = Detokenizer(tokenizer, self._stop_strings)
            for token in prefix:
                detokenizer.give(token)
            for search in self.searches:
                search.start_text(detokenizer)

    def newly_settled(self) -> list[Node]:
        """What all hypotheses that can still win begin with, behind what was settled before."""
        if len(self.searches) > 1:
            return []  # groups are kept apart from the first token on
        nodes = self.searches[0].settled_nodes(self._settled)
        if nodes:
            self._settled = nodes[-1]
        return nodes

    def cut(self, reason: FinishReason) -> None:
        """End the search as it stands: the live beams compete with what is complete."""
        for search in self.searches:
            search.cut(reason)

    def best(self, count: int) -> list[Hypothesis]:
        """The best of the complete hypotheses, as many as there are, best first."""
        found = [item for search in self.searches for item in search.finished]
        return sorted(found, key=lambda hypothesis: -hypothesis.score)[:count]


class BeamSearch:
    """The beams of one source, a row each.

    Rows are kept in place as far as possible: a beam whose best continuation survives stays in its
    row, and only the other continuations of a beam take rows over.

    Args:
        config: Length penalty and early stopping.
        width: Beams, W.
        ends: Tokens that end a hypothesis.
        limit: Most tokens to generate.

    Attributes:
        scores: Sum of log-probabilities per row.
        taken: Tokens of the last step's best beams that no end token ends, even if the search does.
        done: Whether no better hypothesis can be found.
    """

    def __init__(
        self,
        config: GenerationConfig,
        width: int,
        ends: Mapping[int, FinishReason],
        limit: int,
    ) -> None:
        self.width = width
        self.scores = [0.0] + [UNUSED] * (width - 1)
        self.taken: list[int] = []
        self.done = False
        self._nodes = [Node(None, -1)] * width
        self._finished: list[Hypothesis] = []
        self._config = config
        self._ends = ends
        self._limit = limit
        self._steps = 0

    @property
    def candidates_needed(self) -> int:
        """How many candidates `advance` wants: enough to go on if every beam could end."""
        return (1 + len(self._ends)) * self.width

    @property
    def finished(self) -> list[Hypothesis]:
        """The complete hypotheses, best first."""
        return self._finished

    def start_text(self, detokenizer: Detokenizer) -> None:
        """Begin every beam with a text, to which `advance`'s nodes add theirs."""
        self._nodes = [Node(None, -1, detokenizer=detokenizer)] * self.width

    def advance(
        self, candidates: Sequence[Candidate], extend: Callable[[Candidate, Node], Node]
    ) -> list[tuple[int, int, int]]:
        """Take a step.

        Args:
            candidates: The best continuations of the live beams, best first; or drawn ones, in the
                order of the draws.
            extend: Makes the node of a candidate behind its beam's node.

        Returns:
            (row, row whose beam is continued in it, token) of each beam that goes on; none if the
            search is done.
        """
        self._steps += 1
        going_on: list[tuple[Candidate, Node]] = []
        self.taken = []
        for rank, candidate in enumerate(candidates):
            if candidate.score <= _LIVE:
                continue
            node = extend(candidate, self._nodes[candidate.row])
            reason = self._reason(candidate.token, node)
            if reason in (None, "length") and len(self.taken) < self.width:
                self.taken.append(candidate.token)
            if reason is None:
                going_on.append((candidate, node))
            elif rank < self.width:
                self._complete(candidate.score, node, reason)
        going_on.sort(key=lambda item: -item[0].score)
        del going_on[self.width :]
        self.done = not going_on or self._settled(going_on[0][0].score)
        return [] if self.done else self._place(going_on)

    def cut(self, reason: FinishReason) -> None:
        """End the search as it stands: the live beams compete with what is complete."""
        if not self.done:
            self.done = True
            for score, node in zip(self.scores, self._nodes, strict=True):
                if score > _LIVE and node.parent is not None:
                    self._complete(score, node, reason)

    def settled_nodes(self, known: Node | None) -> list[Node]:
        """What all hypotheses that can still win begin with, behind the node known before."""
        live = [n for s, n in zip(self.scores, self._nodes, strict=True) if s > _LIVE]
        ends = [item.node.parent for item in self._finished if item.node.parent is not None]
        chains = [_behind(node, known) for node in (*live, *ends)]
        settled = []
        for nodes in zip(*chains, strict=False):
            if any(node is not nodes[0] for node in nodes):
                break
            settled.append(nodes[0])
        return settled

    def _reason(self, token: int, node: Node) -> FinishReason | None:
        reason = self._ends.get(token)
        if reason is None and node.detokenizer is not None and node.detokenizer.stopped:
            return "stop"
        if reason is None and self._steps >= self._limit:
            return "length"
        return reason

    def _complete(self, score: float, node: Node, reason: FinishReason) -> None:
        normalised = score / self._steps**self._config.length_penalty
        self._finished.append(Hypothesis(normalised, node, reason))
        self._finished.sort(key=lambda hypothesis: -hypothesis.score)
        del self._finished[self.width :]

    def _settled(self, best: float) -> bool:
        """Whether no live beam, the best scoring `best`, can improve on what is complete."""
        config = self._config
        if len(self._finished) < self.width:
            return False
        if config.early_stopping is True:
            return True
        longest = config.early_stopping == "never" and config.length_penalty > 0
        length = self._limit if longest else self._steps
        score: float = best / length**config.length_penalty
        return score <= self._finished[-1].score

    def _place(self, going_on: list[tuple[Candidate, Node]]) -> list[tuple[int, int, int]]:
        """Give each beam a row: its parent's if that is free, else one whose beam ended."""
        taken: dict[int, tuple[Candidate, Node]] = {}
        others = []
        for item in going_on:
            if item[0].row in taken:
                others.append(item)
            else:
                taken[item[0].row] = item
        free = [row for row in range(self.width) if row not in taken]
        # Where fewer beams go on than there are rows, the rest repeat one and take no part.
        others += [going_on[0]] * (len(free) - len(others))
        unused = len(free) + len(taken) - len(going_on)
        taken |= dict(zip(free, others, strict=True))
        for row, (candidate, node) in taken.items():
            self._nodes[row] = node
            self.scores[row] = candidate.score
        for row in free[len(free) - unused :]:
            self.scores[row] = UNUSED
        return [(row, item.row, item.token) for row, (item, _) in taken.items()]


def _behind(node: Node, known: Node | None) -> Iterator[Node]:
    """The nodes from the one behind `known` to `node`."""
    nodes = []
    while node.parent is not None and node is not known:
        nodes.append(node)
        node = node.parent
    return reversed(nodes)
