"""The residual check: look at an output again, and hide the faces that are still found in it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np

from tasks.errors import Permanent, UnreadableImage
from tasks.messages import AnonymizeOptions, Reason
from tasks.storage import receipts
from worker import images
from worker.detection.faces import Detections, outside
from worker.masking import regions
from worker.masking.regions import MaskStyle

Output = TypeVar("Output")
"""A file as bytes, or an array of pixels."""

MAX_CHECKS = 6  # of one output, each hiding what it finds; hardly any picture needs five


@dataclass(frozen=True)
class Checked:
    """The outcome of a residual check.

    `verdict` is written to the receipt; `added` are the faces that the check found and hid; `left`
    are those that its last look still found.
    """

    verdict: receipts.Check
    added: Detections
    left: Detections

    @property
    def reason(self) -> Reason | None:
        return "faces still found in the output" if len(self.left) else None


UNCHECKED = Checked("off", Detections.none(), Detections.none())


@dataclass(frozen=True)
class ResidualCheck(Generic[Output]):
    """Look at the output of one picture until no face is found in it, MAX_CHECKS times at most.

    `decode` reads an output, `find` detects the faces of each frame, and `redo` makes the output
    anew with the given faces of each frame hidden. `style` is how they are hidden. No
    check is begun that is likely to end later than `max_seconds` after the first one began.
    """

    decode: Callable[[Output], images.Picture]
    find: Callable[[images.Picture], list[Detections]]
    redo: Callable[[Sequence[Detections]], Output]
    style: MaskStyle
    options: AnonymizeOptions
    max_seconds: float

    def run(
        self, picture: images.Picture, found: Sequence[Detections], output: Output
    ) -> tuple[Output, Checked]:
        """Return the output `output` of `picture`, made anew if faces were found in it.

        `found` are the faces of each frame that it hides already.
        """
        started = time.perf_counter()
        added: list[Detections] = []
        left: list[Detections] | None = []
        for number in range(1, MAX_CHECKS + 1):
            left = self._left(picture, found, output)
            if not left:
                break
            added += left
            found = [Detections.joined(pair) for pair in zip(found, left, strict=True)]
            output = self.redo(found)
            elapsed = time.perf_counter() - started
            if (number + 1) / number * elapsed > self.max_seconds:
                break
        verdict: receipts.Check = "clear"
        if left:
            verdict = "left"
        elif left is None:
            verdict = "same"
        return output, Checked(verdict, _joined(added), _joined(left or []))

    def _left(
        self, picture: images.Picture, found: Sequence[Detections], output: Output
    ) -> list[Detections] | None:
        """Return the faces that the output still shows, for each frame of `picture`.

        The list is empty if there are none. None means that the output has the pixels of
        `picture`, in which there is nothing else to find. A face counts unless its eyes are in one
        that was `found` before: the visible lower part of a hidden face is still a face to the
        detector.
        """
        try:
            shown = self.decode(output)
        except Permanent as error:
            raise UnreadableImage(f"the output can't be read back: {error}") from None
        # Encoders join frames that look alike; then each frame of the output may show any of them.
        aligned = len(shown.frames) == len(picture.frames)
        changed: list[tuple[images.Frame, Sequence[int]]] = []
        for number, frame in enumerate(shown.frames):
            if not aligned:
                changed.append((frame, range(len(picture.frames))))
            elif not np.array_equal(frame.pixels, picture.frames[number].pixels):
                changed.append((frame, [number]))
        if not changed:
            return None
        style = replace(self.style, region=regions.WHOLE)
        hidden = [
            regions.regions(faces.seen, style, frame.width, frame.height, self.options.extra)
            for frame, faces in zip(picture.frames, found, strict=True)
        ]
        left = [Detections.none() for _ in picture.frames]
        looks = self.find(replace(shown, frames=tuple(frame for frame, _ in changed)))
        for (frame, places), seen in zip(changed, looks, strict=True):
            faces = outside(seen, self.options.exempt)
            covered = [
                regions.eyes_hidden(faces, hidden[number], frame.width, frame.height)
                for number in places
            ]
            for number in places:
                left[number] = Detections.joined([left[number], faces[~np.all(covered, axis=0)]])
        return left if any(map(len, left)) else []


def _joined(found: Sequence[Detections]) -> Detections:
    return Detections.joined(found) if found else Detections.none()
