"""The HTTP API of the trigger: enqueue a picture, and ask how it stands."""

import asyncio
import hashlib
import json
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, TypeVar

from tornado.web import HTTPError

from ..errors import BucketNotAllowed, InvalidRequest, QueueUnavailable, VeilError
from ..messages import QUEUES, UPLOADS, AnonymizeRequest
from ..publishing import NAMESPACE, Publisher, Wanted
from ..redis.errors import connected
from ..routes import Routes
from .openapi import PATH, document
from .webhook import REDIS_AWAY, AuthorizedHandler, Handler, Intake, MoreHandlers

# The key of a hash with the source, the queue and the digest of a request, by task id.
REQUEST_KEY = "veil:request:{}"
RESULT_KEY = "celery-task-meta-{}"  # Celery's key of a result, by task id
MAX_ID_CHARACTERS = 128
# The status of a picture whose message has not ended, by the state that Celery stores.
UNENDED = {"PENDING": "queued", "RECEIVED": "queued", "STARTED": "working", "RETRY": "working"}
FIELDS = ("source", "destination", "options", "queue")

Answer = TypeVar("Answer")


class KeyReused(VeilError):
    """An Idempotency-Key came with another request before."""


class _StillWaits(Exception):
    """The same request has a message that has not ended."""


class Pictures:
    """The pictures that were requested over HTTP. Their results are kept for `result_seconds`.

    Each answer takes at most `answer_seconds`.
    """

    def __init__(
        self,
        publisher: Publisher,
        redis: Any,
        routes: Routes,
        result_seconds: float,
        answer_seconds: float,
    ) -> None:
        self._publisher = publisher
        self._redis = redis
        self._routes = routes
        self._result_seconds = int(result_seconds)
        self._answer_seconds = answer_seconds
        # A publisher is used by one thread.
        self._publishing = ThreadPoolExecutor(1)

    async def enqueue(self, body: bytes, idempotency_key: str | None) -> str:
        """Enqueue the picture that a request's `body` asks for, and return its id.

        Requests with the same key have the same id. Raises InvalidRequest, BucketNotAllowed,
        KeyReused or QueueUnavailable.
        """
        wanted, queue = self._parsed(body, idempotency_key)
        await self._answer(self._publishing, self._publish, wanted, queue)
        return wanted.task_id

    async def find(self, task_id: str) -> dict[str, Any] | None:
        """Return how the picture `task_id` stands; None if there is no such request.

        Raises QueueUnavailable.
        """
        return await self._answer(None, self._find, task_id)

    async def _answer(
        self, executor: Executor | None, function: Callable[..., Answer], *arguments: Any
    ) -> Answer:
        """Return what `function` does in a thread of `executor`.

        A Redis that hangs holds the thread for longer than `answer_seconds`. The requests behind
        must not pile up, so QueueUnavailable is raised.
        """
        running = asyncio.get_running_loop().run_in_executor(executor, function, *arguments)
        try:
            return await asyncio.wait_for(running, self._answer_seconds)
        except TimeoutError:
            raise QueueUnavailable(REDIS_AWAY) from None

    def _parsed(self, body: bytes, idempotency_key: str | None) -> tuple[Wanted, str]:
        try:
            fields = json.loads(body)
        except (ValueError, RecursionError):
            raise InvalidRequest("the body is no JSON") from None
        if not isinstance(fields, dict):
            raise InvalidRequest("the body must be a JSON object")
        if unknown := sorted(fields.keys() - set(FIELDS)):
            raise InvalidRequest(f"unknown field {unknown[0]!s:.40}: known are {', '.join(FIELDS)}")
        queue = fields.pop("queue", UPLOADS)
        if queue not in QUEUES:
            raise InvalidRequest(f"queue must be one of {', '.join(QUEUES)}")
        request = AnonymizeRequest.parse(**fields)
        self._routes.resolve(request)
        task_id = str(uuid.uuid4())
        if idempotency_key is not None:
            task_id = str(uuid.uuid5(NAMESPACE, f"request\n{idempotency_key}"))
        wanted = Wanted(request.source, request.destination, options=request.options, id=task_id)
        return wanted, queue

    def _publish(self, wanted: Wanted, queue: str) -> None:
        """Put the message and the record of a request into Redis, in one transaction.

        If the message of the same request has not ended, there is no other. Raises KeyReused if
        another request has this id.
        """
        key = REQUEST_KEY.format(wanted.task_id)
        digest = _digest(wanted, queue)

        def check(pipe: Any) -> None:
            pipe.watch(key)
            recorded = pipe.hget(key, "digest")
            if recorded is None:
                return
            if recorded.decode() != digest:
                raise KeyReused(
                    "this Idempotency-Key came with another request before: repeat that request, "
                    "or send this one with another key"
                )
            stored = pipe.get(RESULT_KEY.format(wanted.task_id))
            if _standing(stored)["status"] in UNENDED.values():
                raise _StillWaits

        def record(pipe: Any) -> None:
            source = str(wanted.source)
            fields = {"source": source, "queue": queue, "time": time.time(), "digest": digest}
            pipe.hset(key, mapping=fields)
            keep(pipe)

        def keep(pipe: Any) -> None:
            pipe.expire(key, self._result_seconds)

        try:
            self._publisher.publish(
                [wanted], queue, also_write=record, watch=check, keep_results=True
            )
        except _StillWaits:
            # A write, so that the answer waits until replicas have the first message, too.
            self._publisher.publish([], queue, also_write=keep)

    def _find(self, task_id: str) -> dict[str, Any] | None:
        with connected(), self._redis.pipeline() as pipe:
            pipe.hgetall(REQUEST_KEY.format(task_id)).get(RESULT_KEY.format(task_id))
            request, stored = pipe.execute()
        if not request:
            return None
        found = {"id": task_id, "source": request[b"source"].decode()}
        return found | _standing(stored)


def _digest(wanted: Wanted, queue: str) -> str:
    """Return the same text for requests that ask for the same, however their JSON is written."""
    asked = json.dumps([queue, *wanted.arguments], sort_keys=True)
    return hashlib.sha256(asked.encode()).hexdigest()


def _standing(stored: bytes | None) -> dict[str, Any]:
    """Return the status of a picture, with its report or its error, from Celery's result."""
    result: dict[str, Any] = json.loads(stored) if stored else {"status": "PENDING"}
    state: str = result["status"]
    value: Any = result.get("result")
    if state == "SUCCESS":
        return {"status": value["status"], "report": value}
    if state == "FAILURE":
        message = value.get("exc_message")
        text = message[0] if isinstance(message, list) and message else message
        return {"status": "dead", "error": {"name": value.get("exc_type"), "message": f"{text}"}}
    # Veil's own states name the stage of the work.
    return {"status": UNENDED.get(state, "working")}


class _PicturesHandler(AuthorizedHandler):
    """A handler that knows the pictures."""

    def initialize(  # type: ignore[override] # Tornado passes what the table of handlers has.
        self, intake: Intake, token: str, pictures: Pictures
    ) -> None:
        super().initialize(intake, token)
        self.pictures = pictures


class PicturesHandler(_PicturesHandler):
    """``POST /v1/pictures``: enqueue a picture."""

    METHODS = ("POST",)

    async def post(self) -> None:
        await self.answer(self._answer())

    async def _answer(self) -> None:
        key = self.request.headers.get("Idempotency-Key")
        if key is not None and not 1 <= len(key) <= MAX_ID_CHARACTERS:
            self.refuse(400, f"Idempotency-Key must have 1 to {MAX_ID_CHARACTERS} characters")
            return
        try:
            task_id = await self.pictures.enqueue(bytes(self.body), key)
        except InvalidRequest as error:
            self.refuse(400, str(error))
        except BucketNotAllowed as error:
            self.refuse(403, str(error))
        except KeyReused as error:
            self.refuse(422, str(error))
        except QueueUnavailable as error:
            self.refuse_for_now(error)
        else:
            self.set_status(202)
            self.set_header("Location", f"/v1/pictures/{task_id}")
            self.finish(json.dumps({"id": task_id, "status": "queued"}) + "\n")


class PictureHandler(_PicturesHandler):
    """``GET /v1/pictures/{id}``: how a picture stands."""

    METHODS = ("GET",)

    async def get(self, task_id: str) -> None:
        await self.answer(self._answer(task_id))

    async def _answer(self, task_id: str) -> None:
        try:
            found = await self.pictures.find(task_id)
        except QueueUnavailable as error:
            self.refuse_for_now(error)
            return
        if found is None:
            self.refuse(
                404, "no request has this id, or its result is older than VEIL_RESULT_HOURS"
            )
            return
        self.finish(json.dumps(found) + "\n")


class DocumentHandler(Handler):
    """``GET /v1/openapi.json``, without a token."""

    METHODS = ("GET",)

    def get(self) -> None:
        self.finish(json.dumps(document()) + "\n")


class UnknownHandler(Handler):
    """Any other path of the API, so that a misspelt one is not taken for an event."""

    METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")

    def prepare(self) -> None:
        super().prepare()
        raise HTTPError(404)


def handlers(pictures: Pictures) -> MoreHandlers:
    """Return the handlers of the API for webhook.serve."""

    def of(intake: Intake, token: str) -> Sequence[tuple[Any, ...]]:
        options = {"intake": intake, "token": token, "pictures": pictures}
        return [
            (PATH, PicturesHandler, options),
            (rf"{PATH}/([^/]{{1,{MAX_ID_CHARACTERS}}})", PictureHandler, options),
            (r"/v1/openapi.json", DocumentHandler),
            (r"/v1/.*", UnknownHandler),
        ]

    return of
