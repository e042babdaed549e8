"""The workers that `veil status --workers` names."""

import warnings
from types import SimpleNamespace

from worker.commands import queue, status


def test_workers_of_one_name_are_all_counted_and_told_in_a_line_of_veil():
    replies = [{name: {"ok": "pong"}} for name in ("b@host", "a@host", "b@host")]
    app = SimpleNamespace(control=SimpleNamespace(ping=lambda timeout: replies))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        alive = queue.answering_workers(app)
    assert alive == ["a@host", "b@host", "b@host"]
    (line,) = status._shared_name_lines(alive)
    assert str(line) == (
        "2 workers have the name b@host, and Flower shows them as one: give each its own --name"
    )
