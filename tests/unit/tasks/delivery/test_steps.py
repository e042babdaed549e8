"""Steps of a worker's start: the pipeline of the installed package, under the workers' name."""

from types import SimpleNamespace

import pytest

from tasks.delivery import steps
from tasks.errors import ModelInvalid, StorageUnavailable


@pytest.fixture
def start(monkeypatch):
    """``start(error)`` builds a pipeline that fails with `error`, and returns the exit code."""

    def run(error):
        def build(app, on_stall, name):
            raise error

        entry_point = SimpleNamespace(load=lambda: build)
        monkeypatch.setattr(steps, "entry_points", lambda **_: [entry_point])
        with pytest.raises(SystemExit) as ended:
            steps.installed_pipeline(None, SimpleNamespace(record_stall=None), "a@b")
        return ended.value.code

    return run


def test_the_second_name_serves_no_workers(monkeypatch, start, capsys):
    monkeypatch.setattr(steps, "__package__", "veil.tasks.delivery")

    assert start(None) == 2
    assert "start workers with `veil worker`" in capsys.readouterr().err


def test_only_a_worker_that_may_succeed_later_is_worth_another_start(start, capsys):
    assert start(ModelInvalid("no model")) == 2
    assert capsys.readouterr().err == "veil: ModelInvalid: no model\n"
    assert start(StorageUnavailable("no store")) == "veil: StorageUnavailable: no store"
