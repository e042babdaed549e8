"""Boxes, detections and mask styles that tests draw with Hypothesis."""

import numpy as np
from hypothesis import strategies as st

from worker.detection.faces import Detections
from worker.masking.filling import METHODS
from worker.masking.regions import MaskStyle

BOX_CORNERS = st.floats(-50, 150, width=32)
SIZES = st.floats(0, 80, width=32)


@st.composite
def detections(draw, most=8):
    corners = draw(st.lists(st.tuples(BOX_CORNERS, BOX_CORNERS, SIZES, SIZES), max_size=most))
    boxes = np.array([(x, y, x + w, y + h) for x, y, w, h in corners], np.float32).reshape(-1, 4)
    scores = draw(st.lists(st.floats(0, 1, width=32), min_size=len(boxes), max_size=len(boxes)))
    return Detections(boxes, np.array(scores, np.float32))


def found(*boxes, scores=None):
    given = scores if scores is not None else [0.9] * len(boxes)
    return Detections(np.array(boxes, np.float32).reshape(-1, 4), np.array(given, np.float32))


STYLES = st.builds(
    MaskStyle,
    method=st.sampled_from(sorted(METHODS)),
    region=st.sampled_from([0.5, 0.7, 1.0]) | st.floats(0.5, 1),
    margin=st.sampled_from([0.0, 0.1, 1.0]) | st.floats(0, 1),
    shape=st.sampled_from(["rectangle", "ellipse"]),
    feather=st.sampled_from([0.0, 0.1]) | st.floats(0, 0.5),
)
SIDES = st.integers(1, 48)
CORNERS = st.floats(-20, 60, width=32)


@st.composite
def boxes(draw, most=5):
    """Draw boxes within the picture, over its edges and beyond; some empty, touching or nested."""
    corners = draw(st.lists(st.tuples(CORNERS, CORNERS, CORNERS, CORNERS), max_size=most))
    made = [(min(a, c), min(b, d), max(a, c), max(b, d)) for a, b, c, d in corners]
    if made and draw(st.booleans()):
        x1, y1, x2, y2 = made[0]
        made.append((x2, y1, x2 + 5, y2))  # touching
        made.append(
            ((2 * x1 + x2) / 3, (2 * y1 + y2) / 3, (x1 + 2 * x2) / 3, (y1 + 2 * y2) / 3)
        )  # nested
    return np.array(made, np.float32).reshape(-1, 4)
