"""Start and stop the review desk."""

import asyncio
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import structlog
from tornado.httpserver import HTTPServer

from tasks.bulk.places import Places
from tasks.errors import (
    QueueUnavailable,
    SettingsInvalid,
    VeilError,
    log_fields,
)
from tasks.listening import sockets_at
from tasks.records import review
from tasks.redis.errors import connected
from tasks.storage.s3 import ObjectStore
from worker.bootstrap import build_viewer
from worker.desk import low_scores, server
from worker.desk.access import Access
from worker.desk.decisions import Desk
from worker.desk.items import Items
from worker.desk.origins import Origins, Proxies, bracketed
from worker.desk.views import Views
from worker.settings import LOOPBACK, WorkerSettings

if TYPE_CHECKING:
    from tasks.app import App

THREADS = 12
VIEWERS = 4  # picture processes at most
MAX_HEADER_BYTES = 1 << 14
MAX_LOW_SCORES = 10_000
RENEW_SECONDS = 10  # between two readings of the list

log = structlog.get_logger("veil")


@dataclass(frozen=True)
class Options:
    """The options of the command: see worker.commands.review."""

    host: str
    port: int
    reviewers: list[str]
    shows_sources: bool
    below: float | None
    places: list[Places]


def check(settings: WorkerSettings, options: Options) -> None:
    """Raise SettingsInvalid for a desk that others could open without its own address.

    Raise it also for tokens where a proxy names the reviewers, because nobody can use them.
    """
    if options.reviewers and settings.review_user_header is not None:
        raise SettingsInvalid(
            "--reviewer: VEIL_REVIEW_USER_HEADER is set, so the proxy names the reviewers: leave "
            "--reviewer out"
        )
    if settings.review_url is None and options.host not in LOOPBACK:
        raise SettingsInvalid(
            f"--http {options.host}:{options.port} is open to others: set VEIL_REVIEW_URL to "
            "the https:// address of the proxy, or listen on 127.0.0.1"
        )


async def serve(celery: "App", settings: WorkerSettings, options: Options) -> None:
    """Serve the desk until SIGTERM or SIGINT.

    Raises AddressInUse, SettingsInvalid and QueueUnavailable.
    """
    sockets = sockets_at(options.host, options.port)
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    port = sockets[0].getsockname()[1]
    address = settings.review_url or f"http://{bracketed(options.host)}:{port}"
    parts = _parts(celery, settings, options, port, address)
    parts.items.read()
    http = HTTPServer(
        server.application(parts),
        max_body_size=server.MAX_BODY_BYTES,
        max_buffer_size=server.MAX_BODY_BYTES,
        max_header_size=MAX_HEADER_BYTES,
    )
    http.add_sockets(sockets)
    _print_address(parts, address)
    if options.below is not None:
        _start_search(parts, settings, options, options.below)
    announcing = asyncio.create_task(_keep_up(parts, address))
    await stop.wait()
    announcing.cancel()
    http.stop()
    parts.threads.shutdown(wait=False, cancel_futures=True)


def _parts(
    celery: "App", settings: WorkerSettings, options: Options, port: int, address: str
) -> server.Parts:
    redis = celery.backend.client
    store = ObjectStore.connect(settings, connections=THREADS)
    routes = settings.parsed_routes()
    items = Items(redis, routes)
    password = settings.review_password.get_secret_value() if settings.review_password else ""
    needs_token = not password and settings.review_user_header is None
    reviewers = options.reviewers or (["reviewer"] if needs_token else [])
    local = [f"http://{bracketed(name)}:{port}" for name in LOOPBACK]
    headers = {route: settings.of_route(route).uploads().receipt for route in routes}
    links = {"Flower": settings.flower_url, "Grafana": settings.grafana_url}
    return server.Parts(
        celery=celery,
        redis=redis,
        access=Access.create(reviewers, password),
        items=items,
        views=Views(store, build_viewer(settings, VIEWERS), settings),
        desk=Desk(celery, store, routes, settings.receipt_keys(), items, headers),
        threads=ThreadPoolExecutor(THREADS, "desk"),
        origins=Origins.of([*local, address]),
        shows_sources=options.shows_sources,
        user_header=settings.review_user_header,
        proxies=Proxies.of(settings.review_proxies),
        links={name: url for name, url in links.items() if url},
        is_secure=urlsplit(address).scheme == "https",
    )


def _print_address(parts: server.Parts, address: str) -> None:
    """Print where to log in. A token stands after #, which browsers send to nobody."""
    for token, name in parts.access.tokens.items():
        print(f"{address}/login#token={token}  for {name}, once", flush=True)
    if not parts.access.tokens:
        print(address, flush=True)


def _start_search(
    parts: server.Parts, settings: WorkerSettings, options: Options, below: float
) -> None:
    """Search for outputs with a low score while the desk is open already."""
    store = ObjectStore.connect(settings)

    def search() -> None:
        try:
            for places in options.places:
                for item in low_scores.search(store, places, below, MAX_LOW_SCORES):
                    parts.items.add_low_scores([item])
        except VeilError as error:
            log.warning("search for low scores ended", **log_fields(error))

    threading.Thread(target=search, daemon=True).start()


async def _keep_up(parts: server.Parts, address: str) -> None:
    """Keep the list fresh, and tell `veil status` the address, as long as the desk is open."""

    def renew() -> None:
        with connected():
            review.announce_desk(parts.redis, address)
        parts.items.read()

    while True:
        try:
            await asyncio.get_running_loop().run_in_executor(parts.threads, renew)
        except QueueUnavailable as error:
            log.warning("review list not read", **log_fields(error))
        await asyncio.sleep(RENEW_SECONDS)
