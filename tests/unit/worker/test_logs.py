"""Logs hold no values of variables, and messages cannot add lines or control a terminal."""

import json
import logging
import subprocess
import sys
from importlib import import_module

import pytest
import structlog
import typer
from celery.signals import worker_ready
from redis.exceptions import NoPermissionError

from tasks.redis.errors import ASK_FOR_RIGHT
from worker import cli, logs


@pytest.fixture
def logged(capsys):
    """``logged(form, **fields)`` returns the text of a log line with these fields."""

    def write(form, **fields):
        logs.configure(form)
        structlog.get_logger("veil").error("dead", **fields)
        return capsys.readouterr().err

    return write


@pytest.mark.parametrize(
    ("variables", "is_coloured"),
    [
        ({}, False),
        ({"FORCE_COLOR": "1"}, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
        ({"FORCE_COLOR": "1", "NO_COLOR": ""}, True),
    ],
    ids=str,
)
def test_the_console_log_has_colours_on_a_terminal_unless_they_are_refused(
    logged, monkeypatch, variables, is_coloured
):
    for name in ("FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    assert ("\x1b[" in logged("console", source="s3://raw/a.jpg")) is is_coloured


BROUGHT = (
    "a\x1b[31mb",
    "a\nb",
    "a\r\x08b",
    "\u202eb",
    "s3://raw/a\n2026-01-01 [info] anonymized\x1b[2J.jpg",
)


def test_lines_about_an_unavailable_redis_name_it_and_others_do_not(capsys):
    logs.configure("json", "queue.internal:6379")
    log = structlog.get_logger("veil")
    log.error("queue unavailable", error="QueueUnavailable")
    log.error("dead", error="ObjectNotFound")
    about_redis, other = map(json.loads, capsys.readouterr().err.splitlines())
    assert about_redis["redis"] == "queue.internal:6379"
    assert "redis" not in other


def test_a_command_that_ends_by_itself_logs_warnings_and_errors_alone(capsys):
    logs.configure_command("json")
    log = structlog.get_logger("veil")
    log.info("detector ready")
    log.warning("picture process died")
    (line,) = map(json.loads, capsys.readouterr().err.splitlines())
    assert line["event"] == "picture process died"


def test_every_line_of_a_worker_has_its_name(capsys):
    logs.configure("json", worker="camera-1@host")
    structlog.get_logger("veil").warning("dead", worker="the one before")
    logging.getLogger("celery.worker").warning("of Celery")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["worker"] for line in lines] == ["camera-1@host"] * 2


def test_a_refusal_of_redis_that_ends_a_worker_is_one_line_without_a_traceback(capsys):
    logs.configure("json", "queue.internal:6379")
    log = logging.getLogger("celery.worker")
    for error in (NoPermissionError("this user has no permissions"), RuntimeError("a bug")):
        try:
            raise error
        except Exception:
            log.critical("Unrecoverable error", exc_info=True)
    refusal, bug = map(json.loads, capsys.readouterr().err.splitlines())
    assert refusal["message"] == (
        f"Redis refuses a command: this user has no permissions: {ASK_FOR_RIGHT}"
    )
    assert "exception" not in refusal
    assert "RuntimeError: a bug" in bug["exception"]


@pytest.mark.parametrize("brought", BROUGHT)
def test_what_a_message_brings_is_escaped_on_a_terminal(logged, brought):
    plain = logged("console", source="s3://raw/a.jpg").replace("s3://raw/a.jpg", "")
    line = logged("console", source=brought)
    assert line.count("\n") == 1
    assert line.count("\x1b") == plain.count("\x1b")
    assert not {"\r", "\x08", "\u202e"} & set(line)


@pytest.mark.parametrize("brought", BROUGHT)
def test_what_a_message_brings_stays_within_its_line_of_json(logged, brought):
    (line,) = logged("json", source=brought).splitlines()
    assert json.loads(line)["source"] == brought
    assert "\x1b" not in line


PROGRAM = """
import logging, sys, threading
import structlog
from worker import logs

logs.configure(sys.argv[1])

class Detector:
    def __init__(self, key):
        self.key = key

def fail(pixels, password):
    detector = Detector(password)
    raise ZeroDivisionError("the message")

def run(report):
    try:
        fail(b"value-of-pixels" * 10, "value-of-a-password")
    except ZeroDivisionError:
        report()

run(lambda: structlog.get_logger("veil").exception("bug"))
run(lambda: structlog.get_logger("veil").error("bug", exc_info=True))
run(lambda: logging.getLogger("celery.app.trace").exception("of Celery"))
tornado = logging.getLogger("tornado.application")
run(lambda: tornado.error("of Tornado", exc_info=True, stack_info=True))
thread = threading.Thread(target=fail, args=(b"value-of-pixels", "value-of-a-password"))
thread.start()
thread.join()
fail(b"value-of-pixels", "value-of-a-password")
"""


@pytest.mark.parametrize("form", ["console", "json"])
def test_no_traceback_in_the_log_shows_values(form):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, form], check=False, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("ZeroDivisionError: the message") == 6
    assert done.stderr.count("in fail") >= 6
    assert "value-of" not in done.stderr
    if form == "json":
        lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
        assert len(lines) == 4
        assert all("in fail" in line["exception"] for line in lines)


def test_a_full_connection_pool_is_no_line_and_other_warnings_are(logged, capsys):
    logged("json")
    connections = logging.getLogger("urllib3.connectionpool")
    connections.warning("Connection pool is full, discarding connection: %s.", "s3.internal")
    connections.warning("Certificate did not match expected hostname: %s.", "s3.internal")
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["event"].startswith("Certificate did not match")


@pytest.mark.parametrize(("user", "lines"), [(0, 1), (1000, 0)])
def test_a_worker_that_runs_as_root_has_one_line(logged, capsys, monkeypatch, user, lines):
    logged("json")
    monkeypatch.setattr("os.geteuid", lambda: user)
    worker_ready.send(None)
    shown = capsys.readouterr().err.splitlines()
    assert [json.loads(line)["event"] for line in shown] == ["worker runs as root"] * lines


@pytest.mark.parametrize(
    "app", [cli.app, *(import_module(entry.module).app for entry in cli.COMMANDS.values())]
)
def test_no_command_shows_values_when_it_fails_unexpectedly(app):
    assert isinstance(app, typer.Typer)
    assert app.pretty_exceptions_enable is False


def test_in_a_program_of_another_project_the_log_is_that_of_the_standard_library(capsys, caplog):
    logs.use_standard_library()
    with caplog.at_level(logging.INFO, "veil"):
        structlog.get_logger("veil").info("detector ready", recipe="r")
    assert caplog.messages == ["event='detector ready' recipe='r'"]
    assert capsys.readouterr().out == ""


def test_a_program_keeps_its_own_log(capsys):
    structlog.configure(processors=[structlog.processors.JSONRenderer()])
    logs.use_standard_library()
    structlog.get_logger("veil").info("detector ready")
    assert json.loads(capsys.readouterr().out) == {"event": "detector ready"}
