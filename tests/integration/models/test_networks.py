"""The EfficientDets have the parameters and multiply-adds of the paper, within 5 %."""

import numpy as np
import pytest

from tasks.errors import TrainingFailed
from tools.benchmarks import networks
from training import fitting
from training.backend import keras
from training.batches import Batch
from training.data.dataset import FACE
from training.efficientdet.anchors import anchors, targets
from training.efficientdet.model import PRIOR, SIZES, Size, efficientdet, load_backbone
from training.networks import network_of
from training.run import Recipe


@pytest.mark.parametrize("size", ["d0", "d2"])
def test_an_efficientdet_has_the_parameters_and_multiply_adds_of_the_paper(size):
    cost = networks.cost(efficientdet(size, networks.COCO_CLASSES), SIZES[size].side)

    parameters, multiply_adds = networks.PAPER[size]
    assert cost["parameters"] == pytest.approx(parameters * 1e6, rel=0.05)
    assert cost["multiply_adds"] == pytest.approx(multiply_adds * 1e9, rel=0.05)


# Keras causes this warning with NumPy 2.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_backbone_starts_from_given_weights_and_from_no_others(tmp_path):
    given = keras.applications.EfficientNetB0(include_top=False, weights=None)
    given.save_weights(tmp_path / "b0.weights.h5")
    network = efficientdet("d0")

    load_backbone(network, "d0", str(tmp_path / "b0.weights.h5"))

    backbone = network.get_layer("backbone")
    for name in ("stem_conv", "block4b_expand_conv", "block7a_project_bn"):
        for ours, theirs in zip(
            backbone.get_layer(name).get_weights(), given.get_layer(name).get_weights(), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)
    (tmp_path / "no.weights.h5").write_bytes(b"no weights")
    with pytest.raises(TrainingFailed, match="use --weights none") as raised:
        load_backbone(network, "d0", str(tmp_path / "no.weights.h5"))
    assert len(str(raised.value).splitlines()) == 1


def test_the_first_steps_of_training_have_losses_near_those_of_no_network_at_all(monkeypatch):
    """Normalised by the statistics of single batches, other pictures had losses in the thousands.

    A narrow pyramid of one layer is traced in half of the time.
    """
    monkeypatch.setitem(SIZES, "d0", Size("EfficientNetB0", 128, channels=16, layers=1))
    side, steps = 128, 5
    network = network_of("d0", (FACE,))
    recipe = Recipe("d0", side, 4, steps, 0.002, 0, False, "none", "float32")
    batches = [_batch(seed, side) for seed in range(steps + 1)]
    fitting.reproducible(0)
    trained = fitting._Trained(recipe, network, None, batches[0])
    before = trained.model.get_layer("backbone").get_weights()
    # The loss of a network that gives every anchor PRIOR, and its own sides.
    logits = np.full((4, len(anchors(side, side)), 1), np.log(PRIOR / (1 - PRIOR)), np.float32)
    untouched = {"faces": logits, "boxes": np.zeros((*logits.shape[:2], 4), np.float32)}
    losses = network.losses()
    expected = sum(
        float(losses[name](batches[-1].truth[name], keras.ops.convert_to_tensor(values)))
        for name, values in untouched.items()
    )

    outputs = trained.model(batches[0].pictures, training=True)
    for name, values in untouched.items():
        assert np.abs(outputs[name] - values).max() < 0.5

    for batch in batches[:-1]:
        loss = float(trained.step(batch)["loss"])
        other = trained.model.test_on_batch(
            batches[-1].pictures, batches[-1].truth, return_dict=True
        )["loss"]

        assert loss == pytest.approx(expected, rel=0.25)
        assert float(other) == pytest.approx(expected, rel=0.1)

    after = trained.model.get_layer("backbone").get_weights()
    assert any((one != another).any() for one, another in zip(before, after, strict=True))


def _batch(seed, side):
    """Return four pictures of noise at different scales, each with a face."""
    random = np.random.default_rng(seed)
    pictures = [
        np.kron(
            random.integers(0, 256, (side // grain, side // grain, 3)), np.ones((grain, grain, 1))
        )
        for grain in (1, 4, 16, 64)
    ]
    face = np.array([[20, 24, 84, 76]], np.float32)
    nothing = np.zeros((0, 4), np.float32)
    found = targets(anchors(side, side), face, nothing, np.array([0]), 1)
    truth = {"faces": np.stack([found.faces] * 4), "boxes": np.stack([found.boxes] * 4)}
    return Batch(np.array(pictures, np.float32), truth)
