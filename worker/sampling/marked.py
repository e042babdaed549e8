"""Marks of a sample that reviewers made with an annotation tool."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Set
from dataclasses import dataclass, field
from pathlib import Path

from tasks.bulk import annotations
from tasks.bulk.annotations import AnnotatedPicture, Shape
from tasks.bulk.boxes import has_same
from tasks.errors import DatasetInvalid
from tasks.messages import FACE
from tasks.records.samples import Mark, Sample, SampledPicture
from worker.detection import plates

HIDDEN = (annotations.FACE, annotations.EXTRA)  # labels of areas that the output hides


@dataclass
class Marked:
    """The marks in a file by the numbers of their pictures.

    `others` counts the pictures that are not in the sample, and `others_exposed` those of them with
    an exposed face; `clipped` counts the marks that reached beyond their picture, and `no_faces`
    those that are other objects, by their label.
    """

    marks: dict[int, Mark]
    others: int = 0
    others_exposed: int = 0
    clipped: int = 0
    no_faces: Counter[str] = field(default_factory=Counter)


def no_face_labels(sample: Sample, rules: Iterable[str]) -> set[str]:
    """Return the labels of marks that are no faces. `rules` are labels that the settings name.

    Any other label is that of a face. Without a hidden face in the sample, all but that of plates
    are, because a model may have another name for faces.
    """
    if not any(picture.boxes_xyxy for picture in sample.pictures):
        return {plates.LABEL}
    hidden = {label for picture in sample.pictures for label in picture.other_labels}
    return {plates.LABEL, *rules, *hidden} - {FACE, *annotations.LABELS}


def read(path: Path, sample: Sample, others: Set[str]) -> Marked:
    """Return the marks in a file.

    Every shape is an exposed face, unless its label says that it is a hidden one, or it is at the
    place of a hidden object. One with a label of `others` is no face: its label is kept. A picture
    that the file has without a shape was reviewed, and has no exposed face. Raises DatasetInvalid
    if a mark can't be of its picture, and if a picture is in the file twice.
    """
    numbers = {picture.output: number for number, picture in enumerate(sample.pictures)}
    found = Marked({})
    for annotated in annotations.read(path):
        number = numbers.get(annotated.name)
        if number is None:
            found.others += 1
            found.others_exposed += any(
                shape.label not in (*HIDDEN, *others) for shape in annotated.shapes
            )
            continue
        if number in found.marks:
            raise DatasetInvalid(f"{path} has {annotated.name} twice: put its marks together")
        picture = sample.pictures[number]
        _require_same_size(path, annotated, picture)
        exposed = []
        no_faces: defaultdict[str, list[list[int]]] = defaultdict(list)
        for shape in annotated.shapes:
            if _is_hidden(shape, picture):
                continue
            box = list(shape.box_xyxy)
            inside = _inside(path, box, picture)
            found.clipped += inside != box
            if shape.label in others:
                no_faces[shape.label].append(inside)
                found.no_faces[shape.label] += 1
            else:
                exposed.append(inside)
        found.marks[number] = Mark(exposed, by=path.name, others_xyxy=dict(no_faces))
    return found


def _is_hidden(shape: Shape, picture: SampledPicture) -> bool:
    if shape.label in (*HIDDEN, annotations.EXPOSED):
        return shape.label in HIDDEN
    return has_same(shape.box_xyxy, picture.others_xyxy)


def _require_same_size(path: Path, annotated: AnnotatedPicture, picture: SampledPicture) -> None:
    size = annotated.width, annotated.height
    if picture.width is None or size in ((0, 0), (picture.width, picture.height)):
        return
    raise DatasetInvalid(
        f"{path}: the marks of {picture.output} are of a picture of {size[0]} x {size[1]} pixels, "
        f"and it has {picture.width} x {picture.height}"
    )


def _inside(path: Path, box: list[int], picture: SampledPicture) -> list[int]:
    """Return the part of `box` within the picture, as far as its size is known."""
    if picture.width is None or picture.height is None:
        return box
    x1, y1, x2, y2 = box
    if x1 >= picture.width or y1 >= picture.height:
        area = ",".join(map(str, box))
        raise DatasetInvalid(
            f"{path}: the mark {area} is outside of {picture.output}, "
            f"which has {picture.width} x {picture.height} pixels"
        )
    return [x1, y1, min(x2, picture.width), min(y2, picture.height)]
