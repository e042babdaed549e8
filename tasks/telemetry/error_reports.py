"""Reports of defects to Sentry, if its extra is installed and ``SENTRY_DSN`` is set.

A report has the class of an error and the lines of code that it passed through. It has no text of
the error, which may quote addresses or bytes of a picture, no values of variables, no environment
and no breadcrumbs: `scrubbed` keeps what is named there, and nothing else.
"""

import os
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import structlog

from ..extras import not_installed

DSN = "SENTRY_DSN"
FRAME_FIELDS = ("abs_path", "filename", "function", "in_app", "lineno", "module")
EVENT_FIELDS = ("environment", "event_id", "level", "platform", "release", "sdk", "timestamp")
TAGS = ("component", "task_id")
FLUSH_SECONDS = 2.0  # for reports when the process ends

log = structlog.get_logger("veil")


def configure(component: str) -> None:
    """Send reports of this process, a `component` such as ``worker``, if SENTRY_DSN is set."""
    if not os.environ.get(DSN):
        return
    if not find_spec("sentry_sdk"):
        log.warning("no reports are sent", reason=not_installed("sentry-sdk", "sentry"))
        return
    import sentry_sdk
    from sentry_sdk.integrations.atexit import AtexitIntegration
    from sentry_sdk.integrations.dedupe import DedupeIntegration
    from sentry_sdk.integrations.excepthook import ExcepthookIntegration
    from sentry_sdk.integrations.threading import ThreadingIntegration

    try:
        sentry_sdk.init(
            release=_release(),
            # The default integrations collect log lines, arguments and variables.
            default_integrations=False,
            auto_enabling_integrations=False,
            integrations=[
                AtexitIntegration(lambda *_: None),
                DedupeIntegration(),
                ExcepthookIntegration(),
                ThreadingIntegration(),
            ],
            include_local_variables=False,
            include_source_context=False,
            send_default_pii=False,
            max_breadcrumbs=0,
            shutdown_timeout=FLUSH_SECONDS,
            before_send=scrubbed,
            before_send_transaction=lambda *_: None,
        )
    except ValueError as error:  # BadDsn is one; its text has no key.
        log.warning("no reports are sent", reason=f"{DSN}: {error!s:.200}")
        return
    sentry_sdk.set_tag("component", component)


def capture(error: BaseException, task_id: str) -> None:
    """Report a defect that a picture met, without its address."""
    if not os.environ.get(DSN) or not find_spec("sentry_sdk"):
        return
    import sentry_sdk

    with sentry_sdk.new_scope() as scope:
        scope.set_tag("task_id", task_id)
        sentry_sdk.capture_exception(error)


def scrubbed(event: Any, _hint: Any) -> Any:
    """Return what may leave of `event`: the classes of errors, and where they were raised."""
    kept = {name: event[name] for name in EVENT_FIELDS if name in event}
    tags = event.get("tags") or {}
    kept["tags"] = {name: tags[name] for name in TAGS if name in tags}
    errors = []
    for error in (event.get("exception") or {}).get("values") or []:
        frames = (error.get("stacktrace") or {}).get("frames") or []
        kept_frames = [
            {name: frame[name] for name in FRAME_FIELDS if name in frame} for frame in frames
        ]
        errors.append(
            {
                "type": error.get("type"),
                "module": error.get("module"),
                "stacktrace": {"frames": kept_frames},
            }
        )
    kept["exception"] = {"values": errors}
    return kept


def _release() -> str | None:
    try:
        return f"veil@{version('veil')}"
    except PackageNotFoundError:
        return None
