"""Traces with OpenTelemetry, if its extra is installed and the ``OTEL_`` variables ask for them.

A producer puts the context of its span into the headers of a message, in the form of the W3C
(``traceparent``). The worker continues this trace with a span for the delivery and one for each
stage. Spans have no address of a picture, because keys may hold names: the log has it by the task
id, which both have.
"""

import atexit
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any

import structlog

from ..extras import not_installed

TRACE_HEADERS = ("traceparent", "tracestate")
TRACE_HEADER_FORMS = {
    "traceparent": re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}"),
    "tracestate": re.compile(r"[\x20-\x7e]{1,512}"),
}
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
# The name of the exporter for each protocol of OTLP, and the package that has it.
OTLP_EXPORTERS = {
    "": "otlp_proto_http",
    "http/protobuf": "otlp_proto_http",
    "grpc": "otlp_proto_grpc",
}
PACKAGES = {
    "otlp_proto_http": ".[otel]",
    "otlp_proto_grpc": "opentelemetry-exporter-otlp-proto-grpc",
}
EXPORTERS = "opentelemetry_traces_exporter"  # the group of entry points of all exporters
SERVICE_NAME = "service.name"
FLUSH_SECONDS = 2.0

log = structlog.get_logger("veil")


class _NoExporter(Exception):
    """The variables name an exporter that is not installed, or an unknown protocol."""


class _Delivery:
    """The spans of a delivery at work: its own, and that of its current stage."""

    def __init__(self, tracer: Any, span: Any) -> None:
        self.span = span
        self._tracer = tracer
        self._stage: Any = None

    def begin_stage(self, name: str) -> None:
        self.end_stage()
        self._stage = self._tracer.start_span(name)

    def end_stage(self, error: str | None = None) -> None:
        if self._stage is not None:
            _end(self._stage, error)
            self._stage = None


_at_work: ContextVar[_Delivery | None] = ContextVar("veil_delivery", default=None)


def is_wanted(environment: Mapping[str, str]) -> bool:
    """Return whether the ``OTEL_`` variables ask for traces."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    exporter = environment.get("OTEL_TRACES_EXPORTER", "")
    if exporter:
        return exporter != "none"
    return any(environment.get(name) for name in ENDPOINTS)


def configure(service: str) -> None:
    """Export the spans of this process as the ``OTEL_`` variables say, if they ask for traces.

    `service` is the name of the process in traces, unless a variable names it.
    """
    if not is_wanted(os.environ):
        return
    if not find_spec("opentelemetry") or not find_spec("opentelemetry.sdk"):
        _warn(not_installed("opentelemetry-sdk", "otel"))
        return
    from opentelemetry import trace
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    named = OTELResourceDetector().detect().attributes.get(SERVICE_NAME)
    resource = Resource.create({SERVICE_NAME: named or service})
    # Its own handler waits for a collector that is away, for longer than a grace period.
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    try:
        for name in _exporters(os.environ):
            provider.add_span_processor(BatchSpanProcessor(_exporter(name)))
    except _NoExporter as error:
        _warn(str(error))
        return
    except Exception as error:  # whatever an exporter raises about its variables
        _warn(f"{type(error).__name__}: {error!s:.200}")
        return
    # A collector that is away would be a line for each try.
    logging.getLogger("opentelemetry").setLevel(logging.ERROR)
    trace.set_tracer_provider(provider)
    atexit.register(_flush, provider)


def inject(headers: dict[str, Any]) -> None:
    """Add the context of the current span to the `headers` of a message.

    A program that uses Veil as a library may have OpenTelemetry set up in its own way.
    """
    if api := _api():
        api.inject(headers)


@contextmanager
def publishing(messages: int) -> Iterator[None]:
    """Give the messages that are published in the block a span of their own as their parent."""
    if (api := _api()) is None:
        yield
        return
    tracer = api.trace.get_tracer("veil")
    attributes = {"messaging.system": "redis", "messaging.batch.message_count": messages}
    with tracer.start_as_current_span(
        "publish", kind=api.trace.SpanKind.PRODUCER, attributes=attributes
    ):
        yield


@contextmanager
def delivery(request: Any) -> Iterator[None]:
    """Trace the delivery of the message with Celery's `request` in this block."""
    if (api := _api()) is None:
        yield
        return
    headers = {name: request.get(name) for name in TRACE_HEADERS if request.get(name)}
    tracer = api.trace.get_tracer("veil")
    attributes = {
        "messaging.system": "redis",
        "messaging.message.id": str(request.id),
        "veil.attempt": (request.retries or 0) + 1,
    }
    span = tracer.start_span(
        "anonymize", api.extract(headers), api.trace.SpanKind.CONSUMER, attributes
    )
    current = _Delivery(tracer, span)
    token = _at_work.set(current)
    error: str | None = None
    try:
        with api.trace.use_span(span, record_exception=False, set_status_on_exception=False):
            yield
    except BaseException as raised:
        error = type(raised).__name__
        raise
    finally:
        _at_work.reset(token)
        current.end_stage(error)
        _end(span, error)


def begin_stage(name: str) -> None:
    """Begin the span of the stage `name`, and end that of the stage before it."""
    if current := _at_work.get():
        current.begin_stage(name)


def set_outcome(outcome: str) -> None:
    """Note how the current delivery ended."""
    if current := _at_work.get():
        current.span.set_attribute("veil.outcome", outcome)


def log_fields() -> dict[str, str]:
    """Return the fields that connect a log line with the trace of the current delivery."""
    if current := _at_work.get():
        context = current.span.get_span_context()
        if context.is_valid:
            return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}
    return {}


def valid_headers(sent: Mapping[str, Any]) -> dict[str, str]:
    """Return the trace headers in `sent`, headers of an untrusted message, that are valid."""
    valid = {}
    for name, form in TRACE_HEADER_FORMS.items():
        value = sent.get(name)
        if isinstance(value, str) and form.fullmatch(value):
            valid[name] = value
    return valid


class _Api:
    """The parts of OpenTelemetry's interface that this module uses."""

    def __init__(self) -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        propagator = TraceContextTextMapPropagator()
        self.trace = trace
        self.inject, self.extract = propagator.inject, propagator.extract


_loaded: _Api | None = None


def _api() -> _Api | None:
    """Return OpenTelemetry's interface if a program has set up tracing in this process."""
    global _loaded
    if _loaded is None and "opentelemetry.sdk.trace" in sys.modules:
        _loaded = _Api()
    return _loaded


def _exporters(environment: Mapping[str, str]) -> list[str]:
    """Return the names of the exporters, as their packages register them. Raises _NoExporter."""
    names = environment.get("OTEL_TRACES_EXPORTER") or "otlp"
    return [
        _otlp(environment) if name.strip() == "otlp" else name.strip() for name in names.split(",")
    ]


def _otlp(environment: Mapping[str, str]) -> str:
    """Return the name of the exporter of OTLP for the protocol that a variable names."""
    variable = next((name for name in PROTOCOLS if environment.get(name)), PROTOCOLS[-1])
    protocol = environment.get(variable, "").strip()
    if protocol not in OTLP_EXPORTERS:
        known = " or ".join(filter(None, OTLP_EXPORTERS))
        raise _NoExporter(
            f"{variable}: {protocol:.50} is no protocol of this exporter: use {known}"
        )
    return OTLP_EXPORTERS[protocol]


def _exporter(name: str) -> Any:
    """Return the exporter `name`. Raises _NoExporter if no package has it."""
    for found in entry_points(group=EXPORTERS, name=name):
        return found.load()()
    if package := PACKAGES.get(name):
        raise _NoExporter(f"the exporter {name} is not installed: pip install '{package}'")
    raise _NoExporter(
        f"no package with the exporter {name:.50} is installed: check OTEL_TRACES_EXPORTER"
    )


def _end(span: Any, error: str | None) -> None:
    """End `span`, with the name of an `error` and not its text, which may quote an address."""
    if error is not None:
        from opentelemetry.trace import Status, StatusCode

        span.set_status(Status(StatusCode.ERROR, error))
        span.set_attribute("error.type", error)
    span.end()


def _flush(provider: Any) -> None:
    """Export the last spans as the process ends, in FLUSH_SECONDS at most."""
    thread = threading.Thread(target=provider.force_flush, daemon=True)
    thread.start()
    thread.join(FLUSH_SECONDS)


def _warn(reason: str) -> None:
    log.warning("no traces are exported", reason=reason)
