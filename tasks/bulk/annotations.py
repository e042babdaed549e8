"""Boxes of hidden objects in the formats of annotation tools: COCO, CVAT and JSON lines.

COCO is one JSON object with ``images``, ``annotations`` and ``categories`` (cocodataset.org). CVAT
for images 1.1 is XML (docs.cvat.ai). JSON lines have one picture a line. Files are written picture
by picture, so an archive of any size can be exported. The name of a picture is its address.
"""

import cmath
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, Literal, Protocol, TextIO, get_args
from xml.etree import ElementTree
from xml.sax.saxutils import escape, quoteattr

from ..errors import DatasetInvalid, InvalidRequest
from ..messages import AnonymizeOptions
from ..wrong_values import cause
from . import misread

Format = Literal["coco", "cvat", "jsonl"]
FORMATS = get_args(Format)
FACE, EXPOSED, EXTRA = "face", "exposed", "extra"
DIGEST = "output_sha256"  # the fact that tells of which output the shapes are
ARE_MARKS = "are_marks"  # the fact of a line that only has the exposed faces of a picture
LABELS = (FACE, EXPOSED, EXTRA)  # with the category ids 1, 2 and 3; those of models follow
# Control characters that XML 1.0 can't have, not even escaped.
XML_REPLACED = {code: "\N{REPLACEMENT CHARACTER}" for code in range(32) if code not in (9, 10, 13)}
NOISE = 0.05  # pixels by which a tool's decimals may differ from the whole number that was meant

Area = tuple[int, ...]
"""A box, x1 y1 x2 y2, or a polygon, x1 y1 x2 y2 x3 y3 …, in whole pixels."""


@dataclass(frozen=True)
class Shape:
    """A box or a polygon with its label, and the score of the detector, if there is one."""

    area: Area
    label: str = FACE
    score: float | None = None

    @property
    def box_xyxy(self) -> tuple[int, int, int, int]:
        """The box, or the one around the polygon."""
        xs, ys = self.area[::2], self.area[1::2]
        return min(xs), min(ys), max(xs), max(ys)

    @property
    def is_polygon(self) -> bool:
        return len(self.area) > 4

    @property
    def points(self) -> list[tuple[int, int]]:
        """The corners of the polygon."""
        return list(zip(self.area[::2], self.area[1::2], strict=True))


@dataclass(frozen=True)
class AnnotatedPicture:
    """A picture with its shapes.

    `name` is its address, `width` and `height` are in pixels. `form` is the format that it was read
    from.
    """

    name: str
    width: int
    height: int
    shapes: list[Shape] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    form: str = ""


class Writer(Protocol):
    """Writes pictures one by one; `close` ends the file."""

    def add(self, picture: AnnotatedPicture) -> None: ...

    def close(self) -> None: ...


class CocoWriter:
    """Writes COCO. Annotations wait in a temporary file until all images are written."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._annotations = TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 — closed by `close`
        self._images = self._shapes = 0
        self._labels = [*LABELS]
        file.write('{"images": [')

    def add(self, picture: AnnotatedPicture) -> None:
        self._images += 1
        image = {
            "id": self._images,
            "file_name": picture.name,
            "width": picture.width,
            "height": picture.height,
            **picture.facts,
        }
        self._file.write(("" if self._images == 1 else ",") + "\n" + json.dumps(image))
        for shape in picture.shapes:
            self._shapes += 1
            separator = "" if self._shapes == 1 else ","
            self._annotations.write(f"{separator}\n{json.dumps(self._annotation(shape))}")

    def close(self) -> None:
        self._file.write('],\n"annotations": [')
        _move(self._annotations, self._file)
        categories = [{"id": number, "name": label} for number, label in enumerate(self._labels, 1)]
        self._file.write(f'],\n"categories": {json.dumps(categories)}}}\n')

    def _annotation(self, shape: Shape) -> dict[str, Any]:
        if shape.label not in self._labels:
            self._labels.append(shape.label)
        x1, y1, x2, y2 = shape.box_xyxy
        annotation: dict[str, Any] = {
            "id": self._shapes,
            "image_id": self._images,
            "category_id": self._labels.index(shape.label) + 1,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1),
            "iscrowd": 0,
            "segmentation": [list(shape.area)] if shape.is_polygon else [],
        }
        if shape.score is not None:
            annotation["score"] = shape.score
        return annotation


class CvatWriter:
    """Writes CVAT for images 1.1. Images wait in a temporary file until all labels are known."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._images = TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 — closed by `close`
        self._count = 0
        self._labels = dict.fromkeys(LABELS)

    def add(self, picture: AnnotatedPicture) -> None:
        name = _xml(picture.name)
        size = f'width="{picture.width}" height="{picture.height}"'
        digest = f" {DIGEST}={_xml(picture.facts[DIGEST])}" if DIGEST in picture.facts else ""
        self._images.write(f'  <image id="{self._count}" name={name} {size}{digest}>\n')
        self._count += 1
        for shape in picture.shapes:
            self._labels[shape.label] = None
            self._images.write(f"    {_element(shape)}\n")
        self._images.write("  </image>\n")

    def close(self) -> None:
        self._file.write('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n')
        labels = "".join(f"<label><name>{escape(label)}</name></label>" for label in self._labels)
        self._file.write("  <version>1.1</version>\n")
        self._file.write(f"  <meta><task><labels>{labels}</labels></task></meta>\n")
        _move(self._images, self._file)
        self._file.write("</annotations>\n")


class JsonLinesWriter:
    """Writes one JSON object a picture."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def add(self, picture: AnnotatedPicture) -> None:
        line = {
            "name": picture.name,
            "width": picture.width,
            "height": picture.height,
            "shapes": [_shape_json(shape) for shape in picture.shapes],
            **picture.facts,
        }
        self._file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        """End the file, which needs no end."""


WRITERS: dict[str, Callable[[TextIO], Writer]] = {
    "coco": CocoWriter,
    "cvat": CvatWriter,
    "jsonl": JsonLinesWriter,
}


DAMAGED = (AttributeError, KeyError, TypeError, ValueError, InvalidRequest)
"""The errors of content that is damaged, or of another format."""


class _DamagedPicture(Exception):
    """A picture in a file that can't be read; the message names it, and says why."""


def read(path: Path) -> list[AnnotatedPicture]:
    """Return the pictures in a file of any of the formats, which its content tells.

    Raises DatasetInvalid, with a message of one line, if the file can't be read, or has its boxes
    in another form than its format wants.
    """
    try:
        content = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DatasetInvalid(f"{path} can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DatasetInvalid(f"{path} is no text") from None
    try:
        is_xml = content.lstrip().startswith("<")
        pictures = list(_read_cvat(content) if is_xml else _read_json(content))
    except ElementTree.ParseError as error:
        raise DatasetInvalid(f"{path} is no XML ({error})") from None
    except _DamagedPicture as error:
        raise DatasetInvalid(f"{path}: {error}") from None
    except DAMAGED as error:
        raise DatasetInvalid(
            f"{path} is neither COCO, CVAT nor JSON lines ({cause(error):.200})"
        ) from None
    if fault := _fault(pictures):
        raise DatasetInvalid(f"{path}: {fault}")
    return pictures


@contextmanager
def _reading(name: object, place: str = "") -> Iterator[None]:
    """Make an error in the block name the picture `name`, and its `place` in the file."""
    try:
        yield
    except DAMAGED as error:
        raise _DamagedPicture(f"{place}{name!r:.200}: {cause(error):.200}") from None


def _fault(pictures: Sequence[AnnotatedPicture]) -> str | None:
    """Return why the boxes of a file are none of its format; None if they can be."""
    boxes: list[Area] = []
    sizes: list[tuple[int, int]] = []
    for picture in pictures:
        own = [shape.area for shape in picture.shapes if not shape.is_polygon]
        if picture.width and picture.height:
            boxes += own
            sizes += [(picture.width, picture.height)] * len(own)
    return misread.fault(pictures[0].form, boxes, sizes) if boxes else None


def _read_json(content: str) -> Iterator[AnnotatedPicture]:
    try:
        whole = json.loads(content)
    except json.JSONDecodeError:
        whole = None
    if isinstance(whole, list):
        raise ValueError(
            "a list, such as the results of a detector in COCO, names no pictures: give a file "
            "with images, annotations and categories"
        )
    if isinstance(whole, dict) and "images" in whole:
        yield from _read_coco(whole)
        return
    if isinstance(whole, dict) and "annotations" in whole:
        raise ValueError("COCO without images names no pictures")
    for number, line in enumerate(content.splitlines(), 1):
        if line.strip():
            try:
                fields = json.loads(line)
            except json.JSONDecodeError:
                fields = None
            if not isinstance(fields, dict):
                raise ValueError(f"line {number} is no JSON object")
            yield _read_line(fields, f"line {number}, ")


def _read_line(fields: dict[str, Any], place: str) -> AnnotatedPicture:
    """Return the picture of a line; one of marks has an ``output`` and ``exposed`` boxes.

    `place` says in errors which line it is.
    """
    facts = _facts_in(fields)
    are_marks = "exposed" in fields
    name = str(fields["output"] if are_marks and "output" in fields else fields["name"])
    with _reading(name, place):
        if are_marks:
            facts[ARE_MARKS] = True
            shapes = [Shape(_whole(area), EXPOSED) for area in fields["exposed"]]
        else:
            shapes = [
                Shape(_whole(shape["area"]), str(shape.get("label", FACE)), shape.get("score"))
                for shape in fields["shapes"]
            ]
        size = _size_in(fields)
    return AnnotatedPicture(name, *size, shapes, facts, "jsonl")


def _read_coco(whole: dict[str, Any]) -> Iterator[AnnotatedPicture]:
    names = {category["id"]: str(category["name"]) for category in whole.get("categories", ())}
    pictures: dict[Any, AnnotatedPicture] = {}
    for image in whole["images"]:
        name = str(image["file_name"])
        with _reading(name):
            if image["id"] in pictures:
                raise ValueError(f"two images have the id {image['id']}")
            size = _size_in(image)
            pictures[image["id"]] = AnnotatedPicture(
                name, *size, facts=_facts_in(image), form="coco"
            )
    for annotation in whole.get("annotations", ()):
        picture = pictures.get(annotation["image_id"])
        if picture is None:
            # Its picture would count as one without this box, whose face would stay clear.
            raise ValueError(f"no image has the id {annotation['image_id']} of an annotation")
        label = names.get(annotation.get("category_id"), FACE)
        score = annotation.get("score")
        with _reading(picture.name):
            areas = _coco_areas(annotation)
        picture.shapes.extend(Shape(area, label, score) for area in areas)
    yield from pictures.values()


def _coco_areas(annotation: dict[str, Any]) -> list[Area]:
    polygons = annotation.get("segmentation") or []
    if isinstance(polygons, list) and polygons and len(polygons[0]) > 4:
        return [_whole(polygon) for polygon in polygons]
    if len(annotation["bbox"]) != 4:
        raise ValueError(f"the bbox {annotation['bbox']} has not four numbers")
    x, y, width, height = annotation["bbox"]
    return [_whole((x, y, x + width, y + height))]


def _size_in(fields: Mapping[str, Any]) -> tuple[int, int]:
    """Return the width and the height of a picture, 0 if they are not stated."""
    return int(fields.get("width") or 0), int(fields.get("height") or 0)


def _facts_in(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts that `export` wrote, as far as a reader needs them."""
    return {name: fields[name] for name in ("recipe", DIGEST) if fields.get(name)}


def _read_cvat(content: str) -> Iterator[AnnotatedPicture]:
    # Expat refuses exponential entities since 2.4.1.
    root = ElementTree.fromstring(content)  # noqa: S314
    for image in root.iter("image"):
        name = image.attrib["name"]
        with _reading(name):
            shapes = [
                Shape(_cvat_area(element), element.get("label", FACE))
                for element in image
                if element.tag != "tag"  # a label of the whole picture
            ]
            width, height = (int(float(image.get(side, "0"))) for side in ("width", "height"))
        yield AnnotatedPicture(name, width, height, shapes, _facts_in(image.attrib), "cvat")


def _cvat_area(element: ElementTree.Element) -> Area:
    """Return the area of a box or a polygon, or the box around an ellipse or a mask.

    Raises ValueError for another shape, which would otherwise leave clear what it marks.
    """

    def numbers(*names: str) -> list[float]:
        return [float(element.attrib[name]) for name in names]

    degrees = float(element.get("rotation", "0"))
    if element.tag == "polygon":
        pairs = [point.split(",") for point in element.attrib["points"].split(";")]
        return _whole([float(number) for pair in pairs for number in pair])
    if element.tag == "box":
        x1, y1, x2, y2 = numbers("xtl", "ytl", "xbr", "ybr")
        return _whole(_turned((x1, y1, x2, y2), degrees) if degrees else (x1, y1, x2, y2))
    if element.tag == "ellipse":
        x, y, width, height = numbers("cx", "cy", "rx", "ry")
        turn = cmath.rect(1, math.radians(degrees))
        across = math.hypot(width * turn.real, height * turn.imag)
        down = math.hypot(width * turn.imag, height * turn.real)
        return _whole((x - across, y - down, x + across, y + down))
    if element.tag == "mask":
        x, y, width, height = numbers("left", "top", "width", "height")
        return _whole((x, y, x + width, y + height))
    raise ValueError(f"{element.tag} is no area: draw a box, a polygon, an ellipse or a mask")


def _turned(box_xyxy: Sequence[float], degrees: float) -> list[float]:
    """Return the polygon of a box that is turned clockwise about its centre."""
    x1, y1, x2, y2 = box_xyxy
    centre = complex(x1 + x2, y1 + y2) / 2
    turn = cmath.rect(1, math.radians(degrees))
    corners = [complex(x, y) for x, y in ((x1, y1), (x2, y1), (x2, y2), (x1, y2))]
    turned = [centre + (corner - centre) * turn for corner in corners]
    return [side for corner in turned for side in (corner.real, corner.imag)]


def _whole(numbers: Sequence[float]) -> Area:
    """Return an area in whole pixels that a request may have. Raises ValueError if it has none.

    A box is rounded outwards, so that it hides all that it marks.
    """
    if any(isinstance(number, str) for number in numbers):
        raise ValueError("a coordinate is a text")
    if not all(map(math.isfinite, numbers)):
        raise ValueError("a coordinate is no number")
    named = ", ".join(f"{number:g}" for number in numbers[:4])
    if misread.are_fractions(numbers):
        raise ValueError(f"the area {named} looks like fractions of the picture: give pixels")
    rounded = [round(number) for number in numbers]
    if len(numbers) == 4:
        rounded[:2] = [math.floor(number + NOISE) for number in numbers[:2]]
        rounded[2:] = [math.ceil(number - NOISE) for number in numbers[2:]]
    area = tuple(max(0, number) for number in rounded)
    try:
        return AnonymizeOptions.parse(extra=[area]).extra[0]
    except InvalidRequest as error:
        cause = str(error).rpartition("extra.0: ")[2]
        raise ValueError(f"{named} is no area of the picture: {cause}") from None


def _move(waiting: IO[str], file: TextIO) -> None:
    """Append the text that is `waiting` in a temporary file to `file`, and delete it."""
    waiting.seek(0)
    shutil.copyfileobj(waiting, file)
    waiting.close()


def _element(shape: Shape) -> str:
    score = "" if shape.score is None else f'<attribute name="score">{shape.score}</attribute>'
    common = f'label={_xml(shape.label)} occluded="0" source="manual"'
    if shape.is_polygon:
        points = ";".join(f"{x},{y}" for x, y in shape.points)
        return f'<polygon {common} points="{points}">{score}</polygon>'
    x1, y1, x2, y2 = shape.area
    return f'<box {common} xtl="{x1}" ytl="{y1}" xbr="{x2}" ybr="{y2}">{score}</box>'


def _shape_json(shape: Shape) -> dict[str, Any]:
    fields: dict[str, Any] = {"area": list(shape.area), "label": shape.label}
    return fields if shape.score is None else {**fields, "score": shape.score}


def _xml(text: str) -> str:
    """Return `text` as an attribute with its quotation marks."""
    return quoteattr(clean(text), {"\n": "&#10;", "\t": "&#9;", "\r": "&#13;"})


def clean(text: str) -> str:
    """Return `text` with the characters that XML can't have replaced."""
    return text.translate(XML_REPLACED).encode("utf-8", "replace").decode()
