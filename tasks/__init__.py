"""The interface between producers and workers: tasks, their options, reports and errors.

``from tasks import anonymize_image`` returns the task. A project with a module ``tasks`` of its own
imports the same names from ``veil.tasks``, so modules of this package import each other relatively.
Importing this package does not read the environment and does not import Celery; using one of the
names below does.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import errors
    from .anonymize import anonymize_image
    from .messages import AnonymizeOptions, AnonymizeReport

__all__ = ["AnonymizeOptions", "AnonymizeReport", "anonymize_image", "errors"]

MODULES = {
    "AnonymizeOptions": ".messages",
    "AnonymizeReport": ".messages",
    "anonymize_image": ".anonymize",
}


def __getattr__(name: str) -> Any:
    if name == "errors":
        return import_module(".errors", __name__)
    if name in MODULES:
        return getattr(import_module(MODULES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
