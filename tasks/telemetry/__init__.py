"""Telemetry: metrics, traces, and reports of defects."""
