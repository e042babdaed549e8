"""The server of the review desk: its pages, its JSON interface, and what it refuses.

Every answer has a strict policy: nothing from other places, no inline script, no frame. Nothing is
answered without a session but the page to log in and the files of the pages. Blocking work runs in
threads. No address holds a key of a picture, and the log has none either.
"""

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from types import TracebackType
from typing import Any, TypeVar

import structlog
from celery.result import AsyncResult
from celery.states import READY_STATES
from tornado.web import Application, Finish, HTTPError, RequestHandler

from tasks.addresses import ObjectUri
from tasks.errors import (
    InvalidRequest,
    ObjectNotFound,
    QueueUnavailable,
    SourceChanged,
    Transient,
    VeilError,
)
from tasks.messages import LOWEST_REGION
from tasks.records import samples
from tasks.redis.errors import connected
from worker import pages
from worker.commands.options import METHODS
from worker.desk import claims
from worker.desk.access import Access, Session, reviewer_name
from worker.desk.decisions import Choice, Decided, Desk, choice_of
from worker.desk.items import FILTERS, Item, Items, after, output_uri
from worker.desk.origins import Origins, Proxies
from worker.desk.views import Shown, Views
from worker.images.viewing import MAX_SIDE, View

PAGE_ITEMS = 60  # on a page of the list
MAX_OFFERED = 500  # pictures that are tried for a reviewer who wants the next one
MAX_BODY_BYTES = 1 << 20
THUMBNAIL_SIDE = 160
SIDES = range(64, MAX_SIDE + 1)
SESSION_COOKIE, XSRF_COOKIE = "veil_session", "veil_xsrf"
# Browsers take a cookie with this prefix only from the host itself and over TLS.
SECURE_PREFIX = "__Host-"
UNUSED_HEADER = "X-Veil-Unused"  # of what the page asks by itself: nobody uses it
POLICY = (
    "default-src 'none'; img-src 'self' blob:; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}
FILES = {
    "style.css": "text/css",
    "desk.css": "text/css",
    "desk.js": "text/javascript",
    "login.js": "text/javascript",
}
STATUS_OF = {ObjectNotFound: 404, SourceChanged: 409, InvalidRequest: 400, QueueUnavailable: 503}

# The part of a worker's report that the page shows.
REPORTED = (
    "status",
    "reason",
    "faces",
    "left",
    "warning",
    "boxes_xyxy",
    "labels",
    "box_labels",
    "options",
)

Result = TypeVar("Result")

log = structlog.get_logger("veil")


@dataclass(frozen=True)
class Parts:
    """The parts that handlers share. `origins` are those by which browsers may reach the desk."""

    celery: Any
    redis: Any
    access: Access
    items: Items
    views: Views
    desk: Desk
    threads: ThreadPoolExecutor
    origins: Origins
    shows_sources: bool
    user_header: str | None
    proxies: Proxies
    links: dict[str, str]
    is_secure: bool

    @property
    def cookie_prefix(self) -> str:
        return SECURE_PREFIX if self.is_secure else ""

    @property
    def cookie_options(self) -> dict[str, Any]:
        return {"httponly": True, "samesite": "Strict", "secure": self.is_secure}


class Handler(RequestHandler):
    """A handler that refuses strangers, and hides what went wrong inside."""

    is_public = False

    def initialize(self, parts: Parts) -> None:
        self.parts = parts
        self.reviewer: Session | None = None

    def set_default_headers(self) -> None:
        self.clear_header("Server")
        for name, value in HEADERS.items():
            self.set_header(name, value)

    def prepare(self) -> None:
        """Refuse requests for other hosts, from other sites, and without a session."""
        origins = self.parts.origins
        if self.request.host.lower() not in origins.hosts:
            raise HTTPError(421, reason="Wrong Host")
        origin = self.request.headers.get("Origin")
        if origin is not None and origin.lower() not in origins.pages:
            raise HTTPError(403)
        self.reviewer = self._session()
        if self.reviewer is None and not self.is_public:
            self._refuse_stranger()

    def _session(self) -> Session | None:
        """Return the session of the cookie, or the one that belongs to the proxy's header."""
        access, header = self.parts.access, self.parts.user_header
        cookie = self.get_cookie(self.parts.cookie_prefix + SESSION_COOKIE)
        if header is None:
            return access.session(cookie, is_used=self._is_use)
        sender = self.request.remote_ip
        if sender not in self.parts.proxies:
            raise HTTPError(401, reason=f"{sender} is no proxy of VEIL_REVIEW_PROXIES")
        name = self._name_in(header)
        if not name:
            raise HTTPError(401, reason=f"The proxy names no reviewer in {header}")
        session = access.session(cookie)
        if session is None or session.reviewer != name:
            session = access.begin(name)
            self.remember(session)
        return session

    @property
    def _is_use(self) -> bool:
        """True unless the page asks by itself. Its list, which grows by itself, has thumbnails."""
        is_thumbnail = self.request.path.startswith("/thumbnail/")
        return UNUSED_HEADER not in self.request.headers and not is_thumbnail

    def _name_in(self, header: str) -> str:
        """Return the reviewer's name in the proxy's `header`.

        If the header is there twice, a browser may have sent one, and it names nobody.
        """
        values = self.request.headers.get_list(header)
        if len(values) != 1:
            return ""
        try:
            return reviewer_name(values[0].encode("latin-1").decode("utf-8"))
        except UnicodeDecodeError:
            return reviewer_name(values[0])

    def remember(self, session: Session) -> None:
        """Send the cookie of `session`."""
        name = self.parts.cookie_prefix + SESSION_COOKIE
        self.set_cookie(name, session.id, **self.parts.cookie_options)

    def forget(self) -> None:
        """Take the cookie of the session back."""
        name = self.parts.cookie_prefix + SESSION_COOKIE
        self.clear_cookie(name, **self.parts.cookie_options)

    def _refuse_stranger(self) -> None:
        if self.request.method == "GET" and self.request.path == "/":
            self.redirect("/login")
            raise Finish
        raise HTTPError(401)

    @property
    def session(self) -> Session:
        assert self.reviewer is not None
        return self.reviewer

    def check_xsrf_cookie(self) -> None:
        try:
            super().check_xsrf_cookie()
        except HTTPError:
            raise HTTPError(403, reason="Forged Request") from None

    async def in_thread(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Return the result of `function` in a thread; its VeilError becomes an answer."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self.parts.threads, function, *arguments)
        except VeilError as error:
            self.refuse(error)
            raise Finish from None

    def refuse(self, error: VeilError) -> None:
        """Answer with `error`, which says who must act."""
        fallback = 503 if isinstance(error, Transient) else 422
        self.set_status(STATUS_OF.get(type(error), fallback))
        self.finish({"error": type(error).__name__, "message": str(error)})

    def body(self) -> dict[str, Any]:
        """Return the JSON object that was sent. Raises HTTPError for anything else.

        That includes halves of surrogate pairs, which no other program could read.
        """
        try:
            fields = json.loads(self.request.body or b"{}")
            json.dumps(fields, ensure_ascii=False).encode()
        except (ValueError, RecursionError):
            raise HTTPError(400) from None
        if not isinstance(fields, dict):
            raise HTTPError(400)
        return fields

    async def item(self, identity: str) -> Item:
        """Return the picture with this id. Raises HTTPError if it is not on the desk."""
        found = await self.in_thread(self.parts.items.find, identity)
        if found is None:
            raise HTTPError(404, reason="Not On The Desk")
        return found

    def page(self, template: str, **values: Any) -> None:
        """Answer with a page."""
        self.set_header("Content-Type", "text/html; charset=utf-8")
        token = self.xsrf_token.decode()
        self.finish(pages.loader().load(template).generate(token=token, **values))

    def write_error(self, status_code: int, **_: Any) -> None:
        self.finish({"error": self._reason, "status": status_code})

    def log_exception(
        self, typ: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Log a bug, without the request."""
        if typ and not issubclass(typ, HTTPError):
            log.error("bug", error=typ.__name__, exc_info=(typ, value, tb))


class LoginHandler(Handler):
    """The page to log in. A token in the fragment of its address never reaches a log."""

    is_public = True

    def get(self) -> None:
        """Answer with the page, which uses a token also if another reviewer is logged in here."""
        if self.parts.user_header is not None:
            self.redirect("/")
            return
        has_password = bool(self.parts.access.password)
        self.page("login.html", has_password=has_password, has_session=self.reviewer is not None)

    async def post(self) -> None:
        fields = self.body()
        if self.parts.user_header is not None:
            raise HTTPError(404)
        access = self.parts.access
        is_throttled = access.is_throttled
        secret, name = str(fields.get("secret", "")), str(fields.get("name", ""))
        try:
            session = access.log_in(secret, name)
        except InvalidRequest as error:
            self.refuse(error)
            return
        if session is None and is_throttled:
            raise HTTPError(429)
        if session is None:
            log.warning("login failed", sender=self.request.remote_ip)
            raise HTTPError(401, reason="Wrong Token, Password Or Name")
        if self.reviewer is not None:
            access.end(self.reviewer.id)
        log.info("logged in", reviewer=session.reviewer)
        self.remember(session)
        self.finish({"reviewer": session.reviewer})


class LogoutHandler(Handler):
    """The end of a session."""

    def post(self) -> None:
        self.parts.access.end(self.session.id)
        self.forget()
        self.finish({})


class DeskHandler(Handler):
    """The page of the desk."""

    def get(self) -> None:
        self.page(
            "desk.html",
            reviewer=self.session.reviewer,
            shows_sources=self.parts.shows_sources,
            methods=METHODS,
            lowest_region=LOWEST_REGION,
            links=self.parts.links,
            has_login=self.parts.user_header is None,
        )


class FileHandler(Handler):
    """A style or a script."""

    is_public = True

    def get(self, name: str) -> None:
        if name not in FILES:
            raise HTTPError(404)
        self.set_header("Content-Type", f"{FILES[name]}; charset=utf-8")
        self.set_header("Cache-Control", "no-cache")
        self.finish(pages.text(name))


class IconHandler(Handler):
    """The icon, which the desk has not."""

    is_public = True

    def get(self) -> None:
        self.set_status(204)
        self.finish()


class ListHandler(Handler):
    """A page of the list: ``state`` or ``sample``, and ``from``, the number of its first row."""

    async def get(self) -> None:
        state = self.get_query_argument("state", "")
        sample = self.get_query_argument("sample", "")
        first = self._first()
        items = await self.in_thread(_chosen, self.parts.items, state, sample)
        shown = items[first : first + PAGE_ITEMS]
        marked = await self.in_thread(_marks, self.parts.redis, sample)
        gone = {number for number, mark in marked.items() if mark.is_gone}
        rows = [
            {
                "id": item.id,
                "state": item.state,
                "title": item.title,
                "reason": item.reason,
                "faces": item.faces,
                "has_output": item.state != "held",
                "version": item.version,
                "marked": item.number in marked if item.sample else None,
                "is_gone": item.number in gone,
            }
            for item in shown
        ]
        counts = await self.in_thread(self.parts.items.counts)
        self.finish({"rows": rows, "count": len(items), "from": first, "counts": counts})

    def _first(self) -> int:
        text = self.get_query_argument("from", "0")
        if not text.isdecimal() or len(text) > 9:
            raise HTTPError(400)
        return int(text)


class SamplesHandler(Handler):
    """The samples, newest first."""

    async def get(self) -> None:
        with_counts = await self.in_thread(_samples, self.parts.redis)
        self.finish({"samples": with_counts})


class NextHandler(Handler):
    """Claim the next or the previous picture that nobody else has, or the one with an ``id``.

    Without one the answer has no ``id``.
    """

    async def post(self) -> None:
        fields = self.body()
        found = await self.in_thread(self._claimed, fields)
        if found is None and fields.get("id"):
            raise HTTPError(409, reason="Another Reviewer Has It")
        self.finish({"id": None} if found is None else found)

    def _claimed(self, fields: dict[str, Any]) -> dict[str, Any] | None:
        """Return the details of the picture that was claimed; None if there is none."""
        parts, session = self.parts, self.session
        candidates = {item.id: item for item in self._candidates(fields)}
        with connected():
            for identity in claims.free(parts.redis, list(candidates), session.holder):
                if not claims.claim(parts.redis, identity, session.holder):
                    continue
                details = self._details(candidates[identity], bool(fields.get("unmarked")))
                if details is None:
                    claims.release(parts.redis, identity, session.holder)
                    continue
                left = str(fields.get("after") or "")
                if left and left != identity:
                    claims.release(parts.redis, left, session.holder)
                return details
        return None

    def _candidates(self, fields: dict[str, Any]) -> list[Item]:
        """Return the pictures that may be shown, the best first."""
        parts = self.parts
        if wanted := fields.get("id"):
            known = parts.items.find(str(wanted))
            return [] if known is None else [known]
        sample = str(fields.get("sample") or "")
        items = _chosen(parts.items, str(fields.get("state") or ""), sample)
        marked = _marks(parts.redis, sample) if fields.get("unmarked") else {}
        shown = parts.items.find(str(fields.get("after") or ""))
        ring = after(items, shown, -1 if fields.get("back") else 1)
        unmarked = (item for item in ring if not item.sample or item.number not in marked)
        return list(islice(unmarked, MAX_OFFERED))

    def _details(self, item: Item, must_be_there: bool) -> dict[str, Any] | None:
        """Return what the page needs of a picture; None if it has left the list.

        A sampled output that was replaced or deleted is returned unless it `must_be_there`.
        """
        parts = self.parts
        present = parts.items.present(item)
        if present is None:
            parts.items.remove(item)
            return None
        mark, is_gone = None, False
        if present.sample is not None:
            is_gone = parts.desk.skip_if_gone(present, self.session.reviewer)
            mark = _marks(parts.redis, present.sample).get(present.number or 0)
        if is_gone and must_be_there:
            return None
        parts.items.keep(present)
        has_output, is_other_version = parts.desk.has_output(present)
        return {
            **asdict(present),
            "title": present.title,
            "version": present.version,
            "has_output": has_output,
            "is_other_version": is_other_version,
            "is_gone": is_gone,
            "mark": None if mark is None or mark.is_gone else asdict(mark),
        }


class ClaimHandler(Handler):
    """Renew or end the claim on a picture."""

    async def post(self, identity: str) -> None:
        end = bool(self.body().get("end"))
        if not await self.in_thread(self._renewed, identity, end):
            raise HTTPError(409, reason="Claimed By Another Reviewer")
        self.finish({})

    def _renewed(self, identity: str, end: bool) -> bool:
        with connected():
            if end:
                claims.release(self.parts.redis, identity, self.session.holder)
                return True
            return claims.claim(self.parts.redis, identity, self.session.holder)


class DecisionHandler(Handler):
    """Decide on a picture that this reviewer has claimed."""

    async def post(self, identity: str) -> None:
        fields = self.body()
        item = await self.item(identity)
        try:
            choice = choice_of(fields)
        except InvalidRequest as error:
            self.refuse(error)
            return
        decided = await self.in_thread(self._decide, item, fields, choice)
        log.info("decided", action=choice.action, reviewer=self.session.reviewer, picture=identity)
        self.finish({"task": None, "version": None} if decided is None else asdict(decided))

    def _decide(self, item: Item, fields: dict[str, Any], choice: Choice) -> Decided | None:
        parts = self.parts
        with connected():
            if not claims.claim(parts.redis, item.id, self.session.holder):
                raise SourceChanged("another reviewer has this picture")
        version = str(fields.get("version"))
        requested = parts.items.requested(item.id, version) if choice.action == "redo" else None
        present = requested or parts.items.present(item)
        if present is None:
            raise SourceChanged(f"{item.title} is no longer on the list: press n")
        if requested is None and not parts.items.is_version(present, version):
            raise SourceChanged(
                f"{item.title} was replaced or marked since it was shown: press n, and then p to "
                "see it as it is now"
            )
        return parts.desk.decide(present, choice, self.session.reviewer)


class ResultHandler(Handler):
    """The result of a request that a decision led to."""

    async def get(self, task_id: str) -> None:
        self.finish(await self.in_thread(self._result, task_id))

    def _result(self, task_id: str) -> dict[str, Any]:
        with connected():
            meta = AsyncResult(task_id, app=self.parts.celery)._get_task_meta()
        status = str(meta["status"])
        if status not in READY_STATES:
            return {"state": status.lower()}
        if status != "SUCCESS":
            error = meta["result"]
            return {"state": "dead", "error": type(error).__name__, "message": str(error)}
        report = meta["result"]
        return {"state": "done", **{name: report[name] for name in REPORTED if name in report}}


class PictureHandler(Handler):
    """A JPEG of an output or of a source, at most ``side`` pixels long, or of its part ``box``."""

    async def get(self, kind: str, identity: str) -> None:
        item = await self.item(identity)
        view = self._view(THUMBNAIL_SIDE if kind == "thumbnail" else None)
        if kind == "source":
            if not self.parts.shows_sources or item.source is None:
                raise HTTPError(403)
            source = ObjectUri.parse(item.source)
            shown = await self.in_thread(self.parts.views.source, source, view)
        else:
            uri = output_uri(item)
            if uri is None:
                raise HTTPError(404)
            shown = await self.in_thread(self.parts.views.output, uri, view)
            if kind == "thumbnail":  # whose address has the version
                self.set_header("Cache-Control", "private, max-age=600")
                self.set_header("Vary", "Cookie")
        self._send(shown)

    def _send(self, shown: Shown) -> None:
        self.set_header("Content-Type", "image/jpeg")
        self.set_header("X-Picture-Size", f"{shown.width}x{shown.height}")
        self.set_header("X-Picture-Note", shown.note)
        self.finish(shown.jpeg)

    def _view(self, side: int | None) -> View:
        try:
            side = side or int(self.get_query_argument("side", "2048")[:5])
            text = self.get_query_argument("box", "")
            sides = [int(part[:7]) for part in text.split(",")] if text else []
        except ValueError:
            raise HTTPError(400) from None
        if side not in SIDES or len(sides) not in (0, 4) or any(part < 0 for part in sides):
            raise HTTPError(400)
        if not sides:
            return View(side)
        x1, y1, x2, y2 = sides
        return View(side, (x1, y1, x2, y2))


class HealthHandler(Handler):
    """Whether the desk answers, for load balancers, which ask a pod by its address."""

    def prepare(self) -> None:
        """Refuse nobody: the answer says nothing."""

    def get(self) -> None:
        self.set_header("Content-Type", "text/plain")
        self.finish("ok\n")

    head = get


class UnknownHandler(Handler):
    """Any other address."""

    def get(self) -> None:
        raise HTTPError(404)

    post = put = delete = patch = head = options = get


def application(parts: Parts) -> Application:
    """Return the application of the desk."""
    identity = r"([0-9a-f]{24})"
    shared = {"parts": parts}
    routes: list[Any] = [
        (r"/", DeskHandler, shared),
        (r"/healthz", HealthHandler, shared),
        (r"/login", LoginHandler, shared),
        (r"/logout", LogoutHandler, shared),
        (r"/files/([a-z.]+)", FileHandler, shared),
        (r"/favicon.ico", IconHandler, shared),
        (r"/api/list", ListHandler, shared),
        (r"/api/samples", SamplesHandler, shared),
        (r"/api/next", NextHandler, shared),
        (rf"/api/claim/{identity}", ClaimHandler, shared),
        (rf"/api/decide/{identity}", DecisionHandler, shared),
        (r"/api/result/([0-9a-f-]{36})", ResultHandler, shared),
        (rf"/(output|source|thumbnail)/{identity}", PictureHandler, shared),
        (r".*", UnknownHandler, shared),
    ]
    return Application(
        routes,
        log_function=_log_refusal,
        xsrf_cookies=True,
        xsrf_cookie_name=parts.cookie_prefix + XSRF_COOKIE,
        xsrf_cookie_kwargs=parts.cookie_options,
    )


def _log_refusal(handler: RequestHandler) -> None:
    """Log refused requests with the reason, without their addresses."""
    if handler.get_status() in (401, 403, 421, 429, 500):
        sender, reason = handler.request.remote_ip, handler._reason
        log.warning("turned away", status=handler.get_status(), sender=sender, message=reason)


def _chosen(items: Items, state: str, sample: str) -> list[Item]:
    """Return the pictures of a sample, or of a state, or all on the list."""
    if sample:
        return items.sample(sample)
    return items.listed(state if state in FILTERS else None)


def _marks(redis: Any, sample: str) -> dict[int, samples.Mark]:
    if not sample:
        return {}
    with connected():
        return samples.marks(redis, sample)


def _samples(redis: Any) -> list[dict[str, Any]]:
    with connected():
        return samples.headers(redis)
