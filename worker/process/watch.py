"""The interface of a watch over work that may stall."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

Watch = Callable[[str, float], AbstractContextManager[None]]
"""``watch(work, seconds)``: a context in which `work` counts as stalled after `seconds`."""


def unwatched(_work: str, _seconds: float) -> AbstractContextManager[None]:
    """Watch nothing: whoever runs a command by hand can end it."""
    return nullcontext()
