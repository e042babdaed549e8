"""The protocol of a detector's model, whichever engine runs it, and its folder's metadata."""

import difflib
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from tasks.errors import DetectorUnavailable, ModelInvalid
from tasks.messages import label_of
from worker.detection.centerface.maps import DEFAULT_LAYOUT, Layout
from worker.detection.faces import LANDMARKS, Detections
from worker.pixels import Pixels

GRAPH = "saved_model.pb"
METADATA = "veil.json"
NETWORK = "network.tflite"  # A CenterFace in 8 bits, next to saved_model.pb.
LEFT_OUT = "detection_left_out"  # An output of a SavedModel: see Detections.left_out.
DEFAULT_THRESHOLD = 0.5  # The score threshold of a model that states none.
MAX_REASON_LENGTH = 200  # characters
# The lines that TensorFlow puts before the reason of an error in a graph: a heading, the name of
# the node and its stack trace, which is indented.
BEFORE_REASON = re.compile(r"Graph execution error:|Detected at node |<stack traces |\s|$")


class DeviceFull(DetectorUnavailable):
    """The device has no memory left for a batch, but may have it for a smaller one."""


class Model(Protocol):
    """A detector's model, loaded, checked and run once."""

    folder: Path
    name: str
    """The model's name in messages: what VEIL_MODEL is set to, or its folder."""
    engine: str
    device: str
    """The device that it runs on, for logs."""
    on_gpu: bool
    lanes: int
    """The number of batches that it takes at once, each from a thread of its own."""
    digest: str
    """A digest of everything that decides its detections."""
    score_threshold: float
    fixed_size: tuple[int, int] | None
    """(height, width) if it takes no other size."""

    def predict(self, batch: Pixels) -> Sequence[Detections]:
        """Return one Detections for each canvas of `batch`, uint8 RGB [n, height, width, 3].

        Boxes are in pixels of the canvas. Raises DeviceFull if a smaller batch may succeed.
        """


def require_graph(folder: Path) -> None:
    """Raise ModelInvalid if `folder` has neither the graph of a SavedModel nor a NETWORK."""
    if not (folder / GRAPH).is_file() and not (folder / NETWORK).is_file():
        inner = sorted(folder.glob(f"*/{GRAPH}"))
        right = inner[0].parent if inner else "the folder of a SavedModel"
        raise ModelInvalid(f"{folder} holds no {GRAPH}: give {right}")


def stated_threshold(folder: Path, name: str) -> float:
    """Return the score_threshold that veil.json in `folder` states, else DEFAULT_THRESHOLD.

    Raises ModelInvalid, which says the model's `name`, if the file can't be read or the value is
    not between 0 and 1.
    """
    stated = _all_stated(folder, name)
    try:
        threshold = float(stated.get("score_threshold", DEFAULT_THRESHOLD))
    except (ValueError, TypeError):
        raise ModelInvalid(
            f'{METADATA} of {name} must be like {{"score_threshold": 0.3}}'
        ) from None
    if not 0 < threshold < 1:
        raise ModelInvalid(f"{METADATA} of {name}: score_threshold must be between 0 and 1")
    return threshold


def stated_labels(folder: Path) -> dict[int, str]:
    """Return the label of each class of the model, as veil.json in `folder` states them.

    They are empty if it states none. Raises ModelInvalid if they are not a label for each number.
    """
    labels = _stated(folder, "labels", None)
    if labels is None:
        _refuse_misspelt(folder)
        return {}
    try:
        return _labels_by_class(labels)
    except ValueError as error:
        raise ModelInvalid(
            f'{folder / METADATA}: labels must be like {{"1": "FACE", "2": "plate"}}: {error}'
        ) from None


def _labels_by_class(labels: Any) -> dict[int, str]:
    """Return the label of each class in `labels`. Raises ValueError, in one line, without any."""
    if not isinstance(labels, dict):
        raise ValueError("they are no JSON object")
    if not labels:
        raise ValueError("there are none")
    found = {}
    for number, label in labels.items():
        if not number.strip().isdecimal():
            is_swapped = isinstance(label, int) or str(label).strip().isdecimal()
            hint = ", the number comes first" if is_swapped else ""
            raise ValueError(f"{number!r:.80} is no number of a class{hint}")
        if not isinstance(label, str):
            raise ValueError(f"the label of the class {number:.80} is no text")
        found[int(number)] = label_of(label)
    return found


def _refuse_misspelt(folder: Path) -> None:
    """Raise ModelInvalid for a key of veil.json that is nearly ``labels``.

    Without its labels, all that the model finds would be treated as faces.
    """
    for key in _all_stated(folder):
        if difflib.get_close_matches(key.lower(), ["labels"], cutoff=0.75):
            raise ModelInvalid(f"{folder / METADATA}: {key:.40} is unknown: did you mean labels?")


def stated_layout(folder: Path) -> Layout:
    """Return the layout of the maps of the network in 8 bits, as veil.json in `folder` states it.

    It is that of the default model if the file states none. Raises ModelInvalid if it is no layout.
    """
    maps = _stated(folder, "maps", None)
    if maps is None:
        return DEFAULT_LAYOUT
    try:
        layout = Layout(int(maps["classes"]), int(maps["landmarks"]))
    except (KeyError, TypeError, ValueError):
        layout = Layout(0)
    if layout.classes < 1 or layout.landmarks not in (0, LANDMARKS):
        raise ModelInvalid(
            f'{folder / METADATA}: maps must be like {{"classes": 1, "landmarks": 0}}'
        )
    return layout


def _stated(folder: Path, name: str, default: Any) -> Any:
    """Return the value of `name` in veil.json in `folder`, or `default` if there is none."""
    return _all_stated(folder).get(name, default)


def _all_stated(folder: Path, name: str | None = None) -> dict[str, Any]:
    """Return what veil.json in `folder` states.

    Raises ModelInvalid, which says the model's `name` or else the folder, if it is no JSON object.
    """
    path = folder / METADATA
    if not path.exists():
        return {}
    named = f"{METADATA} of {name}" if name else str(path)
    try:
        stated = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelInvalid(f"{named} can't be read: {error.strerror}") from None
    except json.JSONDecodeError as error:
        raise ModelInvalid(f"{named} is no JSON: {_fault(error)}") from None
    except ValueError:
        raise ModelInvalid(f"{named} is no JSON: it is no text in UTF-8") from None
    if not isinstance(stated, dict):
        raise ModelInvalid(f"{named} must be a JSON object, and is another value")
    return stated


def _fault(error: json.JSONDecodeError) -> str:
    """Return the line in which JSON ends to be valid, and the reason in words."""
    before = error.doc[: error.pos + 1].rstrip("]} \t\r\n")
    # Python 3.13 points to the comma itself, earlier versions to the bracket after it.
    if before.endswith(",") and error.doc[len(before) :].lstrip()[:1] in ("}", "]"):
        return f"line {before.count(chr(10)) + 1} has a comma with nothing after it"
    reason = error.msg[:1].lower() + error.msg[1:]
    return f"line {error.lineno}, column {error.colno}: {reason}"


def digest_of(folder: Path) -> str:
    """Return the SHA-256 over the names and contents of the files in `folder`, as hex digits."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def in_a_line(error: Exception) -> str:
    """Return the first line of `error`'s text that states a reason, or its class if none does."""
    for line in str(error).splitlines():
        if not BEFORE_REASON.match(line):
            return line[:MAX_REASON_LENGTH]
    return type(error).__name__
