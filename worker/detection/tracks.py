"""The tracks of faces through an animation, over frames in which the detector misses them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from worker.detection.boxes import Boxes, Rows, overlapping_pairs

# Detectors miss a face while it blurs, turns away, is covered by a hand or leaves the picture: for
# about half a second, which is 12 frames of a video, and fewer of most GIFs.
MAX_MISSED_FRAMES = 12
# Between two frames that show it, a face moves by at most this many sides of its box. Neighbouring
# faces are farther apart.
MAX_STEP_SIDES = 0.75
# While it is missed, a face moves by at most one side of its box per frame, and this many in all.
MAX_MISSED_SIDES = 3
# Between two frames that show it, the side of a face's box grows or shrinks by at most this factor.
MAX_GROWTH = 2


@dataclass(frozen=True)
class Tracks:
    """The frames that show each of n faces next, before and after its own.

    A face is missed in the frames after `since` and before its own, and after its own and before
    `until`, at most MAX_MISSED_FRAMES. `speed_before` and `speed_after`, float64 [n, 2], are the
    pixels per frame, x y, by which it moves there.
    """

    since: Rows
    until: Rows
    speed_before: NDArray[np.float64]
    speed_after: NDArray[np.float64]


def follow(boxes: Boxes, frame: Rows) -> Tracks:
    """Return the tracks of faces with `boxes` [n, 4], x1 y1 x2 y2, in the frames `frame` [n].

    The faces are sorted by frame.
    """
    boxes = boxes.astype(np.float64)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    sides = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(axis=1))
    since, until = frame - MAX_MISSED_FRAMES - 1, frame + MAX_MISSED_FRAMES + 1
    speed_before, speed_after = np.full(centres.shape, np.nan), np.full(centres.shape, np.nan)
    ends = np.zeros(0, np.intp)  # Rows of the faces that no later frame has shown so far.
    for number in np.unique(frame):
        here = np.flatnonzero(frame == number)
        ends = ends[until[ends] >= number]

        before, after = _nearest(boxes, ends, here, MAX_STEP_SIDES * sides[ends])
        speed_after[before] = speed_before[after] = _speed(centres, frame, before, after)
        until[before], since[after] = number, frame[before]
        ends, new = np.setdiff1d(ends, before), np.setdiff1d(here, after)

        # A pair that is farther apart may be two people, so it gives a speed and ends no track.
        lost = ends[np.isnan(speed_after[ends, 0])]
        reach = np.minimum(number - frame[lost], MAX_MISSED_SIDES) * sides[lost]
        before, after = _nearest(boxes, lost, new, reach)
        speed_after[before] = speed_before[after] = _speed(centres, frame, before, after)
        ends = np.concatenate([ends, here])
    # A face whose speed is known on one side only keeps it on the other.
    known_before = np.where(np.isnan(speed_before), speed_after, speed_before)
    known_after = np.where(np.isnan(speed_after), speed_before, speed_after)
    return Tracks(since, until, np.nan_to_num(known_before), np.nan_to_num(known_after))


def _speed(
    centres: NDArray[np.float64], frame: Rows, before: Rows, after: Rows
) -> NDArray[np.float64]:
    frames = frame[after] - frame[before]
    speed: NDArray[np.float64] = (centres[after] - centres[before]) / frames[:, None]
    return speed


def _nearest(
    boxes: Boxes, rows: Rows, others: Rows, reach: NDArray[np.float64]
) -> tuple[Rows, Rows]:
    """Return the pairs of `rows` and `others` that are each other's nearest.

    A pair is at most `reach` [n], one for each of `rows`, apart, and alike in size.
    """
    first, last = boxes[rows, :2] - reach[:, None], boxes[rows, 2:] + reach[:, None]
    grown = np.concatenate([first, last], axis=1)
    pairs = [np.zeros((2, 0), np.intp)]
    pairs += [np.stack(pair) for pair in overlapping_pairs(grown, boxes[others])]
    place, other_place = np.concatenate(pairs, axis=1)
    box, other = boxes[rows[place]], boxes[others[other_place]]
    distance = np.hypot(*((box[:, :2] + box[:, 2:] - other[:, :2] - other[:, 2:]) / 2).T)
    area = (box[:, 2:] - box[:, :2]).prod(axis=1)
    growth = (other[:, 2:] - other[:, :2]).prod(axis=1) / np.maximum(area, 1e-9)
    is_alike = (growth <= MAX_GROWTH**2) & (growth >= MAX_GROWTH**-2)
    distance[~is_alike | (distance > reach[place])] = np.inf
    least, other_least = np.full(len(rows), np.inf), np.full(len(others), np.inf)
    np.minimum.at(least, place, distance)
    np.minimum.at(other_least, other_place, distance)
    is_nearest = np.isfinite(distance) & (distance == least[place])
    is_nearest &= distance == other_least[other_place]
    return rows[place[is_nearest]], others[other_place[is_nearest]]
