"""Which decoding path a sequence takes: the caller's word, or the path router's under a budget."""

from collections.abc import Sequence

import numpy as np

from drl.runtime.arrays import Float32
from drl.runtime.errors import RequestError, nearest_name
from drl.runtime.manifest import PathInfo, RouterInfo

AUTO = "auto"


def choose_path(
    costs: Sequence[float],
    router: RouterInfo | None,
    path_logits: Float32 | None,
    budget: float = 1.0,
) -> int:
    """The path for one sequence.

    The candidates are the paths whose cost is within the budget, or the cheapest if none is. The
    heads `linear` and `attention` take the candidate of the largest logit (ties: the cheapest);
    `greedy` takes the cheapest whose sigmoid reaches the threshold, else the last candidate.
    Without a router the last candidate, which is the best that the budget buys, is taken.

    Args:
        costs: Cost of every path in (0, 1], ascending.
        router: The bundle's path router.
        path_logits: `[P]` logits of the router.
        budget: Largest cost, in [0, 1].
    """
    candidates = sum(cost <= budget for cost in costs) or 1
    if router is None or path_logits is None:
        return candidates - 1
    logits = path_logits[:candidates]
    if router.head != "greedy":
        return int(np.argmax(logits))
    # sigmoid(l) >= t, computed with exp of a non-positive number so that nothing overflows.
    small = np.exp(-np.abs(logits, dtype=np.float64))
    probabilities = np.where(logits >= 0, 1.0, small) / (1.0 + small)
    (accepted,) = np.nonzero(probabilities >= router.threshold)
    return int(accepted[0]) if accepted.size else candidates - 1


def find_path(paths: Sequence[PathInfo], path: object) -> int | None:
    """The index of a path given by name or index; None for `"auto"`.

    A string that is no name may be an index in digits, as commands receive it.

    Raises:
        RequestError: There is no such path; the message lists those there are.
    """
    names = [info.name for info in paths]
    if isinstance(path, str):
        if path in names:
            return names.index(path)
        if path == AUTO:
            return None
        if path.isascii() and path.isdigit() and len(path) < 9 and int(path) < len(names):
            return int(path)
    elif isinstance(path, int | np.integer) and not isinstance(path, bool):
        if 0 <= path < len(names):
            return int(path)
    else:
        raise RequestError(f"path must be a name or an index, not {type(path).__name__}")
    known = ", ".join([AUTO, *names])
    nearest = nearest_name(path, [AUTO, *names]) if isinstance(path, str) else None
    hint = f"did you mean {nearest!r}? " if nearest else ""
    raise RequestError(
        f"there is no path {path!r}; {hint}this bundle has {known} (or 0 to {len(names) - 1})"
    )
