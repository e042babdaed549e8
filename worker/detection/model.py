"""What a detector's model is to the rest, whichever engine runs it, and what its folder says of
it.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from tasks.errors import ModelInvalid
from worker.detection.faces import Detections
from worker.pixels import Pixels

METADATA = "veil.json"
NETWORK = "network.tflite"  # the default model in 8 bits, next to saved_model.pb
LEFT_OUT = "detection_left_out"  # an output of a SavedModel: see Detections.left_out
DEFAULT_THRESHOLD = 0.5  # for a model that states none


class Model(Protocol):
    """A detector's model, loaded, checked and warmed: batches of pictures in, Detections out."""

    folder: Path
    engine: str
    device: str
    """Where it runs, in words."""
    on_gpu: bool
    lanes: int
    """How many batches it takes at once, each from a thread of its own."""
    digest: str
    """Names all that decides its answers."""
    score_threshold: float
    fixed_size: tuple[int, int] | None
    """(height, width) if it takes only that size."""

    def predict(self, batch: Pixels) -> Sequence[Detections]:
        """One Detections, in pixels of the canvas, for each picture of uint8 RGB [n, height, width,
        3].
        """


def stated_threshold(folder: Path) -> float:
    """The score_threshold that veil.json in `folder` states; DEFAULT_THRESHOLD if there is none."""
    path = folder / METADATA
    if not path.exists():
        return DEFAULT_THRESHOLD
    try:
        threshold = float(json.loads(path.read_text()).get("score_threshold", DEFAULT_THRESHOLD))
    except (OSError, ValueError, TypeError, AttributeError):
        raise ModelInvalid(f'{path} must be like {{"score_threshold": 0.3}}') from None
    if not 0 < threshold < 1:
        raise ModelInvalid(f"{path}: score_threshold must be between 0 and 1")
    return threshold


def digest_of(folder: Path) -> str:
    """SHA-256 over the names and contents of the model's files."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def in_a_line(error: Exception) -> str:
    """What `error` says, in one line."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"{reason:.200}"
