"""The log: its fields are in docs/log.schema.json, and its events in docs/monitoring.md."""

import ast
import json
import re
from pathlib import Path
from typing import get_args

from tasks.early_stop import STOPPED
from tasks.messages import AnonymizeReport, Status

ROOT = Path(__file__).resolve().parents[3]
SCHEMA = json.loads((ROOT / "docs" / "log.schema.json").read_text())
PAGE = (ROOT / "docs" / "monitoring.md").read_text()
LEVELS = {"info", "warning", "error", "critical"}  # a debug line is never written
METHODS = {"bind", "debug", *LEVELS}
UNLOGGED = {"boxes_xyxy", "left_xyxy"}
# The events that a call names by an expression.
NAMED = {"STOPPED": [STOPPED], "report.status": get_args(Status)}
# A row of a table of the log: its events and their levels.
EVENT_ROW = re.compile(r"^\| ((?:`[^`]+`(?:, )?)+) \| ([a-z, ]+) \|", re.MULTILINE)


def calls():
    """Yield each call in the code of workers, triggers and commands."""
    for folder in ("tasks", "worker"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call):
                    yield node


def is_of_log(call):
    if not isinstance(call.func, ast.Attribute):
        return False
    owner = ast.unparse(call.func.value)
    return call.func.attr in METHODS and ("log" in owner or owner == "bound")


def logged_events():
    """Return the levels of each event that the code logs."""
    found = {}
    for call in calls():
        if is_of_log(call) and call.func.attr in LEVELS:
            level = call.func.attr
        elif isinstance(call.func, ast.Name) and call.func.id == "log_retry":
            level = "warning"  # or debug
        else:
            continue
        event = call.args[0]
        literal = [event.value] if isinstance(event, ast.Constant) else NAMED[ast.unparse(event)]
        for name in literal:
            found.setdefault(name, set()).add(level)
    return found


def described_events():
    """Return the levels of each event in the tables of the page. A row may have one for all."""
    section = PAGE.partition("\n## Log\n")[2].partition("\n### Fields\n")[0]
    found = {}
    for cell, levels in EVENT_ROW.findall(section):
        names = re.findall(r"`([^`]+)`", cell)
        own = levels.split(", ")
        for name, level in zip(names, own if len(own) > 1 else own * len(names), strict=True):
            found.setdefault(name, set()).add(level)
    return found


def test_each_event_that_the_code_logs_is_described_with_its_level():
    logged = logged_events()
    assert len(logged) > 50
    assert described_events() == logged


def test_each_field_that_the_code_logs_is_described():
    found = set()
    for call in filter(is_of_log, calls()):
        found |= {keyword.arg for keyword in call.keywords if keyword.arg}
    assert "task_id" in found
    missing = found - {"exc_info"} - SCHEMA["properties"].keys()
    assert missing == set()


def test_each_field_of_a_report_is_described():
    missing = AnonymizeReport.__dataclass_fields__.keys() - UNLOGGED - SCHEMA["properties"].keys()
    assert missing == set()


def test_each_field_has_a_description():
    assert all(field["description"] for field in SCHEMA["properties"].values())
