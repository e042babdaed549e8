"""What a worker measures of itself: its detector, what it has in hand, and that its loop is
alive.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from celery.signals import heartbeat_sent
from celery.worker import state
from prometheus_client import Counter, Gauge, Histogram, Info

from tasks.metrics import REGISTRY

if TYPE_CHECKING:
    from worker.detection.batching import Batcher, Predict
    from worker.detection.detector import Detector
    from worker.detection.faces import Detections
    from worker.pixels import Pixels

NEAR = 0.05  # a detection is near the threshold if its score is less than this above it

BUILD = Info("veil_build", "The version that runs, its recipe and its model.", registry=REGISTRY)
HEARTBEAT = Gauge(
    "veil_worker_heartbeat_timestamp_seconds",
    "When the loop that takes messages was last seen alive, seconds since the epoch.",
    registry=REGISTRY,
)
IN_HAND = Gauge(
    "veil_in_hand_pictures", "Pictures that this worker has in hand.", registry=REGISTRY
)
DETECTOR_QUEUE = Gauge(
    "veil_detector_queue_pictures", "Pictures that wait for the detector.", registry=REGISTRY
)
BATCHES = Histogram(
    "veil_batch_pictures",
    "Pictures that the model took at once.",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128),
    registry=REGISTRY,
)
DETECTIONS = Counter("veil_detections", "Faces that the detector returned.", registry=REGISTRY)
NEAR_THRESHOLD = Counter(
    "veil_detections_near_threshold",
    f"Faces that the detector returned with a score less than {NEAR} above the threshold.",
    registry=REGISTRY,
)


def watch_worker() -> None:
    """Follow the Celery worker of this process; before it starts."""
    IN_HAND.set_function(lambda: len(state.active_requests))
    heartbeat_sent.connect(_beat, weak=False)


def _beat(**_: Any) -> None:
    HEARTBEAT.set_to_current_time()


def counted(predict: "Predict") -> "Predict":
    """`predict`, its batches measured."""

    def run(batch: "Pixels") -> "Sequence[Detections]":
        BATCHES.observe(len(batch))
        return predict(batch)

    return run


def watch_batcher(batcher: "Batcher") -> None:
    """Show how many pictures wait for `batcher`."""
    DETECTOR_QUEUE.set_function(lambda: batcher.waiting)


@dataclass(frozen=True)
class ScoredDetector:
    """A Detector that counts what `detector` returns, and how much of it only just reached
    `threshold`.
    """

    detector: "Detector"
    threshold: float

    def detect(self, picture: "Pixels") -> "Detections":
        found = self.detector.detect(picture)
        DETECTIONS.inc(len(found))
        NEAR_THRESHOLD.inc(int((found.scores < self.threshold + NEAR).sum()))
        return found
