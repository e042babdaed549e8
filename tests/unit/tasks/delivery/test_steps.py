"""Steps of a worker's start: the pipeline of the installed package, under the workers' name."""

import pytest

from tasks.delivery import steps


def test_the_second_name_serves_no_workers(monkeypatch):
    monkeypatch.setattr(steps, "__package__", "veil.tasks.delivery")
    with pytest.raises(SystemExit, match="start workers with `veil worker`"):
        steps.installed_pipeline(None, None)
