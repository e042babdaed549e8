"""The interface between producers and workers: tasks, their options, reports and errors.

``from tasks import anonymize_image`` returns the task. Importing this package does not read the
environment and does not import Celery; using one of the names below does.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks import errors
    from tasks.anonymize import anonymize_image
    from tasks.messages import AnonymizeOptions, AnonymizeReport

__all__ = ["AnonymizeOptions", "AnonymizeReport", "anonymize_image", "errors"]

MODULES = {
    "AnonymizeOptions": "tasks.messages",
    "AnonymizeReport": "tasks.messages",
    "anonymize_image": "tasks.anonymize",
}


def __getattr__(name: str) -> Any:
    if name == "errors":
        return import_module("tasks.errors")
    if name in MODULES:
        return getattr(import_module(MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
