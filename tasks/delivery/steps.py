"""Steps of a worker's start: build its parts, and send events in batches."""

import sys
from importlib.metadata import entry_points
from typing import Any, NoReturn

from celery import bootsteps
from celery.concurrency.thread import TaskPool
from celery.worker.control import Panel, nok

from ..early_stop import stop_at_once_on_signals
from ..errors import Permanent, SettingsInvalid, Transient
from ..extras import not_installed
from ..redis.clients import check_accepted
from ..results import WORKERS_PACKAGE
from .attempts import Deliveries
from .circuit_breaker import CircuitBreaker
from .transport import Transport
from .work import Pipeline, Work

TRANSPORT = f"{__package__}.transport:Transport"
BACKEND = f"{__package__}.acknowledgement:Backend"
UNUSABLE = 2  # the exit code of the ``veil`` command for a wrong setting or model
# Commands of Celery's remote control that workers refuse. Messages that a rate limit held back
# would stay in hand until the worker ends, also without the limit. Threads know no other of these.
REFUSED_COMMANDS = (
    "rate_limit",
    "time_limit",
    "autoscale",
    "pool_grow",
    "pool_shrink",
    "pool_restart",
)
MAX_EVENT_DELAY_SECONDS = 0.2  # before an event is sent to Flower


def installed_pipeline(app: Any, deliveries: Deliveries, name: str) -> Pipeline:
    """Return the pipeline of the entry point ``veil:pipeline``, or exit with a one-line message.

    `name` is that of the worker.

    The exit code is UNUSABLE if another start would fail in the same way, else 1.

    The entry point lets `tasks` start a pipeline without importing `worker`. The builder must run
    in a step, where an exit ends the start: Celery ignores errors in its worker signals.
    """
    if __package__ != f"{WORKERS_PACKAGE}.delivery":
        # The pipeline raises the errors of `tasks`, which would all be unknown here.
        _refuse(f"{__package__} serves producers only: start workers with `veil worker`")
    (builder,) = entry_points(group="veil", name="pipeline")
    try:
        pipeline: Pipeline = builder.load()(app, deliveries.record_stall, name)
    except ModuleNotFoundError as error:
        _refuse(not_installed(str(error.name), "worker"))
    except Permanent as error:
        _refuse(f"{type(error).__name__}: {error}")
    except Transient as error:
        sys.exit(f"veil: {type(error).__name__}: {error}")
    return pipeline


def check_redis(app: Any) -> None:
    """Exit with UNUSABLE if Redis refuses this worker."""
    try:
        check_accepted(app)
    except SettingsInvalid as error:
        _refuse(f"{type(error).__name__}: {error}")


def print_refusal(reason: str) -> None:
    """Print why the worker can't be used, in the form of the ``veil`` command's errors."""
    print(f"veil: {reason}", file=sys.stderr, flush=True)


def refuse_command(_state: Any, **_: Any) -> Any:
    """Answer a command of the remote control that would do harm or nothing."""
    return nok("workers of Veil refuse this command: see docs/monitoring.md (Flower)")


def _refuse(reason: str) -> NoReturn:
    print_refusal(reason)
    sys.exit(UNUSABLE)


class PipelineStep(bootsteps.Step):  # type: ignore[misc]
    """Build the worker's parts before it takes its first message, whichever command started it."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, **_: Any) -> None:
        stop_at_once_on_signals()
        if worker.pool_cls is not TaskPool:
            _refuse("a worker is one process with threads: leave out --pool")
        Panel.data.update(dict.fromkeys(REFUSED_COMMANDS, refuse_command))
        app = worker.app
        # Only workers take messages, so only they need the transport with leases.
        app.conf.broker_transport = TRANSPORT
        app.loader.override_backends = dict.fromkeys(("redis", "rediss"), BACKEND)
        check_redis(app)
        deliveries = Deliveries(app.backend.client)
        pipeline = app.build_pipeline(app, deliveries, worker.hostname)
        app.work = Work(
            pipeline=pipeline,
            deliveries=deliveries,
            circuit_breaker=CircuitBreaker(
                Transport.leases.set_paused, pipeline.check_store, pipeline.routes
            ),
        )


class EventsStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Send the events of tasks and of their stages in batches, a few times a second.

    A picture has nine events, and each event sent alone would be one message and one round trip.
    """

    requires = ("celery.worker.consumer.events:Events",)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._timer: Any = None

    def start(self, consumer: Any) -> None:
        dispatcher = consumer.app.work.dispatcher = consumer.event_dispatcher
        if consumer.hub:
            dispatcher.on_send_buffered = None
            self._timer = consumer.hub.call_repeatedly(MAX_EVENT_DELAY_SECONDS, dispatcher.flush)

    def stop(self, consumer: Any) -> None:
        if self._timer is not None:
            self._timer.cancel()
            consumer.event_dispatcher.flush()
