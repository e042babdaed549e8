"""The Celery app: broker, queues, routing and acknowledgement policy."""

import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from celery import Celery
from celery.exceptions import SecurityWarning
from celery.signals import before_task_publish, celeryd_init, import_modules
from kombu import Exchange, Queue, uuid

from . import core_dumps
from .delivery.shutdown import ShutdownStep
from .delivery.steps import EventsStep, PipelineStep, installed_pipeline
from .delivery.work import Work
from .errors import InvalidRequest, QueueUnavailable
from .messages import QUEUED_AT_HEADER, QUEUES, TASK, UPLOADS, AnonymizeRequest
from .redis.errors import connected
from .representation import shown
from .results import WORKERS_PACKAGE
from .routes import Routes
from .settings import Settings
from .telemetry import tracing

# The timeout of any answer of Redis, more than the second for which kombu lets Redis wait for a
# message.
REDIS_TIMEOUT_SECONDS = 20
PRODUCER_BACKEND = f"{__package__}.results:ProducerBackend"
PRODUCER_TRANSPORT = f"{__package__}.redis.transport:Transport"


class App(Celery):  # type: ignore[misc]
    """The Celery app of Veil's producers and workers."""

    work: Work
    """The parts that the task uses. PipelineStep sets it in workers; producers have none."""

    notifies = False
    """True if the outcomes of pictures are put into the outbox of notifications."""

    routes: Routes
    """The routes, which give messages their priorities."""

    sentinel_url: str | None = None
    """The address of the sentinels for Celery's own transport, if there are any."""

    build_pipeline = staticmethod(installed_pipeline)
    """Builds the pipeline. PipelineStep calls it with the app, the worker's deliveries and name."""

    def connection(self, *arguments: Any, **options: Any) -> Any:
        """Return a connection of Celery's own transport, by which Flower recognises the broker."""
        url = self.sentinel_url or self.conf.broker_write_url
        options.setdefault("transport", url.partition("://")[0])
        return super().connection(*(arguments or (url,)), **options)

    def send_task(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Put a message on the queue, as Celery does. Raises QueueUnavailable."""
        task_id = options["task_id"] = options.get("task_id") or uuid()
        try:
            with connected():
                return super().send_task(name, *arguments, **options)
        except QueueUnavailable:
            self.backend.result_consumer.cancel_for(task_id)
            raise

    def route_message(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], *_: Any, **__: Any
    ) -> dict[str, Any] | None:
        """Return the queue and the priority of a message, for Celery.

        A queue or a priority that the sender names is used instead.
        """
        if name != TASK:
            return None
        try:
            request = AnonymizeRequest.parse(source=args[0] if args else kwargs.get("source"))
        except InvalidRequest:  # of a sender that checks nothing; a worker refuses it
            return None
        return {"queue": UPLOADS, "priority": self.routes.priority_of(request.source)}


@before_task_publish.connect
def _add_headers(
    sender: str = "", body: Any = None, headers: dict[str, Any] | None = None, **_: Any
) -> None:
    if headers is None or sender != TASK:  # Celery sends this signal for every app in the process.
        return
    headers.setdefault(QUEUED_AT_HEADER, round(time.time(), 3))
    tracing.inject(headers)
    if not isinstance(body, dict):  # In message protocol 1 the body is a dict.
        headers["argsrepr"] = shown(body[0])


@import_modules.connect
def _prevent_core_dumps(sender: Any = None, **_: Any) -> None:
    """Prevent core dumps of Celery's own programs: workers, however started, and Flower.

    Programs that only enqueue pictures keep their own choice. They never send this signal, or send
    it for an app of their own.
    """
    if isinstance(sender, App):
        core_dumps.prevent()


@celeryd_init.connect
def _silence_superuser_warning(**_: Any) -> None:
    """Drop Celery's warning of a worker that runs as root, which is a paragraph and no log line.

    The logs of a worker have a warning of their own.
    """
    warnings.filterwarnings("ignore", "You're running the worker with superuser", SecurityWarning)


def create_app(settings: Settings) -> App:
    """Return the app for `settings`. The app connects on first use."""
    # Under any other name, this package is a library in a project with an app of its own. That app
    # must stay the current one: the project's shared tasks are sent with it.
    is_current = __package__ == WORKERS_PACKAGE
    app = App("veil", include=[f"{__package__}.anonymize"], set_as_current=is_current)
    app.sentinel_url = settings.sentinel_url()
    app.routes = settings.parsed_routes()
    app.notifies = settings.notify is not None
    app.loader.override_backends = dict.fromkeys(("redis", "rediss"), PRODUCER_BACKEND)
    app.conf.update(
        broker_url=settings.broker_url(),
        result_backend=settings.broker_url(),
        broker_transport=PRODUCER_TRANSPORT,
        broker_use_ssl=settings.tls_options() or None,
        result_expires=int(settings.result_hours * 3600),
        result_extended=True,
        # JSON only: any other content is refused before it is decoded.
        task_serializer="json",
        result_serializer="json",
        accept_content=["json"],
        result_accept_content=["json"],
        task_queues=[Queue(name, Exchange(name), routing_key=name) for name in QUEUES],
        task_default_queue=UPLOADS,
        task_create_missing_queues=False,
        # One retry, for a connection that was lost since its last use. Each may take
        # REDIS_TIMEOUT_SECONDS if Redis does not answer.
        task_publish_retry_policy={"max_retries": 1, "interval_start": 0},
        task_routes=app.route_message,
        # At-least-once delivery: a message is acknowledged after its picture is stored, and a
        # worker prefetches few messages.
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        broker_connection_retry_on_startup=True,
        # Retry without limit: after a repair of Redis, workers need no restart.
        broker_connection_max_retries=None,
        broker_transport_options={
            "queue_order_strategy": "priority",
            "lease_seconds": settings.lease_seconds,
            "socket_connect_timeout": 5,
            "socket_timeout": REDIS_TIMEOUT_SECONDS,
            "socket_keepalive": True,
            "health_check_interval": 25,
            **settings.transport_options(),
        },
        redis_socket_connect_timeout=5,
        redis_socket_timeout=REDIS_TIMEOUT_SECONDS,
        redis_socket_keepalive=True,
        redis_backend_health_check_interval=25,
        # One process with one model: TensorFlow does not survive a fork.
        worker_pool="threads",
        worker_soft_shutdown_timeout=settings.grace_seconds,
        worker_hijack_root_logger=False,
        # Celery would log each word of a traceback of the interpreter as a line of its own.
        worker_redirect_stdouts=False,
        # Flower shows these events and states.
        worker_send_task_events=True,
        task_track_started=True,
    )
    app.steps["worker"].update((PipelineStep, ShutdownStep))
    app.steps["consumer"].add(EventsStep)
    return app


app = create_app(Settings.load())
