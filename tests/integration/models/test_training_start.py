"""Fine-tuning starts from the default model: it detects alike, and learns other classes."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("tensorboard", reason="pip install 'veil[worker,training]'")

from tasks.errors import TrainingFailed
from training import checkpoint, exporting, fitting
from training.backend import keras
from training.batches import Batches
from training.centerface import model as centerface
from training.centerface.losses import CentreLoss, HeatLoss
from training.centerface.network import DIFFERENCE, CenterFace
from training.data import formats, importing
from training.data.importing import Choice
from training.efficientdet.network import EfficientDet
from training.network import DEFAULT
from training.optimizer import FlatAdamW, magnitudes_of
from training.run import WEIGHTS, Recipe, Run
from training.validation import Validation
from worker.detection.centerface.default import default_model
from worker.detection.centerface.known_face import (
    PHOTOGRAPH,
    TOLERANCES,
    answers,
    photograph,
    try_own,
)
from worker.detection.credible import credible
from worker.detection.litert import QuantizedModel
from worker.detection.model import NETWORK
from worker.detection.saved_model import SavedModel
from worker.models import load_untested_model
from worker.settings import WorkerSettings

RECIPE = Recipe("centerface", 64, 2, 1, 0.0, 0, True, "default", "float32")
SURE = 0.3  # the default model's score of anything else in the photograph is lower


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """The known photograph, as the only picture of the split train."""
    folder = tmp_path_factory.mktemp("start")
    shutil.copy(PHOTOGRAPH, folder)
    box = answers()["tensorflow"]["upright"]["box_xyxy"]
    images = [{"file": PHOTOGRAPH.name, "faces": [box]}]
    (folder / "annotations.json").write_text(json.dumps({"images": images}))
    labelled = formats.read(folder / "annotations.json", None, [])
    return importing.run(labelled, folder / "set", Choice(val=0, test=0)).dataset


@pytest.fixture(scope="module")
def run(dataset, tmp_path_factory):
    """A finished run that started from the default model, and whose learning rate was 0."""
    made = Run.open(tmp_path_factory.mktemp("run") / "run", RECIPE, dataset.digest)
    fitting.fit(made, dataset, DEFAULT, 1, lambda line: None)
    return made


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    return exporting.export(run, tmp_path_factory.mktemp("export") / "made", 0.17)


@pytest.fixture(scope="module")
def served(exported):
    return SavedModel(exported.folder)


def sure(model, picture):
    (found,) = model.predict(picture[None])
    return found[found.scores >= SURE]


def test_weights_that_the_last_step_ruins_end_it_in_one_line(dataset, tmp_path):
    recipe = replace(RECIPE, steps=3, learning_rate=1e9)
    ruined = Run.open(tmp_path / "run", recipe, dataset.digest)

    with pytest.raises(TrainingFailed, match=r"not a number after step \d: lower"):
        fitting.fit(ruined, dataset, DEFAULT, 100, lambda line: None)

    assert not ruined.has_checkpoint


def test_a_network_that_learned_nothing_detects_as_the_default_model_does(served):
    own, bundled = sure(served, photograph()), sure(SavedModel(default_model()), photograph())

    assert len(own) == len(bundled) == 1
    assert own.scores == pytest.approx(bundled.scores, abs=1e-4)
    assert own.boxes_xyxy == pytest.approx(bundled.boxes_xyxy, abs=0.05)


def test_its_network_in_8_bits_is_calibrated_and_served(exported):
    model = load_untested_model(WorkerSettings(model=str(exported.zip), engine="litert"))

    assert isinstance(model, QuantizedModel)
    own = sure(model, photograph())
    recorded, tolerance = answers()["litert"]["upright"], TOLERANCES["litert"]
    assert own.scores == pytest.approx([recorded["score"]], abs=tolerance.score)
    box = np.array(recorded["box_xyxy"])
    assert own.boxes_xyxy[0] == pytest.approx(box, abs=tolerance.position * (box[2] - box[0]))
    assert np.isnan(own.sightings.landmarks).all()
    try_own(model, 0.17)


def test_the_export_states_its_labels_and_the_differences(run, exported):
    stated = json.loads((exported.folder / "veil.json").read_text())

    assert stated["labels"] == {"1": "FACE"}
    assert stated["maps"] == {"classes": 1, "landmarks": 0}
    assert stated["network"] == "CenterFace"
    assert stated["recipe"] == run.recipe.digest
    assert stated["difference_in_8_bits"] < 0.05
    assert exported.difference < 1e-3


@pytest.fixture
def copied(run, tmp_path):
    """A copy of the run without its SavedModel, whose files a test may damage."""
    shutil.copytree(run.folder, tmp_path / "run", ignore=shutil.ignore_patterns("saved_model*"))
    return Run.load(tmp_path / "run")


def test_damaged_results_are_named_and_made_anew_from_the_last_checkpoint(
    copied, run, dataset, tmp_path
):
    advice = f"remove {copied.folder / WEIGHTS}, and give the same `veil train fit` with --finish"
    for name in (NETWORK, DIFFERENCE, WEIGHTS):
        file = copied.folder / name
        whole = file.read_bytes()
        file.write_bytes(whole[:20])
        with pytest.raises(TrainingFailed, match=re.escape(advice)) as refused:
            exporting.export(copied, tmp_path / "export", 0.17)
        assert name in str(refused.value)
        assert not (tmp_path / "export").exists()
        file.write_bytes(whole)

    for name in (NETWORK, DIFFERENCE):
        (copied.folder / name).write_bytes(b"damaged")
    (copied.folder / WEIGHTS).unlink()
    fitting.fit(copied, dataset, DEFAULT, 1, lambda line: None, ends_here=True)
    assert (copied.folder / WEIGHTS).read_bytes() == (run.folder / WEIGHTS).read_bytes()
    assert exporting.export(copied, tmp_path / "export", 0.17).zip.is_file()


def test_the_first_steps_of_a_fine_tuning_keep_what_the_default_model_knows(dataset):
    network = CenterFace(("FACE",))
    model = network.build()
    network.start(model, DEFAULT, 0)
    optimizer = FlatAdamW(network.learning_rate, is_relative=network.is_relative)
    model.compile(optimizer=optimizer, loss=network.losses(), jit_compile=False)
    optimizer.build(model.trainable_variables)
    validation = Validation(Batches(dataset, dataset.split("train"), network, 128, 2, 0, False))
    before = validation.measure(model)

    for batch in Batches(dataset, dataset.split("train"), network, 128, 2, 0, True).starting(0, 4):
        model.train_on_batch(batch.pictures, batch.truth)
    after = validation.measure(model)

    assert before.ap50 == after.ap50 == 1.0
    assert after.loss < before.loss


@pytest.mark.parametrize(
    ("shape", "output_axis"),
    [((3, 3, 8, 1), 2), ((2, 2, 8, 4), 2), ((1, 1, 4, 8), 3), ((3, 3, 4, 8), 3)],
)
def test_a_relative_rate_follows_the_magnitude_of_the_output_channel(shape, output_axis):
    weights = np.random.default_rng(0).choice([-1.0, 1.0], shape).astype(np.float32)
    sizes = np.arange(1, 9) if shape[output_axis] == 8 else np.arange(1, 5)
    spread = np.ones(4, int)
    spread[output_axis] = -1
    wanted = np.broadcast_to(sizes.reshape(spread), shape)

    assert magnitudes_of(weights * wanted.astype(np.float32)) == pytest.approx(wanted)


def test_weights_of_0_learn_at_a_relative_rate_too():
    assert magnitudes_of(np.zeros((3, 3, 4, 8), np.float32)).min() > 0
    assert magnitudes_of(np.array([0.03, -0.03], np.float32)) == pytest.approx([0.03, 0.03])
    assert magnitudes_of(np.zeros(4, np.float32)).min() > 0


def test_pictures_of_any_size_have_no_detection_in_the_padding(served):
    picture = np.random.default_rng(0).integers(0, 256, (1, 101, 130, 3), np.uint8)

    (found,) = served.predict(picture)

    assert len(credible(found, 130, 101, 0.0)) == len(found)
    assert sure(served, photograph()[:210, :200]).boxes_xyxy == pytest.approx(
        sure(served, photograph()).boxes_xyxy, abs=4
    )


def test_a_run_can_start_from_another_with_one_class_more(run):
    network = CenterFace(("plate", "FACE"))
    model = network.build()

    network.start(model, str(run.folder), seed=0)

    before = checkpoint.load(run.folder / WEIGHTS)
    np.testing.assert_array_equal(model.get_layer("step0").get_weights()[0], before["w0"])
    kernel, bias = model.get_layer("faces").get_weights()
    face = centerface.published().heads
    np.testing.assert_allclose(kernel[..., 1], face.kernel[..., 0])
    assert bias[1] == pytest.approx(face.bias[0])
    assert 1 / (1 + np.exp(-bias[0])) == pytest.approx(0.01)
    # The kernel of the new class is random, but the same for the same seed.
    model.get_layer("faces").set_weights([np.zeros_like(kernel), bias])
    network.start(model, str(run.folder), seed=0)
    np.testing.assert_array_equal(model.get_layer("faces").get_weights()[0], kernel)


def test_a_new_label_learns_at_the_rate_of_known_ones():
    known = centerface.published()
    network = centerface.with_labels(known, ["FACE"], ["plate", "FACE"], np.random.default_rng(0))

    kernel, bias = network.heads.kernel, network.heads.bias
    rates = magnitudes_of(kernel)[0, 0, 0]
    assert rates[0] == pytest.approx(rates[1], rel=0.4)
    assert 1 / (1 + np.exp(-bias[0])) == pytest.approx(centerface.PRIOR)
    np.testing.assert_array_equal(kernel[..., 1:], known.heads.kernel)
    np.testing.assert_array_equal(bias[1:], known.heads.bias)


def test_an_efficientdet_cannot_start_with_other_classes_nor_from_an_unfinished_run(tmp_path):
    recipe = Recipe("d0", 128, 2, 2, 0.001, 0, False, "none", "float32")
    run = Run.open(tmp_path / "run", recipe, "d" * 64)
    run._describe()
    with pytest.raises(TrainingFailed, match="isn't finished"):
        EfficientDet("d0", ("FACE",)).start(None, str(run.folder), 0)

    (run.folder / WEIGHTS).touch()
    with pytest.raises(TrainingFailed, match="knows FACE, and an EfficientDet"):
        EfficientDet("d0", ("plate",)).start(None, str(run.folder), 0)


@pytest.mark.parametrize("weights", [DEFAULT, None])
def test_the_first_convolutions_of_a_network_with_initial_weights_learn_nothing(weights, dataset):
    network = CenterFace(("FACE",))
    recipe = replace(RECIPE, steps=2, learning_rate=0.001)
    (batch,) = Batches(dataset, dataset.split("train"), network, 64, 2, 0, False).starting(0, 1)
    trained = fitting._Trained(recipe, network, weights, batch)
    before = [kernel.numpy() for kernel in trained.model.weights]
    frozen = [kernel.path for layer in network.frozen(trained.model) for kernel in layer.weights]

    for _ in range(2):  # the rate of the first one is 0
        trained.step(batch)

    learned = [
        kernel.path
        for kernel, old in zip(trained.model.weights, before, strict=True)
        if (kernel.numpy() != old).any()
    ]
    assert len(frozen) == 14  # a kernel and biases each
    everything = [kernel.path for kernel in trained.model.weights]
    if weights is None:
        assert set(learned) & set(frozen)
    else:
        assert learned == [path for path in everything if path not in frozen]


def test_the_losses_are_those_of_the_papers():
    truth = np.array([1.0, 0.5, 0.0, -1.0], np.float32).reshape(1, 1, 4, 1)
    score = np.array([0.3, 0.4, 0.2, 0.9], np.float32).reshape(1, 1, 4, 1)

    focal = float(HeatLoss()(truth, keras.ops.convert_to_tensor(np.log(score / (1 - score)))))

    hit = 0.7**2 * np.log(0.3)
    misses = 0.5**4 * 0.4**2 * np.log(0.6) + 0.2**2 * np.log(0.8)
    assert focal == pytest.approx(-(hit + misses), rel=1e-5)

    boxes = np.array([[[[1, 0, 0.5, 0, 1], [9, 9, 9, 9, 0]]]], np.float32)
    zero = keras.ops.zeros((1, 1, 2, 4))
    # The size is off by 1, the offset by 0.5; the second point is no centre.
    assert float(CentreLoss()(boxes, zero)) == pytest.approx(0.1 * 0.5 + 0.125)
