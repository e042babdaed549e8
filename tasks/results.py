"""The results of tasks as producers read them."""

from typing import Any

from .redis.transport import PrimaryBackend

WORKERS_PACKAGE = "tasks"  # the name under which workers import this package


class ProducerBackend(PrimaryBackend):
    """Celery's Redis backend for producers.

    A stored error names the module of its class as the worker knows it, ``tasks.errors``. Celery
    looks that name up among the modules of the producer, where it is missing or another module if
    this package was imported as ``veil.tasks``.
    """

    def exception_to_python(self, exc: Any) -> Any:
        """Return the stored exception `exc` as an instance of the class of this package."""
        if isinstance(exc, dict) and isinstance(module := exc.get("exc_module"), str):
            exc = {**exc, "exc_module": local_module(module)}
        return super().exception_to_python(exc)


def local_module(name: str) -> str:
    """Return the name of a worker's module in this process; other names are returned unchanged."""
    package, dot, rest = name.partition(".")
    if package != WORKERS_PACKAGE or not dot:
        return name
    return f"{__package__}.{rest}"
