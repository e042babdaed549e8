"""Boxes of outputs: exported from receipts, and corrected ones compared with receipts."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, product
from math import hypot, inf
from typing import Any

from ..addresses import ObjectUri, PrefixUri
from ..errors import BucketNotAllowed, InvalidRequest, SourceChanged, VeilError
from ..messages import FACE, AnonymizeOptions
from ..publishing import Wanted
from ..routes import Routes
from ..signatures import Key
from ..storage.receipts import Face, Receipt, ReceiptName
from ..storage.s3 import ObjectStore, StoredObject
from . import annotations, misread
from .annotations import ARE_MARKS, DIGEST, EXTRA, AnnotatedPicture, Area, Shape
from .comparison import list_outputs, list_receipts, read_receipt, refusal, without_output
from .in_order import in_order
from .places import Places

THREADS = 16  # receipts that are read at once
# A marked box with this intersection over union with a hidden face is that face.
SAME_FACE_IOU = 0.5
# A corrected box with all sides so near those of a hidden one, in pixels, is that box: formats and
# tools round differently. Boxes of a few pixels must share as much as SAME_FACE_IOU, too.
TOLERANCE = 1
# Boxes are of another form if, read so, they are this share of the hidden ones that the file lacks.
REREAD_SHARE = 0.5
TRIED = 3, 100  # of the removed boxes, and of the new ones, to find a common scale
# A face stays clear if half of it lies in an exempt area. Another recipe may find other edges.
EXEMPTED_SHARE = 0.25
UNTOLD = "no receipt tells what was hidden"
UNKNOWN_KEY = "signed by an unknown key: add the key {} to VEIL_RECEIPT_KEY"
REMADE = "the boxes are not those of the present output"


class Export:
    """The boxes of outputs, each by the receipt of the output that is published.

    `without_output`, `without_receipt` and `of_unknown_key` count the pictures left out so far.
    """

    def __init__(self, store: ObjectStore, routes: Routes, keys: Sequence[Key]) -> None:
        self.without_output = 0
        self.without_receipt = 0
        self.of_unknown_key = 0
        self._store = store
        self._routes = routes
        self._keys = keys

    def pictures(self, address: str) -> Iterator[AnnotatedPicture]:
        """Yield the picture `address`, or the pictures below it, with their boxes.

        They come in listing order. Raises BucketNotAllowed and InvalidRequest for an address that
        can't have outputs.
        """
        places, key = self._single(address)
        if key is not None:
            keys = iter([key])
        else:
            outputs = list_outputs(self._store, places)
            keys = (places.output.relative(stored.uri) for stored in outputs)
        for picture in in_order(lambda key: self._picture(places, key), keys, THREADS):
            if picture is not None:
                yield picture
        if key is None:
            self._count_without_output(places)

    def _single(self, address: str) -> tuple[Places, str | None]:
        """Return the places of `address`, and the key of an output there or of its receipts."""
        place = PrefixUri.parse(address)
        places = Places.of_outputs(place, self._routes, self._keys)
        if address.endswith("/") or place == places.route.destination:
            return places, None
        whole = Places.of_outputs(places.route.destination, self._routes, self._keys)
        key = whole.output.relative(ObjectUri.parse(address))
        if self._store.head(whole.destination(key)) or any(list_receipts(self._store, whole, key)):
            return whole, key
        return places, None

    def _picture(self, places: Places, key: str) -> AnnotatedPicture | None:
        destination = places.destination(key)
        if refusal(self._store, destination):
            self.without_receipt += 1
            return None
        output = self._store.head(destination)
        if output is None:
            self.without_output += 1
            return None
        receipt = _published_receipt(self._store, places, key, output)
        if receipt is None:
            if places.marks.missing_key_of(output.metadata):
                self.of_unknown_key += 1
            else:
                self.without_receipt += 1
            return None
        return annotated(str(destination), receipt)

    def _count_without_output(self, places: Places) -> None:
        names = without_output(self._store, places)
        keys = (key for key, _ in groupby(names, lambda name: name.key))
        outputs = in_order(lambda key: self._store.head(places.destination(key)), keys, THREADS)
        self.without_output += sum(output is None for output in outputs)


def _published_receipt(
    store: ObjectStore, places: Places, key: str, output: StoredObject
) -> Receipt | None:
    """Return the receipt that tells what was hidden in `output`; None if there is none.

    The picture may have newer receipts by which it was held. They say nothing about the output.
    """
    receipt = read_receipt(store, places, ReceiptName.of_output(key, output))
    return receipt if receipt is not None and receipt.status == "anonymized" else None


def annotated(output: str, receipt: Receipt) -> AnnotatedPicture:
    """Return the boxes of a receipt, and its extra areas, as those of the picture `output`."""
    shapes = [
        Shape(
            tuple(face["box_xyxy"]),
            annotations.FACE if label == FACE else label,
            round(face["score"], 4),
        )
        for face, label in zip(receipt.faces, receipt.labels, strict=True)
    ]
    shapes += [Shape(area, EXTRA) for area in receipt.asked.extra]
    facts: dict[str, Any] = {"status": receipt.status, "recipe": receipt.recipe}
    if receipt.output_sha256 is not None:
        facts[DIGEST] = receipt.output_sha256
    if receipt.reason is not None:
        facts["reason"] = receipt.reason
    return AnnotatedPicture(output, receipt.width, receipt.height, shapes, facts)


@dataclass(frozen=True)
class Correction:
    """The request that makes a picture as its corrected boxes say; `problem` if there is none.

    `added` areas are hidden too. In `removed` ones, faces stay clear. Without both nothing changes,
    also if the boxes are `outdated`: those of an output in place of which another one is present.
    """

    output: str
    wanted: Wanted | None = None
    added: tuple[Area, ...] = ()
    removed: tuple[Area, ...] = ()
    problem: str | None = None
    outdated: bool = False


class Corrections:
    """Compares corrected boxes with the receipts of outputs."""

    def __init__(self, store: ObjectStore, routes: Routes, keys: Sequence[Key]) -> None:
        self._store = store
        self._places = [Places.of_outputs(route.destination, routes, keys) for route in routes]
        self._setting = routes.setting

    def of(self, picture: AnnotatedPicture) -> Correction:
        """Return what the corrected boxes of `picture`, the address of an output, ask for."""
        try:
            places, key = self._place_of(picture.name)
            output = self._store.head(places.destination(key))
            if output is None:
                return Correction(picture.name, problem="there is no such output")
            receipt = _published_receipt(self._store, places, key, output)
            source = places.source_of(self._store, key, output.metadata)
        except VeilError as error:
            return Correction(picture.name, problem=str(error))
        if receipt is None or source is None:
            missing = places.marks.missing_key_of(output.metadata)
            return Correction(
                picture.name, problem=UNKNOWN_KEY.format(missing) if missing else UNTOLD
            )
        wanted = Wanted(source, places.asked_destination(key))
        return self._correction(picture, receipt, wanted)

    def _correction(
        self, picture: AnnotatedPicture, receipt: Receipt, wanted: Wanted
    ) -> Correction:
        """Return what the boxes of `picture` ask for. `wanted` is the request without them."""
        if (picture.width, picture.height) not in ((0, 0), (receipt.width, receipt.height)):
            return Correction(picture.name, problem="the boxes are of a picture of another size")
        added, removed = _differences(picture, receipt)
        if not added and not removed:
            return Correction(picture.name, outdated=not _is_of_output(picture, receipt))
        problem = _misread(picture, receipt, added) or _impossible(receipt, added, removed)
        if problem is None and removed:
            problem = _other_axes(receipt, added, removed)
        if problem is not None:
            return Correction(picture.name, problem=problem)
        try:
            _check_output(picture, receipt)
            if removed:
                _check_version(self._store, wanted.source, receipt)
            more = AnonymizeOptions.parse(exempt=removed, extra=added)
            options = receipt.asked.with_more(more, receipt.source_etag)
        except VeilError as error:
            return Correction(picture.name, problem=str(error))
        return Correction(picture.name, replace(wanted, options=options), added, removed)

    def _place_of(self, output: str) -> tuple[Places, str]:
        if not _is_address(output):
            raise InvalidRequest(
                "the name is no address, as names of exports are: say with --outputs "
                "s3://OUTPUT/PREFIX where the output is, or write its address as the name"
            )
        uri = ObjectUri.parse(output)
        for places in self._places:
            if places.output.contains(uri):
                return places, places.output.relative(uri)
        raise BucketNotAllowed(f"no route of {self._setting} leads to {output}: add one")


def _check_output(picture: AnnotatedPicture, receipt: Receipt) -> None:
    """Raise InvalidRequest if `picture` does not have all boxes of the output of `receipt`."""
    if ARE_MARKS in picture.facts:
        raise InvalidRequest("these are marks of a sample: veil sample --marks FILE --redo")
    if not _is_of_output(picture, receipt):
        raise InvalidRequest(f"{REMADE}: export them again")


def _is_of_output(picture: AnnotatedPicture, receipt: Receipt) -> bool:
    """Return whether `picture` states no other output than that of `receipt`."""
    stated = {"recipe": receipt.recipe, DIGEST: receipt.output_sha256}
    return all(picture.facts.get(name, value) == value for name, value in stated.items())


def _check_version(store: ObjectStore, source: ObjectUri, receipt: Receipt) -> None:
    """Raise SourceChanged unless `source` is the version in which `receipt` found its faces.

    Areas that stay clear would show other faces of another version.
    """
    present = store.head(source)
    if present is None or present.etag != receipt.source_etag:
        raise SourceChanged(f"its source was replaced or deleted since, and {REMADE}")


def _misread(picture: AnnotatedPicture, receipt: Receipt, added: Sequence[Area]) -> str | None:
    """Return why the boxes `added` look like hidden ones in another form; None if they don't."""
    shown = [_plain(shape.area) for shape in picture.shapes]
    missing = _without_same([_box_of(face) for face in receipt.faces], shown)
    boxes = _boxes_of(added)
    for form, reread in misread.readings(picture.form).items():
        if _most_are_among(missing, [reread(box) for box in boxes]):
            return misread.cause(picture.form, form)
    return None


def _other_axes(receipt: Receipt, added: Sequence[Area], removed: Sequence[Area]) -> str | None:
    """Return why the boxes `added` look like the `removed` ones on other axes, or None.

    Such are boxes of a smaller picture, in percent, or counted from the lower edge.
    """
    new, width, height = _boxes_of(added), receipt.width, receipt.height
    upside_down = [(x1, height - y2, x2, height - y1) for x1, y1, x2, y2 in removed]
    if _most_are_among(upside_down, new):
        return "boxes look like counted from the lower edge of the picture: count from the upper"
    mirrored = [(width - x2, y1, width - x1, y2) for x1, y1, x2, y2 in removed]
    if _most_are_among(mirrored, new):
        return "boxes look like counted from the right edge of the picture: count from the left"
    for box, other in product(removed[: TRIED[0]], new[: TRIED[1]]):
        across, down = other[2] / max(box[2], 1), other[3] / max(box[3], 1)
        scaled = [(x1 * across, y1 * down, x2 * across, y2 * down) for x1, y1, x2, y2 in removed]
        if _most_are_among(scaled, new):
            return (
                f"boxes look like those of a picture of about {width * across:.0f} × "
                f"{height * down:.0f} pixels: this one has {width} × {height}"
            )
    return None


def _most_are_among(areas: Sequence[Sequence[float]], others: Sequence[Sequence[float]]) -> bool:
    """Return whether REREAD_SHARE of `areas`, if there are any, are the same as one of `others`."""
    same = _Same(others)
    count = sum(same.has(area) for area in areas)
    return count > 0 and count >= REREAD_SHARE * len(areas)


def _impossible(receipt: Receipt, added: Sequence[Area], removed: Sequence[Area]) -> str | None:
    """Return why the boxes `added` can't be of the picture; None if they can.

    One that only reaches outside is hidden as far as it can be. But it may be a face that the file
    has in a wrong place, so no face may stay clear because of its missing box.
    """
    size = receipt.width, receipt.height
    for area in added:
        named, box = ",".join(map(str, area)), _bounds(area)
        if box[0] >= receipt.width or box[1] >= receipt.height:
            return f"the area {named} is outside of the picture"
        if removed and not misread.fits(box, size):
            return (
                f"the area {named} leaves the picture, which has {size[0]} × {size[1]} pixels, so "
                "no face whose box is missing is shown: cut the area at the edge"
            )
    return None


def _differences(
    picture: AnnotatedPicture, receipt: Receipt
) -> tuple[tuple[Area, ...], tuple[Area, ...]]:
    """Return the areas to hide in addition, and those in which faces stay clear.

    The former are the shapes of `picture` that are not hidden already as objects of their label, or
    that one of the latter would exempt. The latter are the boxes that only the receipt has. A box
    that was corrected is none of them: all of it stays hidden, and the corrected box is hidden too.
    """
    hidden = [_box_of(face) for face in receipt.faces]
    shown = [_plain(shape.area) for shape in picture.shapes]
    missing = _without_same(hidden, shown)
    known = [_plain(area) for area in receipt.asked.extra]
    corrected = _counterparts(missing, _without_same(shown, [*hidden, *known]))
    removed = [box for box in missing if box not in corrected]
    staying: dict[str, list[Area]] = {}
    for box, label in zip(hidden, receipt.labels, strict=True):
        if not _is_exempted(box, removed):
            staying.setdefault(_compared(label), []).append(box)
    hidden_by_label = {label: _Same([*boxes, *known]) for label, boxes in staying.items()}
    hidden_with_any = _Same(known)
    added = [
        shape.area
        for shape, area in zip(picture.shapes, shown, strict=True)
        if not hidden_by_label.get(_compared(shape.label), hidden_with_any).has(area)
    ]
    added += [box for box in missing if box in corrected and _is_exempted(box, removed)]
    return tuple(added), tuple(removed)


def _counterparts(missing: Sequence[Area], new: Sequence[Area]) -> set[Area]:
    """Return the boxes `missing` that a shape of `new` corrects, because it is near.

    A shape corrects a single box: of several, the one that is most like it, or else the nearest.
    """
    pairs = []
    for box in missing:
        for number, area in enumerate(new):
            bounds = _bounds(area)
            if likeness := iou(box, bounds):
                pairs.append((likeness, box, number))
            elif common_area(_grown(box), bounds):
                pairs.append((-_distance(box, bounds), box, number))
    corrected: set[Area] = set()
    used: set[int] = set()
    for _, box, number in sorted(pairs, reverse=True):
        if box not in corrected and number not in used:
            corrected.add(box)
            used.add(number)
    return corrected


def _grown(box: Area) -> Area:
    """Return `box` with its longer side added on each side: a box there may have been this one."""
    x1, y1, x2, y2 = box
    longer = max(x2 - x1, y2 - y1)
    return x1 - longer, y1 - longer, x2 + longer, y2 + longer


def _distance(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the distance between the centres of two boxes."""
    x1, y1, x2, y2 = (a - b for a, b in zip(one, other, strict=True))
    return hypot(x1 + x2, y1 + y2) / 2


class _Same:
    """Areas among which another one is searched that is the same but for TOLERANCE."""

    def __init__(self, areas: Iterable[Sequence[float]]) -> None:
        self._areas = {tuple(area) for area in areas}
        self._by_x = sorted(self._areas)

    def has(self, area: Sequence[float]) -> bool:
        """Return whether `area` is one of them."""
        if tuple(area) in self._areas:
            return True
        first = bisect_left(self._by_x, (area[0] - TOLERANCE,))
        last = bisect_left(self._by_x, (area[0] + TOLERANCE, inf))
        return any(_is_same(area, one) for one in self._by_x[first:last])


def _without_same(areas: Sequence[Area], others: Iterable[Sequence[float]]) -> list[Area]:
    """Return those of `areas` that are none of `others`."""
    same = _Same(others)
    return [area for area in areas if not same.has(area)]


def _is_same(one: Sequence[float], other: Sequence[float]) -> bool:
    if len(one) != len(other):
        return False
    if any(abs(a - b) > TOLERANCE for a, b in zip(one, other, strict=True)):
        return False
    return iou(_bounds(one), _bounds(other)) >= SAME_FACE_IOU


def _boxes_of(areas: Sequence[Area]) -> list[Area]:
    """Return those of `areas` that are boxes."""
    return [box for area in areas if len(box := _plain(area)) == 4]


def _plain(area: Area) -> Area:
    """Return `area`, and the box for a polygon with the corners of a box."""
    x1, y1, x2, y2 = box = Shape(area).box_xyxy
    points = set(zip(area[::2], area[1::2], strict=True))
    return box if points == {(x1, y1), (x2, y1), (x2, y2), (x1, y2)} else area


def _bounds(area: Sequence[float]) -> tuple[float, float, float, float]:
    """Return the box around `area`."""
    xs, ys = area[::2], area[1::2]
    return min(xs), min(ys), max(xs), max(ys)


def _box_of(face: Face) -> Area:
    return tuple(face["box_xyxy"])


def _compared(label: str) -> str:
    """Return `label` as labels of receipts and of files are compared."""
    text = annotations.clean(label).strip()
    return FACE if text.upper() == FACE else text


def _is_exempted(box: Sequence[int], areas: Sequence[Sequence[int]]) -> bool:
    size = (box[2] - box[0]) * (box[3] - box[1])
    return any(common_area(box, area) > EXEMPTED_SHARE * size for area in areas)


def has_same(box: Sequence[int], others: Sequence[Sequence[int]]) -> bool:
    """Return whether one of the boxes `others` shows the same object as `box`."""
    return any(iou(box, other) >= SAME_FACE_IOU for other in others)


def iou(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the intersection over union of two boxes."""
    common = common_area(one, other)
    if not common:
        return 0.0
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return common / (areas - common)


def common_area(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the area of the intersection of two boxes."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0, width) * max(0, height)


def placed(pictures: Sequence[AnnotatedPicture], address: str) -> list[AnnotatedPicture]:
    """Return `pictures`, in which names that are no addresses are those of outputs at `address`.

    Raises InvalidRequest if `address` is none, or all names are addresses.
    """
    place = PrefixUri.parse(address)
    if all(_is_address(picture.name) for picture in pictures):
        raise InvalidRequest("--outputs has no effect: all names are addresses")
    return [
        picture if _is_address(name := picture.name) else replace(picture, name=f"{place}{name}")
        for picture in pictures
    ]


def _is_address(name: str) -> bool:
    return "://" in name


def require_pictures(pictures: Sequence[AnnotatedPicture]) -> None:
    """Raise InvalidRequest for a file without pictures."""
    if not pictures:
        raise InvalidRequest("the file has no picture: export one from receipts first")
