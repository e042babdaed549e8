"""``veil watch``: the process around one source of events."""

import asyncio
import os
import re

import structlog

from tasks import metrics
from tasks.app import app
from tasks.errors import SettingsInvalid
from tasks.publishing import Publisher
from tasks.settings import split_address
from tasks.uploads.stopping import Stop
from tasks.uploads.trigger import EventFilter, Trigger
from worker import logs
from worker.settings import WorkerSettings

# As long as a receipt key: nobody guesses it if it was drawn at random.
TOKEN = re.compile(r"[!-~]{32,}")

log = structlog.get_logger("veil")


def run(
    settings: WorkerSettings,
    *,
    sqs: str | None,
    http: str | None,
    poll: float | None,
    prefixes: list[str],
    suffixes: list[str],
    hold: float,
    overlap: float,
) -> None:
    """Put on the queue what is uploaded, as `sqs`, `http` or `poll` tell, until told to stop."""
    logs.configure(settings.log_format)
    wanted = EventFilter(settings.parsed_routes(), prefixes, suffixes)
    publisher = Publisher(app)
    trigger = Trigger(
        publisher, wanted, "http" if http is not None else "sqs" if sqs is not None else "poll"
    )
    metrics.serve(settings, app)
    if http is not None:
        _serve(settings, trigger, http, hold)
    else:
        stop = Stop()
        stop.on_signals()
        if sqs is not None:
            _take(settings, trigger, sqs, stop)
        elif poll is not None:
            _look(settings, trigger, poll, overlap, stop)
    publisher.close()
    log.info(
        "stopped", queued=trigger.queued, malformed=trigger.malformed, ignored=dict(trigger.ignored)
    )


def _serve(settings: WorkerSettings, trigger: Trigger, address: str, hold: float) -> None:
    from tasks.uploads import webhook

    token = settings.webhook_token.get_secret_value() if settings.webhook_token else ""
    if not TOKEN.fullmatch(token):
        raise SettingsInvalid(
            "VEIL_WEBHOOK_TOKEN, which senders must show, needs 32 characters or more, ASCII without spaces: make one "
            "with `openssl rand -hex 32`"
        )
    try:
        host, port = split_address(address)
    except ValueError as error:
        raise SettingsInvalid(f"--http {address}: {error}") from None
    asyncio.run(webhook.serve(trigger, app.backend.client, token, host, port, hold))


def _take(settings: WorkerSettings, trigger: Trigger, url: str, stop: Stop) -> None:
    from tasks.uploads.sqs import EventQueue, SqsSource

    queue = EventQueue.connect(settings, url, os.environ.get("AWS_ENDPOINT_URL_SQS"))
    log.info("watching", sqs=url)
    SqsSource(queue, trigger).run(stop)


def _look(
    settings: WorkerSettings, trigger: Trigger, interval: float, overlap: float, stop: Stop
) -> None:
    from tasks.storage.s3 import ObjectStore
    from tasks.uploads.polling import PollingSource

    places = [str(place) for place in trigger.filter.prefixes]
    log.info("watching", poll=interval, places=places)
    PollingSource(
        ObjectStore.connect(settings), app.backend.client, trigger, interval, overlap
    ).run(stop)
