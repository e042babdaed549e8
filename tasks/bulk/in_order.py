"""Concurrent calls to S3 whose results come in the order of their arguments."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from ..backoff import patiently

Item = TypeVar("Item")
Result = TypeVar("Result")

CALLS_PER_THREAD = 4  # pending or running calls, so that a slow call does not idle the others


def in_order(
    work: Callable[[Item], Result], items: Iterable[Item], threads: int
) -> Iterator[Result]:
    """Yield the results of `work` for `items`, called on `threads` threads; raise its exceptions.

    `items` are read on demand. A call that raises StorageUnavailable is repeated after a pause.
    An exception does not wait for running calls, of which the store may hold up each for a minute.
    """
    is_over = threading.Event()

    def call(item: Item) -> Result:
        if is_over.is_set():
            raise CancelledError
        return work(item)

    pool = ThreadPoolExecutor(threads, thread_name_prefix="in-order")
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(patiently, partial(call, item)))
            if len(pending) == CALLS_PER_THREAD * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        is_over.set()
        pool.shutdown(wait=False, cancel_futures=True)
