"""Overlapping boxes of a picture, found without comparing each box with every other one."""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[Any]
Rows = NDArray[np.intp]

PAIRS_AT_ONCE = 1 << 18  # Candidate pairs that are compared at a time, which bounds the memory.


def overlapping_pairs(boxes: Boxes, others: Boxes) -> Iterator[tuple[Rows, Rows]]:
    """Yield the rows of all overlapping pairs of `boxes` [n, 4] and `others` [m, 4], in chunks.

    Boxes are x1 y1 x2 y2. Those that only touch do not overlap. A point (x1 = x2 and y1 = y2)
    overlaps the boxes that it lies inside.
    """
    for rows, other_rows in _candidates(boxes, others):
        overlaps = _overlaps(boxes[rows], others[other_rows])
        if overlaps.any():
            yield rows[overlaps], other_rows[overlaps]


def connected(boxes: Boxes) -> Rows:
    """Return the lowest row [n] that overlapping boxes connect each of `boxes` [n, 4] with."""
    labels = np.arange(len(boxes))
    for rows, other_rows in _candidates(boxes, boxes):
        # Boxes on top of each other have many pairs, so those that are connected already are not
        # compared.
        is_open = labels[rows] != labels[other_rows]
        rows, other_rows = rows[is_open], other_rows[is_open]
        overlaps = _overlaps(boxes[rows], boxes[other_rows])
        _join(labels, rows[overlaps], other_rows[overlaps])
        if not labels.any():
            break
    return labels


def _join(labels: Rows, rows: Rows, others: Rows) -> None:
    """Give `rows` and `others`, and all that have their labels, the lower of both, in place."""
    while len(rows):
        label, other_label = labels[rows], labels[others]
        lower, higher = np.minimum(label, other_label), np.maximum(label, other_label)
        np.minimum.at(labels, higher, lower)
        while not np.array_equal(labels, labels[labels]):
            labels[:] = labels[labels]
        is_open = labels[rows] != labels[others]
        rows, others = rows[is_open], others[is_open]


def _overlaps(boxes: Boxes, others: Boxes) -> NDArray[np.bool_]:
    """Return which of `boxes` [n, 4] overlap the one of `others` [n, 4] in the same row."""
    overlaps = (boxes[:, :2] < others[:, 2:]) & (others[:, :2] < boxes[:, 2:])
    return np.asarray(overlaps.all(axis=1), bool)


def _candidates(boxes: Boxes, others: Boxes) -> Iterator[tuple[Rows, Rows]]:
    """Yield the pairs whose spans overlap along one axis: the axis on which fewer do."""
    axes = []
    for axis in (0, 1):
        start, end = boxes[:, axis], boxes[:, axis + 2]
        other_start, other_end = others[:, axis], others[:, axis + 2]
        order = np.argsort(start, kind="stable")
        other_order = np.argsort(other_start, kind="stable")
        # Of two spans that overlap, the one that starts later starts within the other.
        in_boxes = _starts_within(other_start[other_order], start, end, "left")
        in_others = _starts_within(start[order], other_start, other_end, "right")
        pairs = 0
        for first, last in (in_boxes, in_others):
            pairs += int((last - first).sum())
        axes.append((pairs, other_order, in_boxes, order, in_others))
    _, other_order, in_boxes, order, in_others = min(axes, key=lambda candidates: candidates[0])
    for rows, places in _chunks(*in_boxes):
        yield rows, other_order[places]
    for other_rows, places in _chunks(*in_others):
        yield order[places], other_rows


def _starts_within(
    starts: Boxes, first: Boxes, last: Boxes, side: Literal["left", "right"]
) -> tuple[Rows, Rows]:
    """Return the range of the sorted `starts` within each span from `first` to `last`.

    The range excludes `last`; with `side` ``right``, `first` too.
    """
    begin = np.searchsorted(starts, first, side=side)
    return begin, np.maximum(begin, np.searchsorted(starts, last, side="left"))


def _chunks(first: Rows, last: Rows) -> Iterator[tuple[Rows, Rows]]:
    """Yield each row with each place of its range, PAIRS_AT_ONCE pairs at a time, or one row."""
    counts = last - first
    ends = np.cumsum(counts)
    row = 0
    while row < len(counts):
        done = ends[row] - counts[row]
        stop = max(row + 1, int(np.searchsorted(ends, done + PAIRS_AT_ONCE, side="right")))
        chunk = counts[row:stop]
        rows = np.repeat(np.arange(row, stop), chunk)
        offsets = np.arange(len(rows)) - np.repeat(np.cumsum(chunk) - chunk, chunk)
        yield rows, np.repeat(first[row:stop], chunk) + offsets
        row = stop
