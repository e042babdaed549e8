"""Training batches: each depends on its number alone, and threads prepare it ahead of time."""

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from training.augmentation import Boxes, Example, augmented, fitted
from training.data.dataset import FACE, Dataset, Picture
from training.network import Floats, Network, Targets
from worker.pixels import Pixels

AHEAD = 4  # batches that are prepared during a training step
KEPT_BYTES = 1 << 30  # limit for the decoded pictures that stay in memory


@dataclass(frozen=True)
class Batch:
    """The input of one training step and its targets.

    `pictures` is float32 [n, side, side, 3]; `truth` contains the targets of all pictures, whose
    first axis is n.
    """

    pictures: Floats
    truth: Targets


@dataclass
class Batches:
    """A sequence of batches in which each round has every picture once, in random order.

    A batch depends on its number only, so that a resumed run trains on the batches that it would
    have seen without the interruption.
    """

    dataset: Dataset
    pictures: Sequence[Picture]
    network: Network
    side: int
    size: int
    seed: int
    augment: bool
    threads: int = 4
    _kept: dict[str, Pixels] = field(default_factory=dict)
    _kept_bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        labels = self.dataset.labels
        # Only faces have a lower half that a mask, a scarf or a hand may cover.
        self._coverable = labels.index(FACE) if FACE in labels else None

    def starting(self, number: int, count: int) -> Iterator[Batch]:
        """Yield the batches `number` to `count` - 1."""
        with ThreadPoolExecutor(self.threads) as pool:
            waiting: deque[list[Future[tuple[Pixels, Targets]]]] = deque()
            try:
                for made in range(number, count):
                    waiting.append(
                        [pool.submit(self.example, made * self.size + i) for i in range(self.size)]
                    )
                    if len(waiting) > AHEAD:
                        yield joined([future.result() for future in waiting.popleft()])
                while waiting:
                    yield joined([future.result() for future in waiting.popleft()])
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def example(self, number: int) -> tuple[Pixels, Targets]:
        """Return picture `number` of the sequence and its targets."""
        round_, place = divmod(number, len(self.pictures))
        order = np.random.default_rng([self.seed, round_]).permutation(len(self.pictures))
        picture = self.pictures[order[place]]
        example = self.labelled(picture)
        if self.augment:
            random = np.random.default_rng([self.seed, number, 1])
            shown = augmented(example, self.side, random, self._coverable)
        else:
            shown = fitted(example, self.side)
        return shown.pixels, self.network.targets(shown, self.side)

    def labelled(self, picture: Picture) -> Example:
        """Return the whole picture with its labels."""
        classes = np.array(picture.classes or [0] * len(picture.faces), np.intp)
        faces, ignored = _boxes(picture.faces), _boxes(picture.ignore)
        return Example(self._pixels(picture), faces, ignored, classes)

    def _pixels(self, picture: Picture) -> Pixels:
        if (kept := self._kept.get(picture.sha256)) is not None:
            return kept
        pixels = self.dataset.pixels(picture)
        with self._lock:
            if self._kept_bytes + pixels.nbytes <= KEPT_BYTES and picture.sha256 not in self._kept:
                self._kept[picture.sha256] = pixels
                self._kept_bytes += pixels.nbytes
        return pixels


def joined(examples: Sequence[tuple[Pixels, Targets]]) -> Batch:
    """Return the batch of `examples`, which are pictures and their targets."""
    pictures = np.stack([pixels for pixels, _ in examples]).astype(np.float32)
    names = examples[0][1]
    truth = {name: np.stack([targets[name] for _, targets in examples]) for name in names}
    return Batch(pictures, truth)


def _boxes(boxes: Sequence[Any]) -> Boxes:
    return np.array(boxes, np.float32).reshape(-1, 4)
