"""Which boxes of a picture meet, found without comparing each with each."""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[Any]
Rows = NDArray[np.intp]

CHUNK = 1 << 18  # candidate pairs that are compared at a time, which bounds the memory


def meeting(some: Boxes, others: Boxes) -> Iterator[tuple[Rows, Rows]]:
    """Yield the rows of all overlapping pairs of `some` [n, 4] and `others` [m, 4], in chunks.

    Boxes are x1 y1 x2 y2. Those that only touch do not overlap. A point (x1 = x2 and y1 = y2)
    overlaps the boxes that it lies inside.
    """
    for rows, other_rows in _overlapping_spans(some, others):
        meet = _overlap(some[rows], others[other_rows])
        if meet.any():
            yield rows[meet], other_rows[meet]


def connected(boxes: Boxes) -> Rows:
    """Return the lowest row [n] that overlapping boxes connect each of `boxes` [n, 4] with."""
    labels = np.arange(len(boxes))
    for rows, others in _overlapping_spans(boxes, boxes):
        # Pairs that are connected already are not compared: boxes that lie on each other have many.
        apart = labels[rows] != labels[others]
        rows, others = rows[apart], others[apart]
        meet = _overlap(boxes[rows], boxes[others])
        _join(labels, rows[meet], others[meet])
        if not labels.any():
            break
    return labels


def _join(labels: Rows, rows: Rows, others: Rows) -> None:
    """Give `rows` and `others`, and all that have their labels, the lower of both, in place."""
    while len(rows):
        one, other = labels[rows], labels[others]
        np.minimum.at(labels, np.maximum(one, other), np.minimum(one, other))
        while not np.array_equal(labels, labels[labels]):
            labels[:] = labels[labels]
        apart = labels[rows] != labels[others]
        rows, others = rows[apart], others[apart]


def _overlap(some: Boxes, others: Boxes) -> NDArray[np.bool_]:
    """Return which boxes overlap the one of the same row."""
    meet = (some[:, :2] < others[:, 2:]) & (others[:, :2] < some[:, 2:])
    return np.asarray(meet.all(axis=1), bool)


def _overlapping_spans(some: Boxes, others: Boxes) -> Iterator[tuple[Rows, Rows]]:
    """Yield at least the pairs whose spans overlap along the axis on which fewer do."""
    axes = []
    for axis in (0, 1):
        start, end = some[:, axis], some[:, axis + 2]
        other_start, other_end = others[:, axis], others[:, axis + 2]
        order, other_order = (
            np.argsort(start, kind="stable"),
            np.argsort(other_start, kind="stable"),
        )
        # Of two spans that overlap, the one that starts later starts within the other.
        from_some = _within(other_start[other_order], start, end, "left")
        from_others = _within(start[order], other_start, other_end, "right")
        pairs = sum(int((last - first).sum()) for first, last in (from_some, from_others))
        axes.append((pairs, other_order, from_some, order, from_others))
    _, other_order, from_some, order, from_others = min(axes, key=lambda each: each[0])
    for rows, places in _chunks(*from_some):
        yield rows, other_order[places]
    for other_rows, places in _chunks(*from_others):
        yield order[places], other_rows


def _within(
    starts: Boxes, first: Boxes, last: Boxes, side: Literal["left", "right"]
) -> tuple[Rows, Rows]:
    """Return the range of the sorted `starts` within each span; ``right`` leaves out `first`."""
    begin = np.searchsorted(starts, first, side=side)
    return begin, np.maximum(begin, np.searchsorted(starts, last, side="left"))


def _chunks(first: Rows, last: Rows) -> Iterator[tuple[Rows, Rows]]:
    """Yield each row with each place of its range, CHUNK pairs at a time, or one row."""
    counts = last - first
    ends = np.cumsum(counts)
    row = 0
    while row < len(counts):
        done = ends[row] - counts[row]
        stop = max(row + 1, int(np.searchsorted(ends, done + CHUNK, side="right")))
        some = counts[row:stop]
        rows = np.repeat(np.arange(row, stop), some)
        offsets = np.arange(len(rows)) - np.repeat(np.cumsum(some) - some, some)
        yield rows, np.repeat(first[row:stop], some) + offsets
        row = stop
