"""Concurrent calls to S3 whose results come in the order of their arguments."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
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
    """
    with ThreadPoolExecutor(threads, thread_name_prefix="in-order") as pool:
        pending: deque[Future[Result]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(patiently, partial(work, item)))
                if len(pending) == CALLS_PER_THREAD * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
