"""An unexpected error carries no part of the picture into logs, letters or results."""

import base64
import json
import sys
from pathlib import Path

from tests.integration.stub_worker import PIXELS


def test_what_a_bug_leaves_behind_holds_no_part_of_the_picture(
    unattended, start_worker, worker_settings, tmp_path, wait_until
):
    command = [sys.executable, Path(__file__).parents[1] / "stub_worker.py", tmp_path / "journal"]
    root = str(Path(__file__).resolve().parents[3])
    with start_worker(command, {**worker_settings(unattended), "PYTHONPATH": root}) as worker:
        result = unattended.send("s3://raw/bug/a.jpg")
        state, error = unattended.outcome(result)
        (letter,) = wait_until(unattended.dead).values()
        wait_until(lambda: worker.log.count("raised unexpected") == 1)
    assert (state, letter.error) == ("FAILURE", "RuntimeError")
    assert letter.message.startswith(
        "UnicodeDecodeError: 'utf-8' codec can't decode byte 0x76 in position 0: no text: "
    )
    left = [worker.log, repr(error), str(error), letter.message, *_values(unattended.client)]
    assert any("in run" in text for text in left), "the way to the bug is told"
    for data in ("value-of-pixels", base64.b64encode(PIXELS).decode()[:12], "\\x80\\x81"):
        assert [text for text in left if data in text] == []


def _values(client):
    """Yield each value in Redis as text."""
    for key in client.scan_iter():
        kind = client.type(key)
        read = {
            b"string": client.get,
            b"hash": client.hgetall,
            b"list": lambda key: client.lrange(key, 0, -1),
        }
        if kind in read:
            yield (
                json.dumps(read[kind](key), default=repr)
                if kind == b"list"
                else repr(read[kind](key))
            )
