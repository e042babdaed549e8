"""The EfficientDets are the paper's: as many parameters and multiply-adds, within 5 %."""

import pytest

from benchmarks import networks
from training.model import SIZES, efficientdet


@pytest.mark.parametrize("size", ["d0", "d2"])
def test_an_efficientdet_has_the_parameters_and_multiply_adds_of_the_paper(size):
    cost = networks.cost(efficientdet(size, networks.COCO_CLASSES), SIZES[size].side)

    parameters, multiply_adds = networks.PAPER[size]
    assert cost["parameters"] == pytest.approx(parameters * 1e6, rel=0.05)
    assert cost["multiply_adds"] == pytest.approx(multiply_adds * 1e9, rel=0.05)
