"""The Celery app: broker, queues, routing and acknowledgement policy."""

import sys
import time
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Any

from celery import Celery, bootsteps
from celery.signals import before_task_publish, import_modules
from celery.utils.saferepr import saferepr
from kombu import Exchange, Queue

from tasks import core_dumps
from tasks.delivery.attempts import Deliveries
from tasks.delivery.circuit_breaker import CircuitBreaker
from tasks.delivery.shutdown import ShutdownStep
from tasks.errors import VeilError
from tasks.messages import QUEUED_AT_HEADER
from tasks.settings import Settings

TASK = "veil.anonymize_image"
UPLOADS = "uploads"
BACKFILL = "backfill"
TRANSPORT = "tasks.delivery.transport:Transport"
REDIS_SECONDS = 20  # for any answer; above the second for which kombu lets Redis wait for a message
EVENTS_SECONDS = 0.2  # that Flower may lag behind
MOST_SHOWN = 2500  # characters of arguments in Flower and in each event: two of the longest addresses fit
QUEUES = (UPLOADS, BACKFILL)  # strict priority: an upload never waits for a backfill


class PipelineStep(bootsteps.Step):  # type: ignore[misc]
    """Build the pipeline before the worker takes its first message, whichever command started it.

    The builder is found by its entry point, so that `tasks` need not import `worker`. Celery swallows
    what its worker signals raise; a step's error ends the start, as it must.
    """

    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, **_: Any) -> None:
        app = worker.app
        # Not among the settings below: Flower tells brokers apart by their scheme, and only workers take messages.
        app.conf.broker_transport = TRANSPORT
        app.loader.override_backends = dict.fromkeys(("redis", "rediss"), "tasks.delivery.acknowledgement:Backend")
        from tasks.delivery.transport import Transport

        app.deliveries = Deliveries(app.backend.client)
        app.circuit_breaker = CircuitBreaker(Transport.leases.pause)
        if getattr(app, "pipeline", None) is not None:
            return
        (builder,) = entry_points(group="veil", name="pipeline")
        try:
            app.pipeline = builder.load()()
        except ModuleNotFoundError as error:
            sys.exit(f"veil: {error.name} is not installed here: pip install 'veil[worker]'")
        except VeilError as error:
            sys.exit(f"veil: {type(error).__name__}: {error}")


class EventsStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Tell of tasks a few times a second, not each time, and let them tell of their stages the same way.

    A picture has nine events, and each is a message and a round trip if it goes alone.
    """

    requires = ("celery.worker.consumer.events:Events",)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._timer: Any = None

    def start(self, consumer: Any) -> None:
        dispatcher = consumer.app.dispatcher = consumer.event_dispatcher
        if consumer.hub:
            dispatcher.on_send_buffered = None
            self._timer = consumer.hub.call_repeatedly(EVENTS_SECONDS, dispatcher.flush)

    def stop(self, consumer: Any) -> None:
        if self._timer is not None:
            self._timer.cancel()
            consumer.event_dispatcher.flush()


def shown(arguments: Sequence[Any]) -> str:
    """Return the arguments of a message as Flower shows them, in the place of ``('s3://raw/a.jpg',)``.

    A longer text than MOST_SHOWN is cut: it is part of the message and of its events.
    """
    addresses = [address for address in arguments[:2] if address is not None]
    if all(isinstance(address, str) for address in addresses):
        text = " ".join((" → ".join(addresses), *map(str, arguments[2:])))
    else:
        text = saferepr(tuple(arguments), MOST_SHOWN)
    return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN - 1]}…"


@before_task_publish.connect
def _stamp(sender: str = "", body: Any = None, headers: dict[str, Any] | None = None, **_: Any) -> None:
    if headers is not None:
        headers.setdefault(QUEUED_AT_HEADER, round(time.time(), 3))
        if sender == TASK and not isinstance(body, dict):  # which it is in message protocol 1
            headers["argsrepr"] = shown(body[0])


@import_modules.connect
def _leave_no_core(**_: Any) -> None:
    """Prevent core dumps in Celery's own programs: workers, however they are started, and Flower.

    Programs that merely put pictures on the queue never send this signal, and keep what they chose.
    """
    core_dumps.prevent()


def create_app(settings: Settings) -> Celery:
    """The app for `settings`. It connects on first use, not here."""
    app = Celery("veil", include=["tasks.anonymize"])
    app.conf.update(
        broker_url=settings.broker_url(),
        result_backend=settings.broker_url(),
        result_expires=int(settings.result_hours * 3600),
        result_extended=True,
        # JSON only: content of any other kind is refused before it is decoded.
        task_serializer="json",
        result_serializer="json",
        accept_content=["json"],
        result_accept_content=["json"],
        task_queues=[Queue(name, Exchange(name), routing_key=name) for name in QUEUES],
        task_default_queue=UPLOADS,
        task_create_missing_queues=False,
        # At least once: a message is acknowledged after its picture, and a worker holds few of them.
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,  # forever: what is wrong with Redis is put right at Redis
        broker_transport_options={
            "queue_order_strategy": "priority",
            "lease_seconds": settings.lease_seconds,
            "socket_connect_timeout": 5,
            "socket_timeout": REDIS_SECONDS,
            "socket_keepalive": True,
            "health_check_interval": 25,
        },
        redis_socket_connect_timeout=5,
        redis_socket_timeout=REDIS_SECONDS,
        redis_socket_keepalive=True,
        redis_backend_health_check_interval=25,
        # One process, one model: TensorFlow does not survive a fork.
        worker_pool="threads",
        worker_soft_shutdown_timeout=settings.grace_seconds,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,  # a traceback of the interpreter's own would become a line of log for each word
        # What Flower shows.
        worker_send_task_events=True,
        task_track_started=True,
    )
    app.steps["worker"].update((PipelineStep, ShutdownStep))
    app.steps["consumer"].add(EventsStep)
    app.dispatcher = None
    return app


app = create_app(Settings.load())
