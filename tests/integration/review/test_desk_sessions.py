"""Sessions of the review desk: a page that nobody uses does not keep its session."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

from tornado.httpclient import AsyncHTTPClient
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets

from tasks.routes import Routes
from tools.local.servers import HOST
from worker.desk import access, server
from worker.desk.access import IDLE_SECONDS, Access
from worker.desk.items import Items
from worker.desk.origins import Origins, Proxies

THUMBNAIL = f"/thumbnail/{'0' * 24}?version=1"  # of a picture that is not on the desk


def statuses(queue, sessions, session, requests):
    """The status of each of `requests`: its address, and its headers."""
    (listening,) = bind_sockets(0, HOST)
    address = f"http://{HOST}:{listening.getsockname()[1]}"
    parts = server.Parts(
        celery=queue.app,
        redis=queue.client,
        access=sessions,
        items=Items(queue.client, Routes.parse("s3://raw=s3://clean")),
        views=None,
        desk=None,
        threads=ThreadPoolExecutor(1),
        origins=Origins.of([address]),
        shows_sources=False,
        user_header=None,
        proxies=Proxies.of([]),
        links={},
        is_secure=False,
    )

    async def ask():
        http = HTTPServer(server.application(parts))
        http.add_sockets([listening])
        client = AsyncHTTPClient(force_instance=True)
        cookie = {"Cookie": f"{server.SESSION_COOKIE}={session.id}"}
        found = []
        for move_clock, path, headers in requests:
            move_clock()
            answer = await client.fetch(
                address + path, headers={**cookie, **headers}, raise_error=False
            )
            found.append(answer.code)
        client.close()
        http.stop()
        return found

    try:
        return asyncio.run(ask())
    finally:
        parts.threads.shutdown()


def test_a_list_that_grows_by_itself_is_no_use_of_a_session(unattended, monkeypatch):
    """The browser fetches the thumbnails of new pictures while nobody is there."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(access, "time", SimpleNamespace(monotonic=lambda: clock.now))
    sessions = Access()
    session = sessions.begin("ana")

    def later():
        clock.now += IDLE_SECONDS / 2 + 1

    by_itself = {server.UNUSED_HEADER: "yes"}
    asked = [(later, THUMBNAIL, {}), (later, "/api/list", by_itself)]
    assert statuses(unattended, sessions, session, asked) == [404, 401]
    used = sessions.begin("ben")
    asked = [(later, "/api/list", {}), (later, "/api/list", by_itself)]
    assert statuses(unattended, sessions, used, asked) == [200, 200]
