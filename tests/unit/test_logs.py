"""What a line of the log may hold: a message never writes lines of its own, nor orders to a terminal."""

import json
import logging

import pytest
import structlog

from worker import logs


@pytest.fixture
def logged(capsys):
    """``logged(form, **fields)``: what is written for a line with these fields."""
    root = logging.getLogger()
    before = root.handlers[:], root.level

    def write(form, **fields):
        logs.configure(form)
        structlog.get_logger("veil").error("dead", **fields)
        return capsys.readouterr().err

    yield write
    root.handlers[:], _ = before
    root.setLevel(before[1])
    structlog.reset_defaults()


BROUGHT = ("a\x1b[31mb", "a\nb", "a\r\x08b", "\u202eb", "s3://raw/a\n2026-01-01 [info] anonymized\x1b[2J.jpg")


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
