"""Traces: a package that is missing, or a wrong variable, is named in one line of the log."""

from importlib import metadata

import pytest
from structlog.testing import capture_logs

from tasks.telemetry import tracing

pytest.importorskip("opentelemetry.sdk")


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        (
            {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "pip install 'opentelemetry-exporter-otlp-proto-grpc'",
        ),
        (
            {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grcp"},
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL: grcp is no protocol",
        ),
        ({"OTEL_TRACES_EXPORTER": "absent"}, "exporter absent is installed: check OTEL_TRACES"),
        ({"OTEL_TRACES_EXPORTER": "console,absent"}, "exporter absent is installed"),
        ({}, "pip install '.[otel]'"),
    ],
)
def test_what_is_missing_is_named(monkeypatch, variables, reason):
    console = [
        found for found in metadata.entry_points(group=tracing.EXPORTERS) if found.name == "console"
    ]
    monkeypatch.setattr(
        tracing, "entry_points", lambda group, name: console if name == "console" else []
    )
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with capture_logs() as lines:
        tracing.configure("veil-test")
    (line,) = lines
    assert line["event"] == "no traces are exported"
    assert reason in line["reason"]
