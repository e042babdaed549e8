"""What the network is shown: any batch by its number alone, made by threads ahead of time."""

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.anchors import Floats, Targets, anchors, targets
from training.augmentation import Boxes, Example, augmented, fitted
from training.dataset import Dataset, Picture
from worker.pixels import Pixels

AHEAD = 4  # batches that are in the making while one is trained on
KEPT_BYTES = 1 << 30  # of decoded pictures


@dataclass(frozen=True)
class Batch:
    """`pictures` float32 [n, side, side, 3]; `truth` has ``faces`` [n, a, 1] and ``boxes`` [n, a, 5]: see Targets."""

    pictures: Floats
    truth: dict[str, Floats]


@dataclass
class Batches:
    """Batch after batch of `pictures`, each of which comes once in every round, in an order drawn from `seed`.

    Batch number k is the same whenever and wherever it is made: training that is resumed goes on as if never stopped.
    """

    dataset: Dataset
    pictures: Sequence[Picture]
    side: int
    size: int
    seed: int
    augment: bool
    threads: int = 4
    _kept: dict[str, Pixels] = field(default_factory=dict)
    _kept_bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._grid = anchors(self.side, self.side)

    def starting(self, number: int, count: int) -> Iterator[Batch]:
        """The batches `number` to `count` - 1."""
        with ThreadPoolExecutor(self.threads) as pool:
            waiting: deque[list[Future[tuple[Pixels, Targets]]]] = deque()
            try:
                for made in range(number, count):
                    waiting.append([pool.submit(self.example, made * self.size + i) for i in range(self.size)])
                    if len(waiting) > AHEAD:
                        yield _joined([future.result() for future in waiting.popleft()])
                while waiting:
                    yield _joined([future.result() for future in waiting.popleft()])
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def example(self, number: int) -> tuple[Pixels, Targets]:
        """The picture that comes as the `number`-th, and what the network should say of it."""
        round_, place = divmod(number, len(self.pictures))
        order = np.random.default_rng([self.seed, round_]).permutation(len(self.pictures))
        picture = self.pictures[order[place]]
        example = Example(self._pixels(picture), _boxes(picture.faces), _boxes(picture.ignore))
        if self.augment:
            shown = augmented(example, self.side, np.random.default_rng([self.seed, number, 1]))
        else:
            shown = fitted(example, self.side)
        return shown.pixels, targets(self._grid, _rows_first(shown.faces), _rows_first(shown.ignored))

    def _pixels(self, picture: Picture) -> Pixels:
        if (kept := self._kept.get(picture.sha256)) is not None:
            return kept
        pixels = self.dataset.pixels(picture)
        with self._lock:
            if self._kept_bytes + pixels.nbytes <= KEPT_BYTES and picture.sha256 not in self._kept:
                self._kept[picture.sha256] = pixels
                self._kept_bytes += pixels.nbytes
        return pixels


def _joined(examples: Sequence[tuple[Pixels, Targets]]) -> Batch:
    pictures = np.stack([pixels for pixels, _ in examples]).astype(np.float32)
    faces, boxes = (np.stack([getattr(its, name) for _, its in examples]) for name in ("faces", "boxes"))
    return Batch(pictures, {"faces": faces, "boxes": boxes})


def _boxes(boxes: Sequence[Any]) -> Boxes:
    return np.array(boxes, np.float32).reshape(-1, 4)


def _rows_first(boxes: Boxes) -> NDArray[np.float32]:
    """x1 y1 x2 y2 as y1 x1 y2 x2."""
    return boxes[:, [1, 0, 3, 2]]
