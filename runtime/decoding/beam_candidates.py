"""How the beams of one search may go on: the best ways, or drawn ones."""

from collections.abc import Sequence

import numpy as np

from drl.runtime.arrays import Float32, Float64, Int64
from drl.runtime.decoding.beam_phase import Member
from drl.runtime.decoding.beam_search import Candidate


def best_candidates(member: Member, tokens: Int64, totals: Float32) -> list[Candidate]:
    """The best of all rows together, ties by row and by their order in it.

    Args:
        member: The search, of W rows.
        tokens: `[W, n]`.
        totals: `[W, n]` scores that include these tokens.
    """
    return _first(totals, totals, tokens, member.search.candidates_needed)


def in_order(tokens: Int64, values: Float32) -> tuple[Int64, Float32]:
    """`[n, c]` tokens and their values, the largest value first, equal ones by token id.

    The order of logits is not yet that of log-probabilities: near-equal logits become equal when
    the normaliser is taken off. That is seldom, so most calls give back what they are given.
    """
    if not (values[:, 1:] >= values[:, :-1]).any():
        return tokens, values
    order = np.lexsort((tokens, -values), axis=1)
    return np.take_along_axis(tokens, order, axis=1), np.take_along_axis(values, order, axis=1)


def settled(members: Sequence[Member], values: Float32, floors: Float32) -> bool:
    """Whether no other token can be among the candidates of a search that does not sample.

    Args:
        members: The searches of a phase.
        values: `[n, c]` log-probabilities of all their rows, the largest first.
        floors: `[n]`: other tokens are this likely or less.
    """
    for member in members:
        if member.sampler is None:
            last = values[member.places, : member.search.candidates_needed][:, -1]
            behind = floors[member.places]
            # One that is as likely as the last would come before it if its id is lower.
            if ((behind >= last) & (behind > -np.inf)).any():
                return False
    return True


def weigh_candidates(
    members: Sequence[Member], values: Float32, floors: Float32
) -> list[Float64 | None] | None:
    """How likely the likeliest tokens are to be drawn, for each search that samples.

    Args:
        members: The searches of a phase.
        values: `[n, c]` log-probabilities of all their rows, the largest first, -inf for tokens
            that are barred.
        floors: `[n]`: other tokens are this likely or less.

    Returns:
        `[W, c]` weights per search, None for one that does not sample. None in the place of them
        all if one must look at more tokens: no search has drawn yet.
    """
    found: list[Float64 | None] = []
    for member in members:
        if member.sampler is None:
            found.append(None)
            continue
        own = member.places
        weights = member.sampler.weigh(values[own], floors[own])
        if weights is None:
            return None
        found.append(weights)
    return found


def drawn_candidates(
    member: Member, tokens: Int64, probabilities: Float64, scores: Float32, running: Float32
) -> list[Candidate]:
    """Candidates drawn without replacement, each in proportion to the exponential of its score.

    The largest of scores with Gumbel noise are such draws, in their order (Vieira 2014, "Gumbel-max
    trick and weighted reservoir sampling").

    Args:
        member: The search, of W rows.
        tokens: `[W, D]` what may be drawn; there is a random number for each.
        probabilities: `[W, D]`, 0 for what may not.
        scores: `[W, D]` log-probabilities before the filters.
        running: `[W]` scores of the beams so far.
    """
    config = member.request.config
    if config.renormalize_logits:
        with np.errstate(divide="ignore"):
            own = np.log(probabilities)
    else:
        own = scores / (config.temperature or 1.0)
    totals = np.where(probabilities > 0, own + running[:, None], -np.inf)
    assert member.generator is not None
    with np.errstate(divide="ignore"):
        keys = totals - np.log(-np.log(member.generator.random(totals.shape)))
    return _first(keys, totals, tokens, member.search.candidates_needed)


def _first(
    keys: Float32 | Float64, totals: Float32 | Float64, tokens: Int64, count: int
) -> list[Candidate]:
    """The `count` candidates with the largest of `[W, n]` keys, in their order."""
    order = np.argsort(-keys.ravel(), kind="stable")[:count]
    chosen = zip(
        totals.ravel()[order].tolist(),
        (order // totals.shape[1]).tolist(),
        tokens.ravel()[order].tolist(),
        strict=True,
    )
    return [Candidate(*item) for item in chosen]
