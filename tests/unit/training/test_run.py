"""Runs on disk: only one that has made a step keeps others out of its folder."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest

from tasks.errors import TrainingFailed
from training import checkpoint
from training.run import CHECKPOINT, DESCRIPTION, EVALUATION, LOCK, LOG, WEIGHTS, Recipe, Run

IMAGENET = Recipe("d0", 128, 2, 6, 0.01, 3, False, "imagenet", "float32")
NO_WEIGHTS = Recipe("d0", 128, 2, 6, 0.01, 3, False, "none", "float32")
DATA = "d" * 64


def fail_before_the_first_step(folder):
    """Fail as `fit` does when the step itself fails: the log has its header by then."""
    with Run.open(folder, IMAGENET, DATA).held():
        (folder / LOG).write_text("step,loss,seconds\n")
        (folder / "events").mkdir(exist_ok=True)
        raise TrainingFailed("no weights")


def begin(folder, recipe):
    with Run.open(folder, recipe, DATA).held():
        (folder / LOG).write_text("step,loss,seconds\n1,0.5,2.0\n")


def test_a_failure_before_the_first_step_leaves_no_folder(tmp_path):
    with pytest.raises(TrainingFailed, match="no weights"):
        fail_before_the_first_step(tmp_path / "run")

    assert not (tmp_path / "run").exists()


def test_a_failure_before_the_first_step_keeps_a_folder_that_was_there(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")

    with pytest.raises(TrainingFailed, match="no weights"):
        fail_before_the_first_step(folder)

    assert not (folder / DESCRIPTION).exists()
    assert not (folder / LOCK).exists()
    assert (folder / "notes.txt").read_text() == "mine"
    begin(folder, NO_WEIGHTS)


def test_a_run_that_was_killed_before_its_first_step_is_replaced(tmp_path):
    run = Run.open(tmp_path, IMAGENET, DATA)
    run._describe()

    begin(tmp_path, NO_WEIGHTS)

    assert Run.load(tmp_path).recipe == NO_WEIGHTS


@pytest.mark.parametrize("file", [CHECKPOINT, WEIGHTS, LOG])
def test_a_run_with_a_step_is_not_replaced(file, tmp_path):
    begin(tmp_path, IMAGENET)
    if file != LOG:
        (tmp_path / LOG).unlink()
        (tmp_path / file).touch()

    with pytest.raises(TrainingFailed, match="run with --weights imagenet, not --weights none"):
        Run.open(tmp_path, NO_WEIGHTS, DATA)
    assert Run.load(tmp_path).recipe == IMAGENET


def test_a_misspelt_run_is_not_begun_anew_by_advice(tmp_path):
    with pytest.raises(TrainingFailed, match=r"no checkpoint .*: check --to; leave out --resume"):
        Run.open(tmp_path / "rum", IMAGENET, DATA).require_checkpoint("--resume")


def test_a_finished_run_of_other_options_leads_to_a_run_that_starts_from_it(tmp_path):
    begin(tmp_path, IMAGENET)
    (tmp_path / WEIGHTS).touch()
    said = f"is a finished run with --steps 6, not --steps 9: .* with --start {tmp_path} and"
    with pytest.raises(TrainingFailed, match=said):
        Run.open(tmp_path, replace(IMAGENET, steps=9), DATA)


def test_a_run_that_another_process_began_meanwhile_is_not_replaced(tmp_path):
    late = Run.open(tmp_path, NO_WEIGHTS, DATA)
    begin(tmp_path, IMAGENET)

    with pytest.raises(TrainingFailed, match="not --weights none"), late.held():
        pass
    assert Run.load(tmp_path).recipe == IMAGENET


@pytest.mark.parametrize(
    ("has_checkpoint", "advice"),
    [
        (True, "remove {}, and give the same `veil train fit` with --finish, which makes"),
        (False, "start the run anew"),
    ],
)
def test_weights_that_are_damaged_can_be_made_anew_from_a_checkpoint(
    has_checkpoint, advice, tmp_path
):
    (tmp_path / WEIGHTS).write_bytes(b"damaged")
    if has_checkpoint:
        (tmp_path / CHECKPOINT).touch()

    with pytest.raises(TrainingFailed, match=re.escape(advice.format(tmp_path / WEIGHTS))):
        checkpoint.restore_finished(tmp_path, SimpleNamespace(weights=[]))


@pytest.mark.parametrize(
    ("content", "threshold"),
    [
        ({"split": "val", "proposed_threshold": 0.31}, 0.31),
        ({"split": "val", "proposed_threshold": None}, None),
        ({"split": "test", "proposed_threshold": 0.31}, None),
        ({"split": "train", "proposed_threshold": 0.31}, None),
        ([], None),
    ],
)
def test_only_the_split_val_gives_a_run_its_threshold(content, threshold, tmp_path):
    run = Run.open(tmp_path, NO_WEIGHTS, DATA)
    assert run.threshold() is None
    (tmp_path / EVALUATION).write_text(json.dumps(content))

    assert run.threshold() == threshold
