"""Data-parallel training on one machine: worker processes that add up their gradients.

One single-threaded process per core is faster than one process with many threads here: the
model is small, so threads would meet thousands of times a step and the processes meet once.
"""

import signal
from collections.abc import Callable
from typing import Any

import torch
import torch.multiprocessing as processes
from torch import Tensor


class Team:
    """What the workers share. Each holds one of these; `rank` 0 is the process the user started."""

    def __init__(self, workers: int, width: int) -> None:
        self.workers, self.rank = workers, 0
        self._parts = torch.zeros(workers, width).share_memory_()
        self._stop = torch.zeros(1).share_memory_()
        self._asked = False
        self._barrier = processes.get_context("spawn").Barrier(workers)

    def total(self, part: Tensor) -> Tensor:
        """Return the sum over all workers of `part` `[width]`, the same bits for each of them."""
        self._parts[self.rank] = part
        self._barrier.wait()
        total: Tensor = self._parts.sum(dim=0)
        self._barrier.wait()
        return total

    def request_stop(self) -> None:
        """Make `stopping` true from its next call on; counts in rank 0 only."""
        self._asked = True

    def stopping(self) -> bool:
        """Whether rank 0 was asked to stop; all workers call it together and hear the same."""
        if self.rank == 0:
            self._stop.fill_(float(self._asked))
        self._barrier.wait()
        answer = bool(self._stop.item())
        self._barrier.wait()
        return answer

    def work(self, task: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        """Run this worker's share; if it fails, the others fail too instead of waiting for it."""
        torch.set_num_threads(1)
        try:
            task(self, *arguments)
        except BaseException:
            self._barrier.abort()
            raise


def run_team(team: Team, task: Callable[..., None], *arguments: Any) -> None:
    """Run `task(team, *arguments)` here as rank 0 and in one new process for every other rank.

    Ctrl-C asks the team to stop at its next `stopping`.
    """
    context = processes.get_context("spawn")
    others = [
        context.Process(target=_run_member, args=(team, rank, task, arguments), daemon=True)
        for rank in range(1, team.workers)
    ]
    for other in others:
        other.start()
    previous = signal.signal(signal.SIGINT, lambda *_: team.request_stop())
    try:
        team.work(task, arguments)
    finally:
        signal.signal(signal.SIGINT, previous)
        for other in others:
            other.join()


def _run_member(
    team: Team, rank: int, task: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 tells everybody when to stop
    team.rank = rank
    team.work(task, arguments)
