"""The parts of a worker that the task uses, and the interface of its pipeline."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ..messages import AnonymizeReport, AnonymizeRequest
from ..routes import Route, Routed, Routes
from .attempts import Deliveries
from .circuit_breaker import CircuitBreaker


class Pipeline(Protocol):
    """The work on one picture. All threads of a worker share one pipeline."""

    recipe: str
    recipes: Mapping[str, str]
    """The recipe of each route that has a name."""
    routes: Routes
    labels: tuple[str, ...]
    """The labels of the objects that are hidden."""

    def resolve(self, request: AnonymizeRequest) -> Routed:
        """Return `request` with its route; raise BucketNotAllowed if there is none."""

    def run(
        self, routed: Routed, on_stage: Callable[[str], None], confirm: Callable[[], None]
    ) -> AnonymizeReport:
        """Fetch, anonymize and store one picture; raise a VeilError that says who must act.

        `on_stage` is called with the name of each stage as it begins, and `confirm` before anything
        is stored. An error that they raise ends the work.
        """

    def check_store(self, route: Route) -> None:
        """Raise the VeilError that currently affects every picture on `route`, if there is one."""


class Dispatcher(Protocol):
    """Celery's dispatcher of events."""

    def send(self, kind: str, /, **fields: Any) -> None: ...


@dataclass
class Work:
    """The parts of one worker process. PipelineStep creates it before the first message."""

    pipeline: Pipeline
    deliveries: Deliveries
    circuit_breaker: CircuitBreaker
    dispatcher: Dispatcher | None = None
    """None until the worker is connected. EventsStep replaces it with each connection."""
