"""The sizes of faces by which figures are told apart."""

from collections.abc import Sequence

# The upper limit of the shorter side of the box, in pixels, and the name.
FACE_SIZES = ((24, "below 24 px"), (48, "24 to 48 px"), (96, "48 to 96 px"))
LARGEST_FACES = "above 96 px"
FACE_SIZE_NAMES = (*(name for _, name in FACE_SIZES), LARGEST_FACES)


def face_size(box_xyxy: Sequence[float]) -> str:
    """Return the name of the size of a face, by the shorter side of its box."""
    x1, y1, x2, y2 = box_xyxy
    side = min(x2 - x1, y2 - y1)
    for limit, name in FACE_SIZES:
        if side < limit:
            return name
    return LARGEST_FACES
