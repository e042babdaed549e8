"""Detection of several labels, by one or several models: each label is searched for by itself.

So a label has its own threshold and passes, and is found as if its model found nothing else.
"""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tasks.errors import DetectionFailed
from tasks.messages import FACE
from worker.detection.detector import WEAK_SCORE_FACTOR, ScaledDetector
from worker.detection.faces import Detections, bridged, merge
from worker.detection.objects import detector_of
from worker.detection.presets import PassSettings
from worker.detection.tiled import TOO_MANY_FACES, Infer, ModelInput, TooMany
from worker.pixels import Pixels


@dataclass(frozen=True)
class Search:
    """The search for the objects of one `label` with one model.

    `model` is the place of the model among those of the worker, and `takes` its input. `classes`
    has the label of each class of the model; it is empty if the model states none, whose classes
    all count. `seconds` is the time limit of all passes over a picture, and a score below
    `near_score` counts as near the threshold. `too_many` has the errors of a picture with more
    objects than the model can return.
    """

    label: str
    model: int
    settings: PassSettings
    score_threshold: float
    near_score: float
    takes: ModelInput
    seconds: float
    classes: Mapping[int, str]
    too_many: TooMany = TOO_MANY_FACES

    @property
    def is_of_all_classes(self) -> bool:
        """True if the model finds this label alone."""
        return set(self.classes.values()) <= {self.label}

    def near(self, found: Detections) -> int:
        """Return the number of the objects `found` that are near the threshold."""
        return int((found.scores < self.near_score).sum())


OnSearch = Callable[[Search, Detections], None]
"""A function that is called with the detections of each search in a picture."""


@dataclass(frozen=True)
class LabelledDetector:
    """A Detector that makes several searches, and merges the detections of each label.

    `infer` has the function that runs each model. `seconds` is the time limit of all searches in a
    picture. `on_search` is called after each.
    """

    searches: Sequence[Search]
    infer: Sequence[Infer]
    seconds: float
    on_search: OnSearch

    def detect(self, picture: Pixels) -> Detections:
        """Return the objects in `picture`, as Detector says, with their labels.

        Raises DetectionFailed for a class that its model's veil.json does not label.
        """
        end = time.monotonic() + self.seconds
        infer = [self._remembered(model) for model in range(len(self.infer))]
        found = []
        for search in self.searches:
            remaining = end - time.monotonic()
            detections = self.scaled(search, infer[search.model], remaining).detect(picture)
            self.on_search(search, detections)
            found.append((search.label, detections))
        return _labelled(found)

    @staticmethod
    def scaled(search: Search, infer: Infer, seconds: float = float("inf")) -> ScaledDetector:
        """Return the detector of one `search`, whose model `infer` runs, for at most `seconds`."""
        return detector_of(
            search.label,
            of_label(infer, search),
            search.settings,
            search.score_threshold,
            search.takes,
            min(search.seconds, seconds),
            search.too_many,
        )

    def _remembered(self, model: int) -> Infer:
        """Return the Infer of `model`, with memory if several searches need it."""
        infer = self.infer[model]
        users = [search for search in self.searches if search.model == model]
        return remembering(infer) if len(users) > 1 else infer


def remembering(infer: Infer) -> Infer:
    """Return `infer` with memory: it runs on each canvas once. It is meant for one picture."""
    known: dict[tuple[tuple[int, ...], bytes], Detections] = {}

    def remembered(canvases: Sequence[Pixels]) -> list[Detections]:
        names = []
        unknown = {}
        for canvas in canvases:
            name = canvas.shape, hashlib.blake2b(np.ascontiguousarray(canvas).data).digest()
            names.append(name)
            if name not in known:
                unknown[name] = canvas
        if unknown:
            known.update(zip(unknown, infer(list(unknown.values())), strict=True))
        return [known[name] for name in names]

    return remembered


def of_label(infer: Infer, search: Search) -> Infer:
    """Return `infer` with the detections of the label of `search` alone.

    The model is asked for no more than `infer` is. Raises DetectionFailed for a detection that may
    count, and whose class has no label.
    """
    if not search.classes:
        return infer
    wanted = [number for number, label in search.classes.items() if label == search.label]
    least_score = WEAK_SCORE_FACTOR * search.score_threshold

    def of_one(answer: Detections) -> Detections:
        if answer.classes is None:
            return answer
        is_known = np.isin(answer.classes, list(search.classes))
        is_unknown = ~is_known & ~(answer.scores < least_score)
        if is_unknown.any():
            number = answer.classes[is_unknown][0]
            raise DetectionFailed(
                f"the model returned the class {number}, which its veil.json does not label: add it"
            )
        if search.is_of_all_classes:
            return answer
        # A score that is no number must reach the checks of every search.
        is_wanted = np.isin(answer.classes, wanted) | np.isnan(answer.scores)
        return replace(answer[is_wanted], left_out=answer.left_out)

    return lambda canvases: [of_one(answer) for answer in infer(canvases)]


def by_label(
    change: Callable[[list[Detections]], list[Detections]], frames: Sequence[Detections]
) -> list[Detections]:
    """Return the detections of `frames` that `change` makes of those of each label by itself."""
    if all(found.labelled is None for found in frames):
        return change(list(frames))
    parts: list[list[Detections]] = [[] for _ in frames]
    labels = np.unique(np.concatenate([found.labels for found in frames]))
    for label in labels:
        chosen = [found[found.labels == label] for found in frames]
        changed = change([replace(found, labelled=None) for found in chosen])
        for part, found in zip(parts, changed, strict=True):
            part.append(with_label(found, str(label)))
    return [Detections.joined([_no_object(), *part]) for part in parts]


def merge_by_label(found: Detections) -> Detections:
    """Return the detections `found`, of which those of one label are merged as `merge` does."""
    (merged,) = by_label(lambda frames: [merge(one) for one in frames], [found])
    return merged


def merge_views(found: Sequence[Detections]) -> Detections:
    """Return the objects of a frame, `found` in each of its views."""
    return found[0] if len(found) == 1 else merge_by_label(Detections.joined(found))


def bridge_by_label(frames: Sequence[Detections]) -> list[Detections]:
    """Return the objects of the frames of an animation; each label is bridged by itself."""
    return by_label(bridged, frames)


def with_label(found: Detections, label: str) -> Detections:
    """Return `found` with `label` for each."""
    return replace(found, labelled=np.full(len(found), label))


def _no_object() -> Detections:
    return with_label(Detections.none(), FACE)


def _labelled(found: Sequence[tuple[str, Detections]]) -> Detections:
    """Return the detections of all searches, those of several searches for a label merged."""
    searched = [label for label, _ in found]
    if searched == [FACE]:
        return found[0][1]
    joined = Detections.joined([_no_object(), *(with_label(one, label) for label, one in found)])
    if len(set(searched)) == len(searched):
        return joined
    return merge_by_label(joined)
