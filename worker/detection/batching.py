"""Many threads in, batches out: as many threads talk to the model as it has lanes."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field

import numpy as np

from tasks.errors import DetectionFailed, DetectorUnavailable, VeilError
from worker.detection.faces import Detections
from worker.pixels import Pixels

Predict = Callable[[Pixels], Sequence[Detections]]
"""A batch, uint8 RGB [n, height, width, 3], to one Detections a picture."""


@dataclass(frozen=True, eq=False)
class _Waiting:
    canvas: Pixels
    arrived: float
    answer: "Future[Detections]" = field(default_factory=Future)


class Batcher:
    """Gathers concurrent calls into batches of one shape and runs them on `lanes` threads.

    A batch starts when it holds `max_size` pictures or its oldest has waited `max_wait` seconds. A
    batch that fails is repeated picture by picture, so that one picture can't fail its neighbours.
    """

    def __init__(
        self, predict: Predict, max_size: int, max_wait: float, deadline: float, lanes: int = 1
    ) -> None:
        self._predict = predict
        self._max_size = max_size
        self._max_wait = max_wait
        self._deadline = deadline
        self._waiting: list[_Waiting] = []
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._run, name="inference", daemon=True) for _ in range(lanes)
        ]
        for thread in self._threads:
            thread.start()

    def infer(self, canvas: Pixels) -> Detections:
        """The detections in `canvas`, uint8 RGB [height, width, 3], in its pixels.

        Raises DetectorUnavailable after `deadline` seconds, after twice as many if the model has
        begun, or once closed, and DetectionFailed when the model fails on this canvas.
        """
        entry = _Waiting(canvas, time.monotonic())
        with self._changed:
            if self._closed:
                raise DetectorUnavailable("the detector is shut down")
            self._waiting.append(entry)
            self._changed.notify_all()
        try:
            return entry.answer.result(timeout=self._deadline)
        except TimeoutError:
            if entry.answer.cancel():
                raise DetectorUnavailable(
                    f"no answer from the detector within {self._deadline:g} s"
                ) from None
        # The model is at it, and may have stalled on this very picture: whoever ends the process
        # should find it here.
        try:
            return entry.answer.result(timeout=self._deadline)
        except TimeoutError:
            raise DetectorUnavailable(
                f"the detector has not finished within {2 * self._deadline:g} s"
            ) from None

    @property
    def waiting(self) -> int:
        """How many pictures no batch has taken yet."""
        return len(self._waiting)

    def close(self) -> None:
        """Stop the threads after the batches in hand; whoever still waits gets
        DetectorUnavailable.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout=self._deadline)

    def _run(self) -> None:
        while batch := self._next_batch():
            self._answer(batch)
        with self._changed:
            left, self._waiting = self._waiting, []
        for entry in left:
            _fail(entry, DetectorUnavailable("the detector is shut down"))

    def _next_batch(self) -> list[_Waiting]:
        """The next pictures to run, all of the oldest's shape; empty once closed."""
        with self._changed:
            while not self._closed:
                # A future that is cancelled is not worth running any more.
                self._waiting = [entry for entry in self._waiting if not entry.answer.cancelled()]
                if not self._waiting:
                    self._changed.wait()
                    continue
                oldest = self._waiting[0]
                alike = [e for e in self._waiting if e.canvas.shape == oldest.canvas.shape][
                    : self._max_size
                ]
                patience = oldest.arrived + self._max_wait - time.monotonic()
                if len(alike) == self._max_size or patience <= 0:
                    self._waiting = [entry for entry in self._waiting if entry not in alike]
                    if running := [
                        entry for entry in alike if entry.answer.set_running_or_notify_cancel()
                    ]:
                        return running
                    continue
                self._changed.wait(patience)
            return []

    def _answer(self, batch: list[_Waiting]) -> None:
        try:
            found = self._predict(np.stack([entry.canvas for entry in batch]))
            # As a list first: one answer too few, and it is not known whose each of them is.
            for entry, detections in list(zip(batch, found, strict=True)):
                _succeed(entry, detections)
        except Exception as error:
            if len(batch) == 1:
                _fail(batch[0], _named(error))
                return
            for entry in batch:
                self._answer([entry])


def _named(error: Exception) -> Exception:
    if isinstance(error, VeilError | MemoryError):
        return error
    reason = str(error).splitlines()[0] if str(error) else ""
    return DetectionFailed(f"the model failed: {type(error).__name__}: {reason:.200}")


def _succeed(entry: _Waiting, detections: Detections) -> None:
    try:
        entry.answer.set_result(detections)
    except InvalidStateError:
        pass  # its caller gave up while the model was busy


def _fail(entry: _Waiting, error: Exception) -> None:
    try:
        entry.answer.set_exception(error)
    except InvalidStateError:
        pass
