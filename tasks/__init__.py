"""What is asked of the workers: the language that producers and workers share.

``from tasks import anonymize_image`` gives the task; nothing is read from the environment before that.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.anonymize import anonymize_image

__all__ = ["anonymize_image"]


def __getattr__(name: str) -> Any:
    if name == "anonymize_image":
        from tasks.anonymize import anonymize_image

        return anonymize_image
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
