"""Training resumes exactly after a kill, or says in one line why it cannot."""

import errno
import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

pytest.importorskip("tensorboard", reason="pip install 'veil[worker,training]'")

from tasks.errors import DatasetInvalid, OutputFailed, TrainingFailed
from tests.networks import small_network
from training import checkpoint, curves, fitting
from training.backend import keras, ops
from training.cli import app
from training.data import formats, importing
from training.data.importing import Choice
from training.efficientdet import network as efficientdet
from training.efficientdet.losses import BoxLoss, FocalLoss
from training.optimizer import FlatAdamW
from training.run import CHECKPOINT, LOG, WEIGHTS, Recipe, Run

RECIPE = Recipe("d0", 128, 2, 6, 0.01, 3, False, "none", "float32")


@pytest.fixture(scope="module", autouse=True)
def network():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(efficientdet, "efficientdet", small_network)
        yield


@pytest.fixture(autouse=True)
def precision():
    yield
    keras.config.set_dtype_policy("float32")


def imported(folder, faces, **shares):
    """Return a data set of nine pictures with up to two faces; only the first `faces` have any."""
    folder.mkdir()
    images = []
    for i in range(9):
        pixels = np.random.default_rng(i).integers(0, 256, (100, 120, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        boxes = [[10, 10, 60, 75], [70, 40, 100, 80]][: 1 + i % 2] if i < faces else []
        images.append({"file": f"{i}.png", "faces": boxes})
    (folder / "annotations.json").write_text(json.dumps({"images": images}))
    labelled = formats.read(folder / "annotations.json", None, [])
    return importing.run(labelled, folder / "set", Choice(**shares)).dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return imported(tmp_path_factory.mktemp("data") / "nine", faces=9, val=0.3, test=0)


@pytest.fixture(scope="module")
def whole(dataset, tmp_path_factory):
    """A finished run, and the lines that were printed."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return folder, fit(folder, dataset)


@pytest.fixture(scope="module")
def killed_run(dataset, tmp_path_factory):
    """A run that was killed after its first checkpoint, that of step 2."""
    folder = tmp_path_factory.mktemp("runs") / "killed"
    with pytest.raises(Killed):
        fit(folder, dataset, killed_after=2)
    return folder


@pytest.fixture
def killed(killed_run, tmp_path):
    """A copy of the killed run, which a test may change."""
    shutil.copytree(killed_run, tmp_path / "run")
    return tmp_path / "run"


class Killed(BaseException):
    pass


def fit(folder, dataset, recipe=RECIPE, killed_after=None, every=2, **options):
    """Return the printed lines; raise Killed once the checkpoint of that step is written."""
    told = []

    def tell(line):
        told.append(line)
        if line["step"] == killed_after:
            raise Killed

    run = Run.open(folder, recipe, dataset.digest)
    fitting.fit(run, dataset, None, every, tell, **options)
    return told


def losses(folder):
    """Return the step, the loss, and the loss of the split val, by step."""
    return [
        [float(line[name] or "nan") for name in ("step", "loss", "val_loss")]
        for line in curves.read(folder / LOG)
    ]


def test_a_run_that_is_killed_goes_on_with_the_same_curve_to_the_same_weights(
    whole, killed, dataset
):
    finished, told = whole
    # A line from after the last checkpoint, and one that was cut short.
    with (killed / LOG).open("a") as log:
        log.write("3,9.9,9.9,9.9,0.1,,3.2\n4,1")
    # The kill came in the middle of the next checkpoint.
    half = (killed / CHECKPOINT).read_bytes()[:5000]
    (killed / (CHECKPOINT + checkpoint.PARTIAL)).write_bytes(half)

    assert [line["step"] for line in fit(killed, dataset)] == [3, 4, 6]

    assert not list(killed.glob("*.partial"))
    assert [line["step"] for line in told] == [1, 2, 4, 6]
    assert [line["checkpoint"] for line in told] == [False, True, True, True]
    assert [line["steps"] for line in told] == [6, 6, 6, 6]
    assert told[0]["seconds_left"] is None
    assert told[1]["seconds_left"] >= told[-1]["seconds_left"] == 0
    assert [step for step, _, _ in losses(finished)] == [1, 2, 3, 4, 5, 6]
    # TensorFlow adds up in a random order, so runs differ by rounding.
    np.testing.assert_allclose(losses(killed), losses(finished), rtol=1e-3)
    expected, resumed = (checkpoint.load(folder / WEIGHTS) for folder in (finished, killed))
    assert expected.keys() == resumed.keys()
    for name in expected:
        np.testing.assert_allclose(expected[name], resumed[name], rtol=1e-2, atol=1e-3)
    assert np.isnan([val for _, _, val in losses(finished)]).tolist() == [True, False] * 3
    assert (finished / "curves.png").is_file()
    assert len(list((killed / "events").iterdir())) == 2


def test_half_precision_goes_on_after_a_kill_too(dataset, tmp_path):
    recipe = replace(RECIPE, steps=4, precision="mixed_float16")
    fit(tmp_path / "whole", dataset, recipe)
    with pytest.raises(Killed):
        fit(tmp_path / "killed", dataset, recipe, killed_after=2)

    fit(tmp_path / "killed", dataset, recipe)

    np.testing.assert_allclose(losses(tmp_path / "killed"), losses(tmp_path / "whole"), rtol=0.02)
    assert has_full_precision(tmp_path / "whole")


def has_full_precision(folder):
    return all(value.dtype == np.float32 for value in checkpoint.load(folder / WEIGHTS).values())


def test_bfloat16_needs_no_scaled_loss_and_loses_like_float32(whole, dataset, tmp_path):
    fit(tmp_path / "run", dataset, replace(RECIPE, steps=2, precision="mixed_bfloat16"))

    np.testing.assert_allclose(losses(tmp_path / "run")[0], losses(whole[0])[0], rtol=0.05)
    assert has_full_precision(tmp_path / "run")


def test_a_run_can_end_at_its_last_checkpoint(killed, dataset):
    with (killed / LOG).open("a") as log:
        log.write("3,9.9,9.9,9.9,0.1,,3.2\n")
    kept = checkpoint.load(killed / CHECKPOINT)

    assert fit(killed, dataset, ends_here=True) == []

    run = Run.load(killed)
    assert run.is_finished
    assert run.steps_made() == 2
    assert [step for step, _, _ in losses(run.folder)] == [1, 2]
    assert (run.folder / "curves.png").is_file()
    kernel = checkpoint.load(run.folder / WEIGHTS)["w0"].ravel()
    # The vector of averaged weights begins with those of the first layer.
    *_, average = (array for name, array in kept.items() if name.startswith("o"))
    np.testing.assert_array_equal(kernel, average[: len(kernel)])


def test_a_finished_run_is_left_as_it_is(whole, dataset):
    folder, _ = whole
    before = (folder / WEIGHTS).stat().st_mtime_ns

    assert fit(folder, dataset) == []
    assert (folder / WEIGHTS).stat().st_mtime_ns == before


def test_training_lowers_the_loss(dataset, tmp_path):
    fit(
        tmp_path / "run",
        dataset,
        Recipe("d0", 128, 3, 40, 0.03, 0, True, "none", "float32"),
        every=40,
    )

    values = [loss for _, loss, _ in losses(tmp_path / "run")]
    assert np.mean(values[-5:]) < 0.7 * np.mean(values[:5])


def test_a_loss_that_is_no_number_ends_it_and_the_checkpoint_is_whole(dataset, tmp_path):
    recipe = Recipe("d0", 128, 2, 60, 1e30, 3, False, "none", "float32")

    with pytest.raises(
        TrainingFailed, match=r"not a number after step .*: lower --learning-rate"
    ) as raised:
        fit(tmp_path / "run", dataset, recipe, every=1)

    assert len(str(raised.value).splitlines()) == 1
    kept = checkpoint.load(tmp_path / "run" / CHECKPOINT)
    assert all(np.isfinite(values).all() for name, values in kept.items() if name.startswith("m"))


def test_a_full_disk_keeps_the_checkpoint_before_it(killed, dataset, monkeypatch):
    before = (killed / CHECKPOINT).read_bytes()

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.np, "savez", full)
        with pytest.raises(
            OutputFailed, match="No space left on device; the one before it is kept"
        ):
            fit(killed, dataset)

    assert (killed / CHECKPOINT).read_bytes() == before
    assert not list(killed.glob("*.partial"))


def test_a_damaged_checkpoint_and_another_networks_are_refused(killed, dataset):
    path = killed / CHECKPOINT
    whole = path.read_bytes()

    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TrainingFailed, match=r"can't be read .*: start the run anew"):
        fit(killed, dataset)

    checkpoint.save(path, {"m0": np.zeros(3), "step": np.array(2)})
    with pytest.raises(TrainingFailed, match="the weights of another network"):
        fit(killed, dataset)


def test_another_recipe_or_data_set_needs_another_folder(killed, dataset):
    other = Recipe("d0", 128, 4, 6, 0.01, 3, False, "none", "float32")
    with pytest.raises(TrainingFailed, match="a run with --batch 2, not --batch 4"):
        fit(killed, dataset, other)
    with pytest.raises(TrainingFailed, match=r"with the data set [0-9a-f]{8}, not the data set"):
        Run.open(killed, RECIPE, "0" * 64)
    (killed / "run.json").write_text("{")
    with pytest.raises(TrainingFailed, match="is damaged"):
        fit(killed, dataset)


@pytest.mark.parametrize("side", [0, 200])
def test_a_side_that_the_network_can_not_take_makes_no_folder(dataset, tmp_path, side):
    arguments = ["fit", str(dataset.folder), "--to", str(tmp_path / "run"), "--side", str(side)]

    done = CliRunner().invoke(app, arguments)

    assert done.exit_code == 2
    assert "must be a multiple of 128" in done.stderr
    assert not (tmp_path / "run").exists()


def test_two_processes_do_not_train_in_one_folder(dataset, tmp_path):
    run = Run.open(tmp_path / "run", RECIPE, dataset.digest)

    def begun():
        raise AssertionError("a run began that can't")

    said = "another process trains in .*: wait for its end, or choose another --to"
    with run.held(), pytest.raises(TrainingFailed, match=said):
        fit(tmp_path / "run", dataset, begun=begun)


def test_an_empty_split_and_pictures_that_are_gone_are_refused(dataset, tmp_path):
    with pytest.raises(DatasetInvalid, match=r"the split 'test' of .* is empty"):
        dataset.split("test")
    one = imported(tmp_path / "one", faces=1, val=0, test=0)
    shutil.rmtree(one.folder / "images")

    with pytest.raises(DatasetInvalid, match="can't be read"):
        fit(tmp_path / "run", one)
    assert not (tmp_path / "run").exists()


def test_a_run_without_weights_to_start_from_does_not_block_the_next_try(
    dataset, tmp_path, monkeypatch
):
    def offline(*_):
        raise TrainingFailed("cannot load --weights imagenet")

    monkeypatch.setattr(efficientdet, "load_backbone", offline)
    first = Run.open(tmp_path / "run", replace(RECIPE, weights="imagenet"), dataset.digest)
    with pytest.raises(TrainingFailed, match="cannot load"):
        fitting.fit(first, dataset, "imagenet", 2, print)
    assert not (tmp_path / "run").exists()

    assert Run.open(tmp_path / "run", RECIPE, dataset.digest).recipe.weights == "none"


def test_the_time_left_does_not_count_the_first_step():
    times = iter([100.0, 102.0, 104.0])
    remaining = fitting._Remaining(10, lambda: next(times))

    # The run was resumed at step 3.
    assert [remaining.after(step) for step in (4, 5, 6)] == [None, 10, 8]


def test_a_run_that_is_not_finished_has_no_model(killed_run, tmp_path):
    with pytest.raises(TrainingFailed, match="isn't finished: go on with"):
        fitting.finished_model(Run.load(killed_run))
    with pytest.raises(TrainingFailed, match="begin a run with `veil train fit`"):
        Run.load(tmp_path)


def test_losses_count_faces_alone_and_forgive_what_is_ignored():
    truth = np.array([[[1.0], [0.0], [-1.0]]], np.float32)
    right, wrong = ([[[8.0], [-8.0], [sure]]] for sure in (8.0, 8.0))
    wrong = [[[-8.0], [8.0], [8.0]]]

    focal = FocalLoss()
    assert float(focal(truth, ops.convert_to_tensor(right))) < 1e-6
    # -alpha log p of the face and -(1 - alpha) log p of the anchor without one, both nearly
    # unweighted, divided by the number of faces plus one.
    assert float(focal(truth, ops.convert_to_tensor(wrong))) == pytest.approx(
        (0.25 * 8 + 0.75 * 8) / 2, rel=0.01
    )

    box = BoxLoss()
    stands = np.array([[[0, 0, 0, 0, 1], [5, 5, 5, 5, 0]]], np.float32)
    off = ops.convert_to_tensor(np.array([[[0.05, 0, 0, 1.1], [0, 0, 0, 0]]], np.float32))
    assert float(box(stands, off)) == pytest.approx(
        50 * (0.05**2 / 2 + 0.1 * (1.1 - 0.05)) / 4 / 2, rel=1e-4
    )


def test_the_flat_optimizer_moves_weights_as_keras_own_does():
    start = [
        np.random.default_rng(i).normal(size=shape).astype(np.float32)
        for i, shape in enumerate([(3, 4), (4,)])
    ]
    ours, theirs = ([keras.Variable(values) for values in start] for _ in range(2))
    flat = FlatAdamW(0.1, average=0.5)
    flat.build(ours)
    own = keras.optimizers.AdamW(
        0.1, weight_decay=4e-5, global_clipnorm=10, use_ema=True, ema_momentum=0.5
    )
    own.build(theirs)
    own.exclude_from_weight_decay(var_list=[theirs[1]])
    for i in range(5):
        gradients = [
            np.random.default_rng(9 + i).normal(0, 9, values.shape).astype(np.float32)
            for values in start
        ]
        flat.apply([ops.convert_to_tensor(each) for each in gradients])
        own.apply([ops.convert_to_tensor(each) for each in gradients])

    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=2e-4, atol=2e-5)
