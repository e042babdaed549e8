"""``veil watch``: the trigger, which puts pictures on the queue as they are uploaded."""

import asyncio
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import structlog
import typer

from tasks.early_stop import STOPPED, stop_at_once_on_signals
from tasks.errors import SettingsInvalid
from tasks.publishing import Publisher
from tasks.redis.clients import check_accepted, impatient_client
from tasks.settings import split_address
from tasks.telemetry import error_reports, metrics, tracing
from tasks.uploads.stopping import Stop
from tasks.uploads.trigger import EventFilter, Trigger
from worker import logs
from worker.bootstrap import start_notifications
from worker.commands.command import CommandApp
from worker.commands.exit_codes import ExitCode
from worker.commands.options import Suffix, refuse_without, utc_time
from worker.commands.queue import celery_app
from worker.settings import WorkerSettings

if TYPE_CHECKING:
    from tasks.app import App

HOLD_SECONDS, OVERLAP_SECONDS = 4.0, 3600.0
API_SECONDS = 3.0  # for Redis to answer a request of the HTTP API; then the answer is 503

log = structlog.get_logger("veil")


Sqs = Annotated[
    str | None, typer.Option(metavar="QUEUE_URL", help="Receive events from an SQS queue.")
]
Http = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="Serve a webhook to which a store posts events."),
]
Poll = Annotated[
    float | None,
    typer.Option(metavar="SECONDS", min=1, help="List the store at this interval, without events."),
]
Prefix = Annotated[
    list[str] | None,
    typer.Option(metavar="s3://BUCKET/PREFIX", help="Only objects below this address; repeatable."),
]
Hold = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS",
        min=0.1,  # With less, an event that Redis takes would be answered 503, and come again.
        max=3600,
        help="With --http: seconds to wait for Redis before answering 503, by default 4.",
    ),
]
Overlap = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS",
        min=0,
        help="With --poll: seconds before the newest known object that are listed again, by "
        "default 3600.",
    ),
]


def _since(text: str) -> datetime:
    """Parse ``now`` or an ISO 8601 time. Raise BadParameter."""
    return datetime.now(UTC) if text == "now" else utc_time(text)


Since = Annotated[
    datetime | None,
    typer.Option(
        parser=_since,
        metavar="TIME|now",
        help="With --poll: leave out objects that were modified before. It counts at the very "
        "first try to list a source and is kept in Redis; ISO 8601, UTC unless it has a zone.",
    ),
]

app = CommandApp()


@app.command()
def watch(
    sqs: Sqs = None,
    http: Http = None,
    poll: Poll = None,
    prefix: Prefix = None,
    suffix: Suffix = None,
    hold: Hold = None,
    overlap: Overlap = None,
    since: Since = None,
) -> ExitCode:
    """Put pictures on the queue as they are uploaded.

    Give one of --sqs, --http and --poll. SIGTERM stops the command.

    Example: veil watch --http 0.0.0.0:8080 --suffix .jpg
    """
    stop_at_once_on_signals()
    source = _one_source({"sqs": sqs, "http": http, "poll": poll})
    refuse_without("--http", http, {"--hold": hold})
    refuse_without("--poll", poll, {"--overlap": overlap, "--since": since})
    settings = WorkerSettings.load()
    logs.configure(settings.log_format, settings.redis_server())
    tracing.configure("veil-watch")
    error_reports.configure("watch")
    event_filter = EventFilter(settings.parsed_routes(), prefix or [], suffix or [])
    celery = celery_app()
    check_accepted(celery)
    publisher = Publisher(celery)
    trigger = Trigger(publisher, event_filter, source)
    metrics.serve(settings, celery, metrics.TRIGGER)
    start_notifications(settings, celery)
    if http is not None:
        _serve(celery, settings, trigger, http, HOLD_SECONDS if hold is None else hold)
    elif sqs is not None:
        _receive(settings, trigger, sqs)
    elif poll is not None:
        overlap_seconds = OVERLAP_SECONDS if overlap is None else overlap
        _poll(celery, settings, trigger, poll, overlap_seconds, since)
    publisher.close()
    log.info(
        STOPPED, queued=trigger.queued, malformed=trigger.malformed, ignored=dict(trigger.ignored)
    )
    return ExitCode.OK


def _one_source(given: Mapping[metrics.Source, object]) -> metrics.Source:
    sources = [name for name, value in given.items() if value is not None]
    if len(sources) != 1:
        raise typer.BadParameter("give one of --sqs, --http and --poll")
    return sources[0]


def _serve(
    celery: "App", settings: WorkerSettings, trigger: Trigger, address: str, hold_seconds: float
) -> None:
    """Serve the webhook. Raise SettingsInvalid without a token, or for a wrong address."""
    from tasks.uploads import api, webhook

    if settings.webhook_token is None:
        raise SettingsInvalid(
            "--http needs VEIL_WEBHOOK_TOKEN, which senders must show: make one with "
            "`openssl rand -hex 32`"
        )
    token = settings.webhook_token.get_secret_value()
    try:
        host, port = split_address(address)
    except ValueError as error:
        raise SettingsInvalid(f"--http {address}: {error}") from None
    redis = celery.backend.client
    pictures = api.Pictures(
        Publisher(celery),
        impatient_client(celery, API_SECONDS),
        settings.parsed_routes(),
        settings.result_hours * 3600,
        API_SECONDS,
    )
    asyncio.run(
        webhook.serve(trigger, redis, token, host, port, hold_seconds, api.handlers(pictures))
    )


def _receive(settings: WorkerSettings, trigger: Trigger, url: str) -> None:
    """Receive events from the SQS queue at `url`."""
    from tasks.uploads.sqs import EventQueue, SqsSource

    stop = _stop_on_signals()
    queue = EventQueue.connect(settings, url, os.environ.get("AWS_ENDPOINT_URL_SQS"))
    SqsSource(queue, trigger).run(stop)


def _poll(
    celery: "App",
    settings: WorkerSettings,
    trigger: Trigger,
    interval_seconds: float,
    overlap_seconds: float,
    since: datetime | None,
) -> None:
    """List the places of the trigger again and again."""
    from tasks.storage.s3 import ObjectStore
    from tasks.uploads.polling import PollingSource

    stop = _stop_on_signals()
    places = [str(prefix) for prefix in trigger.filter.prefixes]
    log.info("watching", poll=interval_seconds, places=places)
    source = PollingSource(
        ObjectStore.connect(settings),
        celery.backend.client,
        trigger,
        interval_seconds,
        overlap_seconds,
        since.timestamp() if since else None,
    )
    source.run(stop)


def _stop_on_signals() -> Stop:
    stop = Stop()
    stop.on_signals()
    return stop
