"""Boxes of outputs: exported from receipts, and corrected ones compared with receipts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..addresses import ObjectUri, PrefixUri
from ..errors import BucketNotAllowed, InvalidRequest, VeilError
from ..messages import AnonymizeOptions
from ..publishing import Wanted
from ..routes import Routes
from ..signatures import Key
from ..storage import receipts
from ..storage.receipts import Receipt, ReceiptName
from ..storage.s3 import ObjectStore
from .annotations import EXTRA, FACE, AnnotatedPicture, Area, Shape
from .comparison import find_receipt, read_receipt
from .in_order import in_order
from .places import Places

THREADS = 16  # receipts that are read at once
# A corrected box with this intersection over union with a hidden face is that face.
SAME_FACE_IOU = 0.5


def exported(store: ObjectStore, places: Places) -> Iterator[AnnotatedPicture]:
    """Yield the pictures below `places` with the boxes of their receipts, in listing order.

    Of several receipts of a picture the newest counts. A receipt that does not count is left out,
    and so are those of keys that are too long for the name of a receipt.
    """
    folder = receipts.folder(places.route.destination, places.output)
    grouped = _grouped(receipts.list_folder(store, folder))

    def newest(names: list[ReceiptName]) -> tuple[str, Receipt] | None:
        found = [read_receipt(store, places, name) for name in names]
        counting = [receipt for receipt in found if receipt is not None]
        if not counting:
            return None
        return names[0].key, max(counting, key=lambda receipt: receipt.created)

    for picture in in_order(newest, grouped, THREADS):
        if picture is not None:
            key, receipt = picture
            yield annotated(str(places.destination(key)), receipt)


def annotated(output: str, receipt: Receipt) -> AnnotatedPicture:
    """Return the boxes of a receipt, and its extra areas, as those of the picture `output`."""
    shapes = [
        Shape(tuple(face["box_xyxy"]), FACE, round(face["score"], 4)) for face in receipt.faces
    ]
    shapes += [Shape(area, EXTRA) for area in receipt.asked.extra]
    facts: dict[str, Any] = {"status": receipt.status, "recipe": receipt.recipe}
    if receipt.reason is not None:
        facts["reason"] = receipt.reason
    return AnnotatedPicture(output, receipt.width, receipt.height, shapes, facts)


@dataclass(frozen=True)
class Correction:
    """The request that makes a picture as its corrected boxes say; `problem` if there is none.

    `added` areas are hidden too. In `removed` ones, faces stay clear. Without both nothing changes.
    """

    output: str
    wanted: Wanted | None = None
    added: tuple[Area, ...] = ()
    removed: tuple[Area, ...] = ()
    problem: str | None = None


def correction(
    store: ObjectStore, routes: Routes, keys: Sequence[Key], picture: AnnotatedPicture
) -> Correction:
    """Return what the corrected boxes of `picture`, the address of an output, ask for."""
    try:
        places, key = _place_of(picture.name, routes, keys)
        output = store.head(places.destination(key))
        found = output and find_receipt(store, places, ReceiptName.of_output(key, output))
    except VeilError as error:
        return Correction(picture.name, problem=str(error))
    if output is None:
        return Correction(picture.name, problem="there is no such output")
    receipt = found.accepted if found else None
    source = places.source_of(key, output.metadata)
    if receipt is None or not places.marks.is_source(output.metadata, source):
        return Correction(picture.name, problem="no receipt tells what was hidden")
    if (picture.width, picture.height) not in ((0, 0), (receipt.width, receipt.height)):
        return Correction(picture.name, problem="the boxes are of a picture of another size")
    added, removed = _differences(picture, receipt)
    if not added and not removed:
        return Correction(picture.name)
    try:
        options = receipt.asked.with_more(AnonymizeOptions.parse(exempt=removed, extra=added))
    except InvalidRequest as error:
        return Correction(picture.name, problem=str(error))
    wanted = Wanted(source, places.asked_destination(key), options=options)
    return Correction(picture.name, wanted, added, removed)


def _place_of(output: str, routes: Routes, keys: Sequence[Key]) -> tuple[Places, str]:
    uri = ObjectUri.parse(output)
    for route in routes:
        if route.destination.contains(uri):
            whole = Places.of_outputs(PrefixUri(uri.bucket, route.destination.prefix), routes, keys)
            return whole, whole.output.relative(uri)
    raise BucketNotAllowed(f"no route of {routes.setting} leads to {output}: add one")


def _differences(
    picture: AnnotatedPicture, receipt: Receipt
) -> tuple[tuple[Area, ...], tuple[Area, ...]]:
    """Return the areas that only the corrected boxes have, and those that only the receipt has."""
    hidden = [tuple(face["box_xyxy"]) for face in receipt.faces]
    known = set(receipt.asked.extra)
    added = [
        shape.area
        for shape in picture.shapes
        if shape.area not in known and not _has_same(shape.box_xyxy, hidden)
    ]
    shown = [shape.box_xyxy for shape in picture.shapes]
    removed = [box for box in hidden if not _has_same(box, shown)]
    return tuple(added), tuple(removed)


def _has_same(box: Sequence[int], others: Sequence[Sequence[int]]) -> bool:
    return any(iou(box, other) >= SAME_FACE_IOU for other in others)


def iou(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the intersection over union of two boxes."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    common = width * height
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return common / (areas - common)


def _grouped(names: Iterator[ReceiptName]) -> Iterator[list[ReceiptName]]:
    """Yield the receipts of each picture together: a listing has them one after the other."""
    group: list[ReceiptName] = []
    for name in names:
        if group and group[0].key != name.key:
            yield group
            group = []
        group.append(name)
    if group:
        yield group


def require_pictures(pictures: Sequence[AnnotatedPicture]) -> None:
    """Raise InvalidRequest for a file without pictures."""
    if not pictures:
        raise InvalidRequest("the file has no picture: export one from receipts first")
