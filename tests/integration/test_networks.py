"""The EfficientDets have the parameters and multiply-adds of the paper, within 5 %."""

import numpy as np
import pytest

from tasks.errors import TrainingFailed
from tools.benchmarks import networks
from training.backend import keras
from training.efficientdet.model import SIZES, efficientdet, load_backbone


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
