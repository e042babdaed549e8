"""Celery's Redis transport, which takes what is no task message off the queue and goes on.

Kombu 5.7 raises such an item's error in the worker's event loop, which ends the worker, or in one of its threads,
where the item stays unacknowledged and takes up a place for good.
"""

import base64
import json
from typing import Annotated, Any, Literal

import structlog
from kombu.transport import redis
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from tasks.app import QUEUES

log = structlog.get_logger("veil")


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True)


class _Headers(_Strict):
    task: str
    id: str
    retries: int = Field(0, ge=0)
    timelimit: Annotated[list[float | None], Field(min_length=2, max_length=2)] | None = None


class _Properties(_Strict):
    delivery_tag: str
    delivery_info: dict[str, Any]
    body_encoding: Literal["base64"]


class _Envelope(_Strict):
    """A message as Celery puts it on the list (message protocol 2), as far as it must be right to be delivered."""

    content_type: Literal["application/json"] = Field(alias="content-type")
    content_encoding: Literal["utf-8"] = Field(alias="content-encoding")
    headers: _Headers
    properties: _Properties
    body: str


_Body = TypeAdapter(tuple[list[Any], dict[str, Any], dict[str, Any] | None])


def defect(message: Any) -> str | None:
    """What keeps `message` from being a task message, in one line; None if nothing does."""
    try:
        envelope = _Envelope.model_validate(message)
        _Body.validate_python(json.loads(base64.b64decode(envelope.body, validate=True)))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(str(part) for part in first['loc']):.100}: {first['msg']}"
    except (ValueError, RecursionError) as error:
        return f"body: {type(error).__name__}"
    return None


class Channel(redis.Channel):  # type: ignore[misc]
    """Reads the queues."""

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)
        except (ValueError, RecursionError) as error:
            # It has left the queue, and did not get as far as `_deliver`: it is not JSON.
            log.error("junk on the queue", reason=type(error).__name__)
            return True


class Transport(redis.Transport):  # type: ignore[misc]
    """Hands on what the channels read."""

    Channel = Channel

    def _deliver(self, message: Any, queue: str) -> None:
        if queue in QUEUES and (reason := defect(message)):
            log.error("junk on the queue", queue=queue, reason=reason)
            return
        super()._deliver(message, queue)
