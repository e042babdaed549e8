"""Boxes that a file has in another form than its format wants, such as corners in COCO."""

from collections.abc import Callable, Mapping, Sequence

Box = tuple[float, ...]  # x1 y1 x2 y2
Convert = Callable[[Box], Box]

LARGEST_FRACTION = 2.0  # the sum of a position and a side, in shares of the picture
SMALLEST = 1.0  # pixels; a box with less of a side within its picture does not fit
OVERHANG = 0.05  # share of a side of the picture by which a box may reach outside
# Another form is suspected if LEAST and MISFITS of the boxes don't fit their pictures, and believed
# if FITTING of them do in that form. A few boxes that reach outside may be drawn so.
LEAST, MISFITS, FITTING = 3, 0.2, 0.98

CORNERS, SIDES, CENTRE = "x1 y1 x2 y2", "x y width height", "cx cy width height"
SWAPPED = {CORNERS: "y1 x1 y2 x2", SIDES: "y x height width", CENTRE: "cy cx height width"}
# The names and forms of formats; the attributes of CVAT name each number.
FORMATS = {"coco": ("COCO", SIDES), "jsonl": ("the format JSON lines", CORNERS)}


def _unchanged(numbers: Box) -> Box:
    return numbers


def _sides_of(corners: Box) -> Box:
    x1, y1, x2, y2 = corners
    return x1, y1, x2 - x1, y2 - y1


def _corners_of_sides(numbers: Box) -> Box:
    x, y, width, height = numbers
    return x, y, x + width, y + height


def _corners_of_centre(numbers: Box) -> Box:
    x, y, width, height = numbers
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


READ: dict[str, Convert] = {
    CORNERS: _unchanged,
    SIDES: _corners_of_sides,
    CENTRE: _corners_of_centre,
}


def readings(form: str) -> Mapping[str, Convert]:
    """Return functions from a box as it was read in the format `form` to the one that is meant.

    There is one for each other form that the numbers of the box may have, by the name of the form.
    """
    if form not in FORMATS:
        return {}
    wanted = FORMATS[form][1]
    written = _unchanged if wanted == CORNERS else _sides_of

    def reading(read: Convert, *, swaps: bool) -> Convert:
        def reread(box: Box) -> Box:
            first, second, third, fourth = written(box)
            return read((second, first, fourth, third) if swaps else (first, second, third, fourth))

        return reread

    others = {name: reading(read, swaps=False) for name, read in READ.items() if name != wanted}
    return others | {SWAPPED[name]: reading(read, swaps=True) for name, read in READ.items()}


def cause(form: str, other: str) -> str:
    """Return the sentence that boxes in the format `form` look like the form `other`."""
    name, wanted = FORMATS[form]
    return f"boxes look like {other}; {name} wants {wanted}"


def fault(form: str, boxes: Sequence[Box], sizes: Sequence[tuple[int, int]]) -> str | None:
    """Return why no box of a file in the format `form` can be used; None if they can.

    `sizes` has the (width, height) of the picture of each box.
    """
    misfits = sum(not fits(box, size) for box, size in zip(boxes, sizes, strict=True))
    if misfits < max(LEAST, MISFITS * len(boxes)):
        return None
    for other, reread in readings(form).items():
        fitting = sum(fits(reread(box), size) for box, size in zip(boxes, sizes, strict=True))
        if fitting >= FITTING * len(boxes):
            return f"{misfits:,} of {len(boxes):,} boxes leave their pictures: {cause(form, other)}"
    return None


def fits(box: Box, size: tuple[int, int]) -> bool:
    """Return whether `box` has an area, and is in its picture but for OVERHANG."""
    for low, high, extent in zip(box[:2], box[2:], size, strict=True):
        if low < -OVERHANG * extent or high > (1 + OVERHANG) * extent:
            return False
        if min(high, extent) - max(low, 0) < SMALLEST:
            return False
    return True


def are_fractions(numbers: Sequence[float]) -> bool:
    """Return whether the numbers of an area look like shares of the picture's sides."""
    return all(abs(number) <= LARGEST_FRACTION for number in numbers) and any(
        number != round(number) for number in numbers
    )
