"""Follows the faces of an animation, through frames in which the detector misses them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from worker.detection.boxes import Boxes, Rows, meeting

# Detectors miss a face while it blurs, turns away, is covered by a hand or leaves the picture: for
# about half a second, which is 12 frames of a video, and fewer of most GIFs.
MAX_MISSED_FRAMES = 12
SAME = 0.75  # sides that a face moves between two sightings; neighbours are farther apart
FARTHEST = 3  # sides a face may move while it is missed, at most one a frame
LARGEST_GROWTH = 2  # times its side, between two sightings


@dataclass(frozen=True)
class Tracks:
    """The sightings before and after each of n faces, in the order of their frames.

    A face is missed in the frames after `since` and before its own, and after its own and before
    `until`, at most MAX_MISSED_FRAMES. `speed_before` and `speed_after` float64 [n, 2] are the
    pixels a frame, x y, that it moves there.
    """

    since: Rows
    until: Rows
    speed_before: NDArray[np.float64]
    speed_after: NDArray[np.float64]


def follow(boxes: Boxes, frame: Rows) -> Tracks:
    """Return the tracks of faces with `boxes` [n, 4], x1 y1 x2 y2, of ascending frames `frame`
    [n].
    """
    boxes = boxes.astype(np.float64)
    middles, sides = (
        (boxes[:, :2] + boxes[:, 2:]) / 2,
        np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(axis=1)),
    )
    since, until = frame - MAX_MISSED_FRAMES - 1, frame + MAX_MISSED_FRAMES + 1
    speed_before, speed_after = np.full(middles.shape, np.nan), np.full(middles.shape, np.nan)
    ends = np.zeros(0, np.intp)  # the faces that no later frame shows so far
    for number in np.unique(frame):
        here = np.flatnonzero(frame == number)
        ends = ends[until[ends] >= number]

        before, after = _nearest(boxes, ends, here, SAME * sides[ends])
        speed_after[before] = speed_before[after] = _speed(middles, frame, before, after)
        until[before], since[after] = number, frame[before]
        ends, new = np.setdiff1d(ends, before), np.setdiff1d(here, after)

        # Another person may appear farther away: this link notes a speed, and ends no track.
        lost = ends[np.isnan(speed_after[ends, 0])]
        reach = np.minimum(number - frame[lost], FARTHEST) * sides[lost]
        before, after = _nearest(boxes, lost, new, reach)
        speed_after[before] = speed_before[after] = _speed(middles, frame, before, after)
        ends = np.concatenate([ends, here])
    # A face that is found only before, or only after, goes on as it moved.
    known_before = np.where(np.isnan(speed_before), speed_after, speed_before)
    known_after = np.where(np.isnan(speed_after), speed_before, speed_after)
    return Tracks(since, until, np.nan_to_num(known_before), np.nan_to_num(known_after))


def _speed(
    middles: NDArray[np.float64], frame: Rows, before: Rows, after: Rows
) -> NDArray[np.float64]:
    speed: NDArray[np.float64] = (middles[after] - middles[before]) / (
        frame[after] - frame[before]
    )[:, None]
    return speed


def _nearest(
    boxes: Boxes, some: Rows, others: Rows, reach: NDArray[np.float64]
) -> tuple[Rows, Rows]:
    """Return the pairs that are each other's nearest, within the `reach` of `some`."""
    grown = np.concatenate(
        [boxes[some, :2] - reach[:, None], boxes[some, 2:] + reach[:, None]], axis=1
    )
    near = [np.zeros((2, 0), np.intp), *(np.stack(pair) for pair in meeting(grown, boxes[others]))]
    row, other_row = np.concatenate(near, axis=1)
    one, other = boxes[some[row]], boxes[others[other_row]]
    distance = np.hypot(*((one[:, :2] + one[:, 2:] - other[:, :2] - other[:, 2:]) / 2).T)
    growth = (other[:, 2:] - other[:, :2]).prod(axis=1) / np.maximum(
        (one[:, 2:] - one[:, :2]).prod(axis=1), 1e-9
    )
    alike = (growth <= LARGEST_GROWTH**2) & (growth >= LARGEST_GROWTH**-2)
    distance[~alike | (distance > reach[row])] = np.inf
    least, least_other = np.full(len(some), np.inf), np.full(len(others), np.inf)
    np.minimum.at(least, row, distance)
    np.minimum.at(least_other, other_row, distance)
    chosen = np.isfinite(distance) & (distance == least[row]) & (distance == least_other[other_row])
    return some[row[chosen]], others[other_row[chosen]]
