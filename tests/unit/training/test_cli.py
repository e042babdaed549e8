"""The lines that the training commands print."""

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

import training
from training import checkpoint, cli
from training.data import dataset
from training.run import CHECKPOINT, DESCRIPTION, EVALUATION, LOG, Recipe, Run
from worker.cli import main

RECIPE = Recipe("d0", 128, 2, 6, 0.01, 3, False, "none", "float32")


def test_a_checkpoint_s_line_has_the_loss_and_the_time_left():
    line = {"step": 1000, "steps": 4000, "loss": 0.5, "seconds": 9.25, "seconds_left": 3725}

    assert cli._progress_line(line) == "step 1,000 of 4,000: loss 0.5000, 1:02:05 left"
    last = {**line, "val_loss": 0.75, "val_ap50": 0.9, "seconds_left": 0}
    assert cli._progress_line(last) == (
        "step 1,000 of 4,000: loss 0.5000; val: loss 0.7500, AP50 0.900"
    )
    large = cli._progress_line({**line, "loss": 2.645e21})
    assert large == "step 1,000 of 4,000: loss 2.6e+21, 1:02:05 left"
    start = {"step": 0, "steps": 4000, "val_loss": 3.5, "val_ap50": 0.95, "seconds_left": None}
    assert cli._progress_line(start) == "before the first step: val: loss 3.5000, AP50 0.950"
    assert cli._progress_line({"step": 0}) == "before the first step: no pictures in val"


@pytest.mark.parametrize(
    ("precisions", "warns"),
    [
        ((0.95, 0.9, 0.84), True),
        ((0.95, 0.84, 0.94), False),
        ((0.95,), False),
        ((), False),
        ((None, 0.2), False),
        ((None, 0.9, 0.2), False),  # a run from random weights has no AP50 before its first step
    ],
)
def test_a_training_that_makes_the_detector_worse_is_warned_of(tmp_path, precisions, warns):
    lines = [f"{step},{'' if ap is None else ap},1.0" for step, ap in enumerate(precisions)]
    (tmp_path / LOG).write_text("\n".join(["step,val_ap50,seconds", *lines, ""]))

    warnings = cli._losses_since_the_start(Run(tmp_path, RECIPE, "d" * 64))

    assert len(warnings) == warns
    if warns:
        assert "from 0.950 to 0.840" in warnings[0]
        assert "--learning-rate" in warnings[0]


def test_the_first_lines_say_what_is_ahead_and_how_long_the_first_step_took(tmp_path):
    assert cli._start_line(Run.open(tmp_path, RECIPE, "d" * 64), 100) == (
        f"training {tmp_path}: 6 steps of 2 pictures, a checkpoint every 100; "
        f"TensorBoard: tensorboard --logdir {tmp_path / 'events'}"
    )
    first = {"step": 1, "steps": 4000, "loss": 0.5, "seconds": 41.25, "seconds_left": None}
    assert cli._progress_line(first) == "step 1 of 4,000: loss 0.5000, after 41.2 s"


def test_the_next_command_can_be_pasted():
    assert cli._next("fit", "my set", "--to", "RUN") == "next: veil train fit 'my set' --to RUN"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--start", "default", "--size", "d1"], "--size: has no effect with --start"),
        (["--start", "run", "--weights", "none"], "--weights: has no effect with --start"),
        (["--steps", "10", "--rounds", "2"], "--rounds: has no effect with --steps"),
    ],
)
def test_an_option_of_fit_without_effect_is_refused(
    flags, said, data, tmp_path, monkeypatch, capsys
):
    command = ["veil", "train", "fit", str(data), "--to", str(tmp_path / "run"), *flags]
    monkeypatch.setattr(sys, "argv", command)

    with pytest.raises(SystemExit) as ended:
        main()

    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kept", "logged", "said"),
    [
        (
            4,
            5,
            "stopped after step 5: the checkpoint of step 4 is kept, {}, and the same command "
            "resumes there",
        ),
        (
            None,
            5,
            "stopped after step 5, before the first checkpoint: the log is kept, and the "
            "same command begins at step 1 again; a smaller --every loses less",
        ),
        (None, 0, "stopped before the first step: nothing is kept"),
    ],
)
def test_a_stopped_run_says_what_is_kept(kept, logged, said, tmp_path, capsys):
    run = Run.open(tmp_path, RECIPE, "d" * 64)

    def stop():
        with cli._resumable(run):
            lines = [f"{step},0.5,2.0\n" for step in range(1, logged + 1)]
            (tmp_path / LOG).write_text("".join(["step,loss,seconds\n", *lines]))
            if kept:
                checkpoint.save(tmp_path / CHECKPOINT, {"step": np.array(kept)})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()

    (line,) = capsys.readouterr().err.splitlines()
    assert line == "veil: " + said.format(tmp_path / CHECKPOINT)


def test_a_resumed_run_says_after_which_step(tmp_path, capsys):
    checkpoint.save(tmp_path / CHECKPOINT, {"step": np.array(4)})

    cli._print_start(Run.open(tmp_path, RECIPE, "d" * 64), every=None, as_json=False)

    assert capsys.readouterr() == ("", f"veil: resuming {tmp_path} after step 4\n")


@pytest.fixture
def data(tmp_path):
    """A folder with the index of a data set, which is all that a command reads at first."""
    folder = tmp_path / "data"
    folder.mkdir()
    picture = dataset.Picture("a.jpg", "a" * 64, 64, 64, ((1.0, 1.0, 9.0, 9.0),), (), "train")
    (folder / dataset.INDEX).write_text(json.dumps(dataset.index([picture])))
    return folder


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--rounds", "0"], "--rounds': must be above 0"),
        (["--rounds", "nan"], "--rounds': nan is not a finite number"),
        (["--rounds", "inf"], "--rounds': inf is not a finite number"),
        (["--learning-rate", "0"], "--learning-rate': must be above 0"),
        (["--learning-rate", "nan"], "--learning-rate': nan is not a finite number"),
        (["--steps", "0"], "should be greater than or equal to 1"),
        (["--batch", "0"], "should be greater than or equal to 1"),
        (["--every", "0"], "should be greater than or equal to 1"),
        (["--seed", str(2**32)], "should be less than or equal to 4294967295"),
    ],
)
def test_a_number_that_makes_no_sense_is_refused_before_a_folder_is_made(
    data, tmp_path, flags, said, monkeypatch, capsys
):
    arguments = ["veil", "train", "fit", str(data), "--to", str(tmp_path / "run"), *flags]
    monkeypatch.setattr(sys, "argv", arguments)

    with pytest.raises(SystemExit):
        main()

    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["notes.txt"], r"holds something else \(notes.txt\): choose another --to"),
        ([LOG, "events", "lock"], "the network 'd9' is unknown"),  # what a failed start leaves
        ([DESCRIPTION, "notes.txt"], "the network 'd9' is unknown"),
    ],
)
def test_a_run_begins_in_no_folder_of_other_files(names, said, data, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in names:
        (folder / name).touch()

    options = ["--weights", "none", "--size", "d9"]
    done = CliRunner().invoke(cli.app, ["fit", str(data), "--to", str(folder), *options])

    assert re.search(said, str(done.exception))


@pytest.mark.parametrize("command", ["fit", "evaluate"])
def test_no_result_is_written_into_a_data_set(command, data):
    before = sorted(data.iterdir())
    arguments = {"fit": [], "evaluate": [str(data.parent), "--split", "train"]}

    done = CliRunner().invoke(cli.app, [command, *arguments[command], str(data), "--to", str(data)])

    assert str(done.exception) == f"{data} is a data set: choose another --to"
    assert sorted(data.iterdir()) == before


def evaluated(label, as_served=None):
    """Return the figures of a label in an evaluation."""
    shared = dict.fromkeys(("mAP", "AP50", "recall", "spill"), 0.5)
    counts = {"threshold": 0.4, "proposed_threshold": 0.4, "exposed": 1, "faces": 69}
    return {"model": "run", "label": label, **shared, **counts, "as_served": as_served}


@pytest.fixture
def evaluate(tmp_path, monkeypatch):
    """``evaluate(split)`` runs the command with stand-ins for what is measured and written.

    It returns the ended command and the threshold that was asked for.
    """
    pytest.importorskip("pycocotools", reason="pip install 'veil[worker,training]'")
    from training.evaluation import evaluating, report

    thresholds = []
    measured = [evaluated("FACE")]
    exporting = SimpleNamespace(refusal=lambda run: None)  # without TensorFlow
    monkeypatch.setitem(sys.modules, "training.exporting", exporting)
    monkeypatch.setattr(training, "exporting", exporting, raising=False)
    pictures = SimpleNamespace(split=lambda name: (), digest="d" * 64)
    monkeypatch.setattr(dataset.Dataset, "load", lambda folder: pictures)
    monkeypatch.setattr(evaluating, "evaluate", lambda *given: thresholds.append(given[-1]))

    def write(figures, pictures, split, *_, alarms, chosen_on, run):
        return {
            "split": split,
            "chosen_on": chosen_on,
            "proposed_threshold": 0.4,
            "drawbacks": ["4 of 69 faces stay exposed"],
            "models": measured,
        }

    monkeypatch.setattr(report, "write", write)

    def run(split, *options):
        command = ["evaluate", str(tmp_path), "set", "--split", split, *options]
        done = CliRunner().invoke(cli.app, command, catch_exceptions=False)
        assert done.exit_code == 0
        return done, thresholds[-1]

    run.measured = measured
    run.exporting = exporting
    return run


def test_the_split_test_is_measured_at_the_threshold_of_val_and_sets_none(tmp_path, evaluate):
    run = Run.open(tmp_path, RECIPE, "d" * 64)
    run._describe()

    _, threshold = evaluate("test")
    assert threshold is None
    assert run.threshold() is None

    _, threshold = evaluate("val")
    assert threshold is None
    assert run.threshold() == 0.4

    (tmp_path / EVALUATION).write_text(json.dumps({"split": "val", "proposed_threshold": 0.31}))
    done, threshold = evaluate("test")
    assert threshold == 0.31
    assert run.threshold() == 0.31
    assert "by the evaluation of the split val" in done.stdout


@pytest.mark.parametrize(
    ("options", "data_set"),
    [(["--side", "256"], "d" * 64), (["--no-compare"], "d" * 64), ([], "e" * 64)],
    ids=["one pass", "not compared", "another data set"],
)
def test_an_export_ignores_an_evaluation_that_says_little_of_its_workers(
    tmp_path, evaluate, options, data_set
):
    run = Run.open(tmp_path, RECIPE, data_set)
    run._describe()

    done, _ = evaluate("val", *options)

    assert run.evaluation() == {}
    assert "exports don't use this evaluation" in done.stderr


def test_a_run_that_does_not_exist_is_named(evaluate, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["veil", "train", "evaluate", "nope", "set"])

    with pytest.raises(SystemExit):
        main()

    assert "nope does not exist" in capsys.readouterr().err


def test_a_data_set_is_no_model(data, evaluate, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["veil", "train", "evaluate", str(data), "set"])

    with pytest.raises(SystemExit):
        main()

    assert "data is a data set: give a run, or what VEIL_MODEL may be" in capsys.readouterr().err


def test_an_evaluation_warns_and_names_curves_checkpoint_report_and_next_command(
    tmp_path, evaluate
):
    Run.open(tmp_path, RECIPE, "d" * 64)._describe()

    done, _ = evaluate("val")

    assert done.stderr.splitlines() == ["veil: warning: 4 of 69 faces stay exposed"]
    assert done.stdout.splitlines()[-5:] == [
        f"curves: {tmp_path / 'curves.png'}",
        f"TensorBoard: tensorboard --logdir {tmp_path / 'events'}",
        f"last checkpoint: {tmp_path / 'checkpoint.npz'}",
        f"report: {tmp_path / 'evaluation' / 'val' / 'report.md'}",
        f"next: veil train export {tmp_path} --to FOLDER",
    ]


def test_an_evaluation_does_not_advise_an_export_that_would_be_refused(tmp_path, evaluate):
    Run.open(tmp_path, RECIPE, "d" * 64)._describe()
    evaluate.exporting.refusal = lambda run: f"{run.folder.name} covers 90% of a photograph"

    done, _ = evaluate("val")

    last = f"not ready for `veil train export`: {tmp_path.name} covers 90% of a photograph"
    assert done.stdout.splitlines()[-1] == last
    assert "next:" not in done.stdout


def test_an_evaluation_of_several_labels_names_the_label_of_each_line(tmp_path, evaluate):
    Run.open(tmp_path, RECIPE, "d" * 64)._describe()
    served = {"recall": 0.9, "threshold": 0.2, "exposed": 0, "faces": 69, "spill": 0.25}
    evaluate.measured.append(evaluated("plate", served))

    done, _ = evaluate("val")

    lines = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines[:2]] == ["run, FACE", "run, plate"]
    assert lines[2] == ("run, plate, as served: recall 0.9 at 0.2, exposed 0 of 69, spill 25.00%")


def test_a_bundled_model_needs_a_folder_for_its_report(evaluate, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["veil", "train", "evaluate", "plates", "set"])

    with pytest.raises(SystemExit):
        main()

    assert "--to: say where the report goes" in capsys.readouterr().err.replace("'", "")


@pytest.mark.parametrize(
    ("start", "said"),
    [("defaut", "--start defaut does not exist: give a finished run, or default"),
     (".", "holds no run.json")],
)  # fmt: skip
def test_a_start_that_is_no_run_is_refused_in_words(
    start, said, data, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    command = ["veil", "train", "fit", str(data), "--to", str(tmp_path / "run"), "--start", start]
    monkeypatch.setattr(sys, "argv", command)

    with pytest.raises(SystemExit):
        main()

    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("labels", "exposed", "setting"),
    [
        (["FACE"], 2, "VEIL_MODEL=made.zip"),
        (["FACE", "plate"], 2, "VEIL_MODEL=made.zip"),
        (["FACE"], 3, "VEIL_MODELS=default,made.zip"),
        (["plate"], None, "VEIL_MODELS=default,made.zip"),
        (["FACE"], None, "VEIL_MODELS=default,made.zip"),
        (["FACE"], 2, "VEIL_MODEL='my models/made.zip'"),
        (["plate"], None, "VEIL_MODELS='default,my models/made.zip'"),
    ],
    ids=["faces", "both", "worse at faces", "plates", "unknown", "pasted", "pasted beside"],
)
def test_an_export_replaces_the_default_model_only_if_it_is_known_to_hide_faces_as_well(
    labels, exposed, setting
):
    metadata = {"labels": {str(number): label for number, label in enumerate(labels, 1)}}
    if exposed is not None:
        bundled = {"exposed": 2, "spill": 0.01}
        measured = {"faces": 9, "threshold": 0.4, "exposed": exposed, "spill": 0.01}
        metadata["evaluation"] = {**measured, "bundled": bundled}
    name = "my models/made.zip" if "my models" in setting else "made.zip"
    exported = SimpleNamespace(zip=name, metadata=metadata)

    assert cli._setting_line(exported) == setting


def test_an_export_without_an_evaluation_says_so(tmp_path):
    run = Run.open(tmp_path, RECIPE, "d" * 64)
    assert "never evaluated on val" in cli._never_evaluated(run)[0]

    (tmp_path / EVALUATION).write_text(json.dumps({"split": "val"}))
    assert cli._never_evaluated(run) == []


@pytest.mark.parametrize(
    ("flag", "proposed", "origin"),
    [
        (0.3, 0.3, "from --threshold"),
        (0.4, 0.3, "from --threshold; the evaluation of val measured at 0.3"),
        (None, 0.3, "proposed by the evaluation of val"),
        (None, None, "the default, because the evaluation of val proposed none"),
    ],
)
def test_an_export_says_where_its_threshold_comes_from(flag, proposed, origin, tmp_path):
    run = Run.open(tmp_path, RECIPE, "d" * 64)
    missing = "the default, because no evaluation of val has proposed one"
    assert cli._origin(flag, run) == ("from --threshold" if flag else missing)
    models = [{"threshold": proposed or 0.5}]
    content = {"split": "val", "proposed_threshold": proposed, "models": models}
    (tmp_path / EVALUATION).write_text(json.dumps(content))

    assert cli._origin(flag, run) == origin


@pytest.mark.parametrize(
    ("backend", "said"),
    [
        ("jax", "KERAS_BACKEND=jax needs jax, which no extra of Veil installs: install it, or "),
        ("none", "Keras has no backend none: leave KERAS_BACKEND out"),
    ],
)
def test_a_backend_that_is_not_there_is_named(backend, said, data, tmp_path):
    if find_spec(backend):
        pytest.skip(f"{backend} is installed")
    program = "from worker.cli import main; main()"
    arguments = ["train", "fit", str(data), "--to", str(tmp_path / "run")]
    command = [sys.executable, "-c", program, *arguments]
    environment = {**os.environ, "KERAS_BACKEND": backend}

    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert done.stderr.startswith(f"veil: TrainingFailed: {said}")
    assert done.returncode == 2
