"""The end of a worker, as its log tells it."""

from types import SimpleNamespace

import pytest
import structlog
from celery.worker import state

from tasks.delivery.leases import Leases
from tasks.delivery.shutdown import ShutdownStep
from tasks.delivery.transport import Transport


@pytest.mark.parametrize("signals", [0, 1])
def test_stopped_is_the_last_line_even_if_the_thread_of_the_grace_period_is_late(
    monkeypatch, signals
):
    monkeypatch.setattr(Transport, "leases", Leases())
    monkeypatch.setattr(state, "should_stop", None)
    app = SimpleNamespace(conf=SimpleNamespace(worker_soft_shutdown_timeout=30.0), steps={})
    step = ShutdownStep(SimpleNamespace(app=app))
    for _ in range(signals):
        step._on_signal(15, None)

    with structlog.testing.capture_logs() as lines:
        step._close_leases(sender=SimpleNamespace(exitcode=0))
        if signals:
            step._log_stopping()  # as that thread does

    assert [line["event"] for line in lines] == ["stopping"] * signals + ["stopped"]
