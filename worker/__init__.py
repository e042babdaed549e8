"""The workers, and the engine for Python programs: ``from worker import Anonymizer``.

Heavy modules are not imported before that name is used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worker.engine import Anonymizer

__all__ = ["Anonymizer"]


def __getattr__(name: str) -> Any:
    if name == "Anonymizer":
        from worker.engine import Anonymizer

        return Anonymizer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
