"""The interface of the kinds of networks that can be trained."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from training.augmentation import Example
from worker.detection.faces import Detections
from worker.pixels import Pixels

Floats = NDArray[np.float32]
Targets = dict[str, Floats]
"""The expected outputs of a network for one picture, by name."""

CENTERFACE = "centerface"  # as the size of a recipe
LEAST_SCORE = 0.05  # of the detections from which the precision of a checkpoint is computed
DEFAULT = "default"  # as initial weights: the published ones of the default model


class Network(Protocol):
    """A kind of network, for the classes of a data set.

    A Keras network of this kind takes float [n, h, w, 3], RGB 0 to 255. Its outputs are ``faces``,
    which are logits of the classes, and ``boxes``. Exporters write it as a SavedModel whose
    signature docs/models.md describes.
    """

    @property
    def name(self) -> str: ...

    @property
    def side(self) -> int:
        """The side of training squares, pixels, unless the user chooses another."""

    @property
    def multiple(self) -> int:
        """A number that sides of training squares are multiples of."""

    @property
    def learning_rate(self) -> float:
        """The highest rate, unless the user chooses another."""

    @property
    def is_relative(self) -> bool:
        """True if the learning rate is a share of the magnitude of each channel's weights."""

    @property
    def titles(self) -> dict[str, str]:
        """Titles of the curves of the losses, by the names of outputs."""

    def build(self) -> Any:
        """Return the Keras network with new weights."""

    def start(self, model: Any, weights: str, seed: int) -> None:
        """Give `model` initial weights. Raises TrainingFailed if there are none of this name."""

    def frozen(self, model: Any) -> list[Any]:
        """Return the layers that learn nothing if `model` has initial weights."""

    def losses(self) -> dict[str, Any]:
        """Return the Keras losses of the outputs, by name."""

    def targets(self, example: Example, side: int) -> Targets:
        """Return the expected outputs for `example`, a square of `side` pixels."""

    def detections(self, model: Any, pictures: Floats) -> list[Detections]:
        """Return what `model` finds in each of `pictures`, float32 [n, side, side, 3]."""

    def finish(self, model: Any, pictures: Iterable[Pixels], folder: Path) -> None:
        """Write what `save` needs beside the weights to `folder`, that of the run.

        `pictures` are canvases of training pictures, with sides that are multiples of 64.
        """

    def save(self, model: Any, run: Path, folder: Path) -> dict[str, Any]:
        """Write `model` as a SavedModel to `folder`, which does not exist, and compare both.

        `run` is the folder that `finish` wrote to. Returns what veil.json states of this kind of
        network, and ``difference``, the largest one in scores and normalised corners. Raises
        TrainingFailed if that is too large.
        """
