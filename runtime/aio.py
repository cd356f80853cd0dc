"""Requests of `asyncio` tasks: a thread decodes, and the event loop is never blocked."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Sequence
from itertools import islice

from drl.runtime.decoding import SequenceGroup
from drl.runtime.driver import Driver, Listener
from drl.runtime.results import Piece

_News = tuple[int, list[Piece], bool]


async def watch(
    driver: Driver, groups: Sequence[SequenceGroup], cancel: threading.Event, at_once: int = 1
) -> AsyncGenerator[_News, None]:
    """Run requests, and yield (number of the request, pieces, whether it is done) as they come.

    Args:
        driver: Runs them.
        groups: The requests, each with `cancel` as its cancellation.
        cancel: Set when the caller goes away, by the cancellation of its task too.
        at_once: Most requests to have under way: each step costs time for each of them.
    """
    loop = asyncio.get_running_loop()
    news: asyncio.Queue[_News] = asyncio.Queue()

    def listener(number: int) -> Listener:
        def post(pieces: list[Piece], done: bool) -> None:
            try:
                loop.call_soon_threadsafe(news.put_nowait, (number, pieces, done))
            except RuntimeError:  # the loop is closed, so nobody waits any more
                cancel.set()

        return post

    try:
        waiting = iter(enumerate(groups))
        room, left = at_once, len(groups)
        while left:
            for number, group in islice(waiting, room):
                driver.watch(group, listener(number))
            item = await news.get()
            room = int(item[2])
            left -= room
            yield item
    finally:
        cancel.set()
