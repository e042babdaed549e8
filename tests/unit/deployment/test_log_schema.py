"""Each field of a log line is in docs/log.schema.json."""

import ast
import json
from pathlib import Path

from tasks.messages import AnonymizeReport

ROOT = Path(__file__).resolve().parents[3]
SCHEMA = json.loads((ROOT / "docs" / "log.schema.json").read_text())
METHODS = {"bind", "debug", "info", "warning", "error"}
UNLOGGED = {"boxes_xyxy", "left_xyxy"}


def is_of_log(call):
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
        return False
    owner = ast.unparse(call.func.value)
    return call.func.attr in METHODS and ("log" in owner or owner == "bound")


def test_each_field_that_the_code_logs_is_described():
    found = set()
    for folder in ("tasks", "worker"):
        for path in (ROOT / folder).rglob("*.py"):
            for call in filter(is_of_log, ast.walk(ast.parse(path.read_text()))):
                found |= {keyword.arg for keyword in call.keywords if keyword.arg}
    assert "task_id" in found
    missing = found - {"exc_info"} - SCHEMA["properties"].keys()
    assert missing == set()


def test_each_field_of_a_report_is_described():
    missing = AnonymizeReport.__dataclass_fields__.keys() - UNLOGGED - SCHEMA["properties"].keys()
    assert missing == set()


def test_each_field_has_a_description():
    assert all(field["description"] for field in SCHEMA["properties"].values())
