"""The composition root connects the watchdog with the tasks, and warns of a worse model."""

import json
from types import SimpleNamespace

import pytest
from celery.signals import task_postrun, task_prerun

from tasks.errors import ModelInvalid
from worker import bootstrap
from worker.detection.centerface import known_face
from worker.process.watchdog import EXIT_STALLED, Watchdog
from worker.settings import PICTURE_SECONDS, WorkerSettings


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def receivers():
    """Restore the receivers of the signals after the test."""
    before = [(signal, list(signal.receivers)) for signal in (task_prerun, task_postrun)]
    yield
    for signal, kept in before:
        signal.receivers[:] = kept
        signal.sender_receivers_cache.clear()


def test_a_picture_that_outlasts_all_its_deadlines_ends_the_process(receivers):
    clock, exits = Clock(), []
    watchdog = Watchdog(exits.append, clock)
    bootstrap._watch_pictures(watchdog)

    task_prerun.send(sender=None, task_id="done", args=["s3://raw/a.jpg"])
    task_postrun.send(sender=None, task_id="done", args=["s3://raw/a.jpg"])
    task_prerun.send(sender=None, task_id="hangs", args=["s3://raw/b.jpg"])
    clock.now = PICTURE_SECONDS - 1
    watchdog.check()
    assert exits == []

    clock.now = PICTURE_SECONDS + 1
    watchdog.check()
    assert exits == [EXIT_STALLED]


@pytest.mark.parametrize(("exposed", "warnings"), [(4, 1), (2, 0)])
def test_a_model_that_was_evaluated_as_worse_is_loaded_with_a_warning(
    exposed, warnings, tmp_path, monkeypatch, capsys
):
    result = {"threshold": 0.5, "faces": 69, "exposed": exposed, "spill": 0.01}
    evaluation = {**result, "bundled": {**result, "exposed": 2}}
    (tmp_path / "veil.json").write_text(json.dumps({"evaluation": evaluation}))
    model = SimpleNamespace(folder=tmp_path, name="own", score_threshold=0.5)
    monkeypatch.setattr(bootstrap, "load_untested_model", lambda settings: model)
    monkeypatch.setattr(known_face, "try_own", lambda *_: None)

    assert bootstrap.load_model(WorkerSettings(model=str(tmp_path))) is model

    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == warnings
    for line in lines:
        assert "the model hides faces worse than the bundled detector" in line
        assert "4 of 69 faces stay exposed, 2 with the bundled detector" in line


@pytest.mark.parametrize("engine", ["litert", "auto"])
def test_a_folder_with_a_network_in_8_bits_alone_is_judged_by_it(engine, tmp_path):
    """LiteRT runs such a folder on every machine, so it needs no graph; this network is damaged."""
    pytest.importorskip("ai_edge_litert", reason="pip install 'veil[worker]'")
    (tmp_path / "network.tflite").write_bytes(b"network")

    with pytest.raises(ModelInvalid, match=r"^network\.tflite of .* fails on a black picture"):
        bootstrap.load_folder(WorkerSettings(engine=engine), tmp_path)


def test_a_training_run_is_no_model(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ModelInvalid, match="is a training run: set VEIL_MODEL to what `veil train"):
        bootstrap.load_folder(WorkerSettings(), tmp_path)
