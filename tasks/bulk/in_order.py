"""Concurrent calls to S3 whose results come in the order of their arguments."""

import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from ..backoff import ceiling
from ..errors import StorageUnavailable

Item = TypeVar("Item")
Result = TypeVar("Result")

CALLS_PER_THREAD = 4  # pending or running calls, so that a slow call does not idle the others
TRIES = 6  # of a call while the store is unavailable, so that a long command outlives a disturbance
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 10.0


def in_order(
    work: Callable[[Item], Result], items: Iterable[Item], threads: int
) -> Iterator[Result]:
    """Yield the results of `work` for `items`, called on `threads` threads; raise its exceptions.

    `items` are read on demand. A call that raises StorageUnavailable is repeated after a pause.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix="in-order") as pool:
        pending: deque[Future[Result]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(_patiently, work, item))
                if len(pending) == CALLS_PER_THREAD * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _patiently(work: Callable[[Item], Result], item: Item) -> Result:
    for pauses in range(TRIES - 1):
        try:
            return work(item)
        except StorageUnavailable:
            longest = ceiling(pauses, FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)
            time.sleep(random.uniform(longest / 2, longest))
    return work(item)
