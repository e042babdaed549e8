"""Batches: many threads ask for detections, and as many run the model as it has lanes."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field

import numpy as np
import structlog

from tasks.errors import DetectionFailed, DetectorUnavailable, VeilError
from worker.detection.faces import Detections
from worker.detection.model import DeviceFull, in_a_line
from worker.pixels import Pixels

log = structlog.get_logger("veil")

Predict = Callable[[Pixels], Sequence[Detections]]
"""Return one Detections for each canvas of a batch, uint8 RGB [n, height, width, 3]."""


@dataclass(frozen=True, eq=False)
class _Request:
    """A canvas whose detections a thread waits for, since `arrived` (time.monotonic)."""

    canvas: Pixels
    arrived: float
    answer: "Future[Detections]" = field(default_factory=Future)


class Batcher:
    """Gathers concurrent calls into batches of one shape and runs them on `lanes` threads.

    A batch starts when no other is in hand, when it has `max_size` canvases, or when its oldest
    has waited for `max_wait` seconds. A batch for which the device has no memory is halved, and
    none as large follows. Any other batch that fails is repeated canvas by canvas, so that one
    picture can't fail others.
    """

    def __init__(
        self, predict: Predict, max_size: int, max_wait: float, deadline: float, lanes: int = 1
    ) -> None:
        self._predict = predict
        self._max_size = max_size
        self._max_pixels = float("inf")  # of a batch of several canvases
        self._max_wait = max_wait
        self._deadline = deadline
        self._waiting: list[_Request] = []
        self._in_hand = 0  # batches
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._run, name="inference", daemon=True) for _ in range(lanes)
        ]
        for thread in self._threads:
            thread.start()

    def infer(self, canvases: Sequence[Pixels]) -> list[Detections]:
        """Return the detections in each canvas, uint8 RGB [height, width, 3], in its pixels.

        Raises DetectorUnavailable after `deadline` seconds, after twice as many if the model has
        started on a canvas, and if the batcher is closed. Raises DetectionFailed if the model fails
        on one of the canvases.
        """
        now = time.monotonic()
        requests = [_Request(canvas, now) for canvas in canvases]
        with self._changed:
            if self._closed:
                raise DetectorUnavailable("the detector is shut down")
            self._waiting += requests
            self._changed.notify_all()
        try:
            return [self._result(request) for request in requests]
        finally:
            for request in requests:
                request.answer.cancel()  # Has no effect on an answer that is there.

    def _result(self, request: _Request) -> Detections:
        """Wait for the answer to `request` and return it, or raise its error, as `infer` does."""
        remaining = request.arrived + self._deadline - time.monotonic()
        try:
            return request.answer.result(timeout=max(0, remaining))
        except TimeoutError:
            if request.answer.cancel():
                raise DetectorUnavailable(
                    "the detector has not begun a pass within VEIL_DETECT_SECONDS "
                    f"({self._deadline:g} s): lower VEIL_CONCURRENCY, or raise it"
                ) from None
        # The model has started, and this canvas may be what stalls it. The thread waits on, so that
        # the watchdog that ends the process finds the picture that is to blame still in work.
        try:
            return request.answer.result(timeout=self._deadline)
        except TimeoutError:
            raise DetectorUnavailable(
                "the detector has not finished a pass within twice VEIL_DETECT_SECONDS "
                f"({self._deadline:g} s): raise it"
            ) from None

    @property
    def waiting(self) -> int:
        """The number of canvases that no batch has taken yet."""
        return len(self._waiting)

    def close(self) -> None:
        """Stop the threads after their batches, and wait for them.

        Calls that still wait raise DetectorUnavailable.
        """
        self.stop()
        for thread in self._threads:
            thread.join(timeout=self._deadline)

    def stop(self) -> None:
        """Stop the threads after their batches, as `close` does, without waiting for them."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _run(self) -> None:
        while batch := self._next_batch():
            self._answer(batch)
            with self._changed:
                self._in_hand -= 1
                self._changed.notify_all()
        with self._changed:
            remaining, self._waiting = self._waiting, []
        for request in remaining:
            _fail(request, DetectorUnavailable("the detector is shut down"))

    def _next_batch(self) -> list[_Request]:
        """Wait for a batch and return it: canvases of the oldest's shape; empty once closed."""
        with self._changed:
            while not self._closed:
                self._drop_cancelled()
                if not self._waiting:
                    self._changed.wait()
                    continue
                batch = self._candidates()
                patience = batch[0].arrived + self._max_wait - time.monotonic()
                full = len(batch) == self._size_limit(batch[0].canvas)
                if self._in_hand and not full and patience > 0:
                    self._changed.wait(patience)
                    continue
                self._waiting = [request for request in self._waiting if request not in batch]
                if started := _started(batch):
                    self._in_hand += 1
                    return started
            return []

    def _drop_cancelled(self) -> None:
        self._waiting = [request for request in self._waiting if not request.answer.cancelled()]

    def _candidates(self) -> list[_Request]:
        """Return the waiting requests that a batch of the oldest's shape would take."""
        oldest = self._waiting[0].canvas
        alike = [request for request in self._waiting if request.canvas.shape == oldest.shape]
        return alike[: self._size_limit(oldest)]

    def _size_limit(self, canvas: Pixels) -> int:
        """Return the most canvases of a batch with `canvas`."""
        height, width = canvas.shape[:2]
        return max(1, int(min(self._max_size, self._max_pixels / (height * width))))

    def _answer(self, batch: list[_Request]) -> None:
        """Run the model on `batch`, and give each request its detections or its error."""
        try:
            found = self._predict(_stacked([request.canvas for request in batch]))
            # All are paired before any is passed on: with an answer too few or too many, it is
            # unknown which canvas each belongs to.
            pairs = list(zip(batch, found, strict=True))
            for request, detections in pairs:
                _succeed(request, detections)
        except DeviceFull as error:
            if len(batch) == 1:
                _fail(batch[0], error)
                return
            half = len(batch) // 2
            self._limit_pixels(batch[0].canvas, len(batch) - half)
            self._answer(batch[:half])
            self._answer(batch[half:])
        except Exception as error:
            if len(batch) == 1:
                _fail(batch[0], _as_known_error(error))
                return
            for request in batch:
                self._answer([request])

    def _limit_pixels(self, canvas: Pixels, count: int) -> None:
        """Let no later batch have more pixels than `count` canvases like `canvas`."""
        height, width = canvas.shape[:2]
        with self._changed:
            self._max_pixels = min(self._max_pixels, count * height * width)
        log.warning(
            "the device has no memory for a batch",
            canvas=f"{height} x {width}",
            effect=f"batches have at most {self._max_pixels / 1e6:.1f} megapixels from now on",
        )


def _started(batch: list[_Request]) -> list[_Request]:
    """Mark the requests of `batch` as running, and return those that nobody has cancelled."""
    return [request for request in batch if request.answer.set_running_or_notify_cancel()]


def _stacked(canvases: Sequence[Pixels]) -> Pixels:
    """Return `canvases` as a batch [n, height, width, 3], without a copy of a single one."""
    return canvases[0][np.newaxis] if len(canvases) == 1 else np.stack(canvases)


def _as_known_error(error: Exception) -> Exception:
    """Return `error` as DetectionFailed, unless its class already says who must act."""
    if isinstance(error, VeilError | MemoryError):
        return error
    return DetectionFailed(f"the model failed: {type(error).__name__}: {in_a_line(error)}")


def _succeed(request: _Request, detections: Detections) -> None:
    try:
        request.answer.set_result(detections)
    except InvalidStateError:
        pass  # The caller gave up while the model was running.


def _fail(request: _Request, error: Exception) -> None:
    try:
        request.answer.set_exception(error)
    except InvalidStateError:
        pass  # The caller gave up while the model was running.
