"""Concurrent requests in one batch, from a bounded queue: whoever comes while a batch is computed
is in the next one, so that nobody waits for company."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class QueueFull(Exception):
    """There is no room for more requests.

    Args:
        retry_after: seconds until there should be, at least 1.
    """

    def __init__(self, waiting: int, retry_after: int):
        super().__init__(
            f"{waiting} prompts are waiting already, more than are answered in time: ask again in "
            f"{retry_after} s."
        )
        self.retry_after = retry_after


class Batcher(Generic[Item, Result]):
    """Items to results, computed in batches by one thread of its own.

    Args:
        work: a batch to its results, in order; an exception in place of a result is raised to
            whoever asked. If it raises, all of the batch get that, and it goes on.
        largest: most items of a batch.
        room: most items that wait.
        patience: most seconds of work, as of late, that may be in the queue for one more to come.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Item]], Sequence[Result | Exception]],
        *,
        largest: int,
        room: int,
        patience: float = math.inf,
    ):
        self.room, self.patience = room, patience
        self._work, self._largest = work, largest
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._more = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batch")
        self._task: asyncio.Task[None] | None = None
        self._per_item = 0.0  # seconds, of late

    @property
    def waiting(self) -> int:
        """Items in the queue."""
        return len(self._waiting)

    async def __call__(self, items: Sequence[Item]) -> list[Result | BaseException]:
        """Results in order; an exception where an item has none.

        Raises:
            QueueFull: not all of them fit into the queue now, so none was taken.
        """
        seconds = self.waiting * self._per_item
        if self.waiting + len(items) > self.room or seconds > self.patience:
            raise QueueFull(self.waiting, max(1, min(60, math.ceil(seconds))))
        loop = asyncio.get_running_loop()
        if self._task is None:
            self._task = loop.create_task(self._run())
        futures = [loop.create_future() for _ in items]
        self._waiting.extend(zip(items, futures, strict=True))
        self._more.set()
        return await asyncio.gather(*futures, return_exceptions=True)

    async def close(self) -> None:
        """End the thread; what waits is answered first."""
        while self._waiting:
            await asyncio.sleep(0.01)
        if self._task is not None:
            self._task.cancel()
        self._thread.shutdown()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._more.wait()
            batch = [self._waiting.popleft() for _ in range(min(self._largest, self.waiting))]
            if not self._waiting:
                self._more.clear()
            batch = [(item, future) for item, future in batch if not future.done()]
            if not batch:
                continue  # those who asked have gone
            started = time.perf_counter()
            items = [item for item, _ in batch]
            try:
                results = await loop.run_in_executor(self._thread, self._work, items)
            except Exception as error:  # of this batch: the next one is not concerned
                results = [error] * len(batch)
            seconds = (time.perf_counter() - started) / len(batch)
            self._per_item += 0.1 * (seconds - self._per_item)
            for (_, future), result in zip(batch, results, strict=True):
                if future.done():
                    continue
                if isinstance(result, BaseException):
                    future.set_exception(result)
                else:
                    future.set_result(result)
