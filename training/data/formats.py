"""Readers of labels: Pascal VOC, COCO, YOLO text, WIDER FACE text, and the annotations of Veil."""

import json
import math
import os
import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import yaml

from tasks.errors import DatasetInvalid
from worker.local_files import PICTURE_SUFFIXES
from worker.printing import counted

Box = tuple[float, float, float, float]  # x1 y1 x2 y2
# The usual folders of pictures, relative to the folder of their annotations.
PICTURE_FOLDERS = (".", "images", "JPEGImages", "../images", "../JPEGImages", "..")
YOLO_BOX = 5  # numbers of a line: class, centre and sides
YOLO_FURTHEST = 2.0  # a number farther from 0 is no share of a side
WIDER_FIELDS = 10  # x y w h blur expression illumination invalid occlusion pose
WIDER_INVALID = 7


@dataclass(frozen=True)
class Label:
    """A labelled box.

    One that is `ignored` (difficult, a crowd, invalid) counts neither as a face nor as none.
    """

    name: str
    box: Box
    ignored: bool = False


@dataclass(frozen=True)
class Labelled:
    """A picture and its labels, as they are in the source.

    `path` is None if the picture `name` does not exist. Boxes are in pixels, or with `shares` in
    shares of the sides of the picture. `size` is (width, height) if the source states it. `source`
    is the file or folder that was read, in the format `form`.
    """

    name: str
    path: Path | None
    labels: tuple[Label, ...]
    size: tuple[int, int] | None = None
    shares: bool = False
    source: str = ""
    form: str = ""


Reader = Callable[[Path, Sequence[Path]], Iterator[Labelled]]

JSON_FORMATS = ("coco", "veil")
UNREADABLE = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    ElementTree.ParseError,
    yaml.YAMLError,
)
"""The errors of labels that are damaged, or of another format."""

JSON_LINES = (
    "JSON lines are no format of training data: write receipts with "
    "`veil receipt export --format coco`"
)
# What float() and int() say of a text.
NOT_CONVERTED = re.compile(r"(?:could not convert|invalid literal) .*?: ('.*')")


class _Damaged(Exception):
    """Labels that can't be read; `args` are their place, such as a line of a file, and why."""


def read(source: Path, form: str | None, pictures: Sequence[Path]) -> list[Labelled]:
    """Return the labelled pictures of `source`, a file or a folder.

    `form` names its format; without it, the format is recognised by the content. `pictures` are
    further folders to search for the pictures. Raise DatasetInvalid, with a message of one line, if
    `source` can't be read.
    """
    if not source.exists():
        raise DatasetInvalid(f"{source} does not exist")
    for folder in pictures:
        if not folder.is_dir():
            raise DatasetInvalid(f"--pictures {folder} is no folder")
    name = form or _recognised(source)
    if source.suffix == ".json" and name not in JSON_FORMATS:
        raise DatasetInvalid(f"{source} is JSON, and {name} is not: leave out --format")
    try:
        found = list(FORMATS[name](source, pictures))
    except OSError as error:
        raise DatasetInvalid(f"{error.filename} can't be read: {error.strerror}") from None
    except (_Damaged, *UNREADABLE) as error:
        place, reason = error.args if isinstance(error, _Damaged) else (source, _reason(error))
        raise DatasetInvalid(f"{place} is not {name}, or damaged ({reason:.160})") from None
    if not found:
        raise DatasetInvalid(f"{source} labels no picture as {name}")
    return [replace(each, source=str(source), form=name) for each in found]


@contextmanager
def _reading(place: object) -> Iterator[None]:
    """Make an error in the block name `place`, the file or the entry that is read in it."""
    try:
        yield
    except UNREADABLE as error:
        raise _Damaged(place, _reason(error)) from None


def _reason(error: Exception) -> str:
    """Return the cause of `error` in one line."""
    if isinstance(error, KeyError):
        return f"it has no {error.args[0]!r}"
    if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":
        return JSON_LINES
    if isinstance(error, UnicodeDecodeError):
        line = error.object.count(b"\n", 0, error.start) + 1
        return f"line {line} is no text in UTF-8"
    if isinstance(error, TypeError | AttributeError | IndexError):
        return "a part of it is of another type than this format has"
    if found := NOT_CONVERTED.match(str(error)):
        return f"{found[1]} is not a number"
    return " ".join(str(error).split()) or type(error).__name__


def _text(file: Path) -> str:
    """Return the text in `file`, UTF-8 with or without the mark at its beginning."""
    return file.read_text("utf-8-sig")


def _files(source: Path, pattern: str) -> list[Path]:
    """Return `source`, or the files in it that match `pattern`, without hidden ones.

    Copies by macOS have a hidden file of other content beside each file.
    """
    if source.is_file():
        return [source]
    return [
        path
        for path in sorted(source.glob(pattern))
        if not any(part.startswith(".") for part in path.relative_to(source).parts)
    ]


def _recognised(source: Path) -> str:
    """Return the name of the format of `source`, recognised by its content."""
    if source.suffix == ".jsonl":
        raise DatasetInvalid(f"{source}: {JSON_LINES}")
    if file := _json_file(source):
        try:
            content = json.loads(_text(file))
        except OSError as error:
            raise DatasetInvalid(f"{file} can't be read: {error.strerror}") from None
        except ValueError as error:
            raise DatasetInvalid(
                f"{file} is no JSON that can be read ({_reason(error):.120})"
            ) from None
        _refuse_no_object(content, file)
        return "coco" if _is_coco(content) else "veil"
    if source.suffix == ".xml" or (source.is_dir() and _files(source, "**/*.xml")):
        return "voc"
    if source.suffix == ".txt" or (source.is_dir() and _files(source, "**/*_bbx_gt.txt")):
        return "wider"
    if source.suffix in (".yaml", ".yml") or (source.is_dir() and _files(source, "**/*.txt")):
        return "yolo"
    if source.is_dir() and (files := _files(source, "**/*.json")):
        raise DatasetInvalid(f"{source} has no labels at its top: name a file, such as {files[0]}")
    raise DatasetInvalid(
        f"{source} has no labels of a known format: name it with --format {'|'.join(FORMATS)}"
    )


def _refuse_no_object(content: Any, file: Path) -> None:
    """Raise DatasetInvalid if the JSON `content` of `file` is no object, as in some exports."""
    if not isinstance(content, dict):
        kind = "a list" if isinstance(content, list) else type(content).__name__
        raise DatasetInvalid(
            f"{file} has {kind} at its top, and COCO and annotations.json have an object with "
            '"images": export it as COCO'
        )


def _is_coco(content: Any) -> bool:
    """Return True for COCO, also if one of its keys is missing."""
    if not isinstance(content, dict):
        return False
    images = content.get("images")
    first = images[0] if isinstance(images, list) and images else None
    names_file = isinstance(first, dict) and "file_name" in first
    return names_file or "annotations" in content or "categories" in content


def _json_file(source: Path) -> Path | None:
    """Return `source` if it is JSON, or the annotations.json or the only JSON file in it."""
    if source.is_file():
        return source if source.suffix == ".json" else None
    files = _files(source, "*.json")
    named = [file for file in files if file.name == "annotations.json"]
    if named:
        return named[0]
    return files[0] if len(files) == 1 else None


def _needed_json(source: Path) -> Path:
    """Return the JSON file of `source`; DatasetInvalid if it is not clear which one it is."""
    if file := _json_file(source):
        return file
    if source.is_file():
        return source
    raise DatasetInvalid(
        f"{source} has no annotations.json, and not exactly one other JSON file: name the file"
    )


def _voc(source: Path, pictures: Sequence[Path]) -> Iterator[Labelled]:
    """Read Pascal VOC: an XML file for each picture, with corners in pixels."""
    for file in _files(source, "**/*.xml"):
        with _reading(file):
            labelled = _voc_picture(file, pictures)
        yield labelled


def _voc_picture(file: Path, pictures: Sequence[Path]) -> Labelled:
    """Return the picture that the Pascal VOC `file` describes."""
    # Expat refuses exponential entities since 2.4.1.
    root = ElementTree.parse(file).getroot()  # noqa: S314
    if root.tag != "annotation":
        advice = ": CVAT is no format of training data, export Pascal VOC or COCO"
        is_cvat = root.tag == "annotations" and root.find("image") is not None
        raise ValueError(f"it has <{root.tag}> at its top{advice if is_cvat else ''}")
    name = root.findtext("filename") or file.stem
    labels = []
    for number, item in enumerate(root.iter("object"), 1):
        with _reading(f"{file}, object {number},"):
            labels.append(_voc_label(item))
    path = _picture(name, file.parent, pictures) or _picture(file.stem, file.parent, pictures)
    width, height = (int(float(root.findtext(f"size/{side}", "0"))) for side in ("width", "height"))
    return Labelled(name, path, tuple(labels), (width, height) if width and height else None)


def _voc_label(item: ElementTree.Element) -> Label:
    """Return the label that an object of Pascal VOC states."""
    corners = item.find("bndbox")
    if corners is None:
        raise ValueError("it has no bndbox")
    box = _box([corners.findtext(side, "") for side in ("xmin", "ymin", "xmax", "ymax")])
    is_ignored = item.findtext("difficult", "0").strip() == "1"
    return Label(_name(item.findtext("name")), box, is_ignored)


def _coco(source: Path, pictures: Sequence[Path]) -> Iterator[Labelled]:
    """Read COCO: one JSON file with boxes x y width height in pixels; a crowd is ignored."""
    file = _needed_json(source)
    with _reading(file):
        content = json.loads(_text(file))
        _refuse_no_object(content, file)
        images, annotations, categories = (
            list(content[key]) for key in ("images", "annotations", "categories")
        )
    names: dict[Any, str] = {}
    for number, category in enumerate(categories, 1):
        with _reading(f"{file}, category {_number(category, number)},"):
            names[_new_id(category, names)] = _name(category["name"])
    labels: dict[Any, list[Label]] = {}
    for number, image in enumerate(images, 1):
        with _reading(f"{file}, image {_number(image, number)},"):
            labels[_new_id(image, labels)] = []
    known: set[Any] = set()
    for number, item in enumerate(annotations, 1):
        with _reading(f"{file}, annotation {_number(item, number)},"):
            if "id" in item:
                known.add(_new_id(item, known))
            _append_coco(item, names, labels)
    for image in images:
        with _reading(f"{file}, image {image['id']},"):
            labelled = _coco_picture(image, tuple(labels[image["id"]]), file, pictures)
        yield labelled


def _new_id(item: Mapping[str, Any], known: Container[Any]) -> Any:
    """Return the id of an item of COCO; ValueError if it is among the `known` ones."""
    if item["id"] in known:
        raise ValueError(f"the id {item['id']} occurs twice")
    return item["id"]


def _coco_picture(
    image: Mapping[str, Any], labels: tuple[Label, ...], file: Path, pictures: Sequence[Path]
) -> Labelled:
    size = (
        (int(image["width"]), int(image["height"]))
        if image.get("width") and image.get("height")
        else None
    )
    name = str(image["file_name"])
    return Labelled(name, _picture(name, file.parent, pictures), labels, size)


def _number(item: Any, number: int) -> Any:
    """Return the id of an item of COCO, else `number`, its place in the file."""
    return item.get("id", number) if isinstance(item, dict) else number


def _append_coco(
    item: Mapping[str, Any], names: Mapping[Any, str], labels: Mapping[Any, list[Label]]
) -> None:
    """Append the COCO annotation `item` to the `labels` of its picture."""
    image, category = item["image_id"], item["category_id"]
    if image not in labels:
        raise ValueError(f"it names the picture {image}, which is not listed")
    if category not in names:
        raise ValueError(f"it names the category {category}, which is not listed")
    x, y, width, height = _json_box(item["bbox"])
    crowd = bool(item.get("iscrowd") or item.get("ignore"))
    labels[image].append(Label(names[category], (x, y, x + width, y + height), crowd))


def _yolo(source: Path, pictures: Sequence[Path]) -> Iterator[Labelled]:
    """Read YOLO text: a line for each box, with its class, and centre and sides as shares.

    The names of the classes are in data.yaml or classes.txt.
    """
    folder = source if source.is_dir() else source.parent
    names, keypoints = _yolo_description(source, folder)
    images = [path for path in _files(folder, "**/*") if path.suffix.lower() in PICTURE_SUFFIXES]
    by_stem: dict[str, Path] = {}
    for image in images:
        twin = by_stem.setdefault(_yolo_key(image, folder), image)
        if twin != image:
            raise _Damaged(image, f"its labels are also those of {twin}")
    files = {_yolo_key(path, folder): path for path in _files(folder, "**/*.txt") if _is_yolo(path)}
    if not files and not any(path.is_dir() for path in folder.rglob("labels")):
        raise ValueError("it has no folder labels: make an empty one if no picture has a face")
    for key in sorted(by_stem.keys() | files.keys()):
        # A picture without a file has no face.
        labels = _yolo_labels(files[key], names, keypoints) if key in files else []
        path = by_stem.get(key) or _picture(Path(key).name, folder, pictures)
        name = key + (path.suffix if path else "")
        yield Labelled(name, path, tuple(labels), shares=True)


def _yolo_labels(file: Path, names: Mapping[int, str], keypoints: int) -> list[Label]:
    """Return the labels in `file`, one in each line that is not empty."""
    with _reading(file):
        lines = _text(file).splitlines()
    labels = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            with _reading(f"{file}, line {number},"):
                labels.append(_yolo_label(line, names, keypoints))
    return labels


def _yolo_label(line: str, names: Mapping[int, str], keypoints: int) -> Label:
    """Return the label in `line`, in which `keypoints` numbers may follow the box.

    Other numbers after the box are refused, because those of a polygon would be taken for a box,
    and a score belongs to a prediction that nobody may have looked at.
    """
    numbers = [float(part) for part in line.split()]
    if len(numbers) == YOLO_BOX + 1:
        raise ValueError(
            f"{len(numbers)} numbers, of which the last is the score of a prediction: correct the "
            "boxes, and export them as labels, without scores"
        )
    if len(numbers) not in (YOLO_BOX, YOLO_BOX + keypoints):
        raise ValueError(
            f"{len(numbers)} numbers, not the {YOLO_BOX} of a box: export boxes, not polygons, "
            "or state the kpt_shape of keypoints in data.yaml"
        )
    index, x, y, width, height = numbers[:YOLO_BOX]
    if not all(abs(share) <= YOLO_FURTHEST for share in (x, y, width, height)):  # false for NaN too
        raise ValueError("a box must be in shares of the picture's sides, from 0 to 1")
    if not index.is_integer() or (names and not names.get(int(index))):
        raise ValueError(f"the class {index:g} has no name")
    box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    return Label(names.get(int(index), f"{index:g}"), box)


def _yolo_description(source: Path, folder: Path) -> tuple[dict[int, str], int]:
    """Return the names of the classes, empty if none are stated, and the numbers of keypoints.

    Two files that name a class differently are an error: nobody knows which one is right.
    """
    stated: list[tuple[Path, dict[int, str]]] = []
    keypoints = 0
    for file in [*_files(source, "*.yaml"), *_files(source, "*.yml")]:
        with _reading(file):
            content = yaml.safe_load(_text(file)) or {}
            names = content.get("names") or []
            keypoints = keypoints or math.prod(content.get("kpt_shape") or [0])
            named = names.items() if isinstance(names, dict) else enumerate(names)
            texts = {int(index): "" if name is None else str(name) for index, name in named}
            stated.append((file, {index: text.strip() for index, text in texts.items()}))
    for name in ("classes.txt", "obj.names"):
        for file in sorted(folder.rglob(name)):
            with _reading(file):
                texts = dict(enumerate(map(str.strip, _text(file).splitlines())))
            stated.append((file, {index: text for index, text in texts.items() if text}))
    stated = [(file, names) for file, names in stated if names]
    for file, names in stated[1:]:
        first, known = stated[0]
        for index in sorted(names.keys() & known.keys()):
            if names[index] != known[index]:
                raise _Damaged(
                    file,
                    f"class {index} is {names[index]!r:.80}, and {known[index]!r:.80} in {first}: "
                    "correct one of the files, or remove it",
                )
    return (stated[0][1] if stated else {}), keypoints


def _yolo_key(path: Path, folder: Path) -> str:
    """Return the part of the path that a picture shares with its labels.

    It lacks the suffix and the folders `images` and `labels`.
    """
    parts = [
        part
        for part in path.relative_to(folder).with_suffix("").parts
        if part not in ("images", "labels")
    ]
    return "/".join(parts)


def _is_yolo(path: Path) -> bool:
    return path.name not in (
        "classes.txt",
        "train.txt",
        "val.txt",
        "test.txt",
    ) and not path.name.startswith("README")


def _wider(source: Path, pictures: Sequence[Path]) -> Iterator[Labelled]:
    """Read WIDER FACE text: the name of a picture, its number of faces, and a line for each.

    Faces that are marked invalid are ignored.
    """
    for file in _files(source, "**/*_bbx_gt.txt"):
        with _reading(file):
            lines = [line.strip() for line in _text(file).splitlines() if line.strip()]
        folders = [
            *pictures,
            *sorted(path for path in file.parent.parent.glob("**/images") if path.is_dir()),
        ]
        at = 0
        while at < len(lines):
            name = lines[at]
            with _reading(f"{file}, picture {name},"):
                labels = _wider_labels(lines[at + 1 :])
            yield Labelled(name, _picture(name, file.parent, folders), labels)
            count = len(labels)
            at += 2 + count
            # A picture without faces has one line of zeros.
            if not count and at < len(lines) and re.fullmatch(r"[0\s]+", lines[at]):
                at += 1


def _wider_labels(lines: Sequence[str]) -> tuple[Label, ...]:
    """Return the labels of a picture; the first of `lines` is their number."""
    count = int(lines[0]) if lines else 0
    rows = [line.split() for line in lines[1 : 1 + count]]
    if not lines or len(rows) < count:
        raise ValueError("the file ends within it")
    labels = []
    for row in rows:
        x, y, width, height = _box(row[:4])
        invalid = len(row) >= WIDER_FIELDS and row[WIDER_INVALID] == "1"
        labels.append(Label("face", (x, y, x + width, y + height), invalid))
    return tuple(labels)


def _veil(source: Path, pictures: Sequence[Path]) -> Iterator[Labelled]:
    """Read the annotations of Veil.

    They are {"images": [{"file", "width", "height", "faces": [[x1, y1, x2, y2]…], "labels",
    "ignore"}]}. A picture may have "objects": [{"box": [x1, y1, x2, y2], "label"}…] in addition to
    "faces", or in place of them.
    """
    file = _needed_json(source)
    with _reading(file):
        content = json.loads(_text(file))
        _refuse_no_object(content, file)
        images = list(content["images"])
    for number, image in enumerate(images, 1):
        with _reading(f"{file}, picture {number},"):
            labelled = _veil_picture(image, file, pictures)
        yield labelled


def _veil_picture(image: Mapping[str, Any], file: Path, pictures: Sequence[Path]) -> Labelled:
    objects = image.get("objects")
    faces = image["faces"] if objects is None else image.get("faces", [])
    names = image.get("labels") or ["face"] * len(faces)
    if len(names) != len(faces):
        raise ValueError(f"{counted(len(faces), 'face')} and {counted(len(names), 'label')}")
    labels = [Label(_name(name), _json_box(box)) for name, box in zip(names, faces, strict=True)]
    labels += [Label(_name(item["label"]), _json_box(item["box"])) for item in objects or []]
    labels += [Label("ignore", _json_box(box), ignored=True) for box in image.get("ignore", [])]
    size = (
        (int(image["width"]), int(image["height"]))
        if image.get("width") and image.get("height")
        else None
    )
    path = _picture(image["file"], file.parent, pictures)
    return Labelled(image["file"], path, tuple(labels), size)


def _name(label: Any) -> str:
    """Return the name of a label; ValueError if it has none, which no option could map."""
    name = "" if label is None else str(label).strip()
    if not name:
        raise ValueError("a label has no name")
    return name


def _json_box(sides: Any) -> Box:
    """Return the box that an array of numbers in JSON states."""
    if not isinstance(sides, list):
        raise ValueError(f"a box has four numbers, not {sides!r:.40}")
    if texts := [side for side in sides if isinstance(side, str | bool)]:
        raise ValueError(f"{texts[0]!r:.40} in a box is not a number")
    return _box(sides)


def _box(sides: Sequence[Any]) -> Box:
    if len(sides) != 4:
        raise ValueError(f"a box has four numbers, not {len(sides)}")
    x1, y1, x2, y2 = (_finite(side) for side in sides)
    return x1, y1, x2, y2


def _finite(side: Any) -> float:
    try:
        number = float(side)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{side!r:.40} in a box is not a finite number")
    return number


def _picture(name: str, near: Path, pictures: Sequence[Path]) -> Path | None:
    """Return the path of the picture `name`, searched in `pictures` and in the usual folders.

    Annotations may name a picture with or without its folder and suffix. A name that leads out of
    these folders is not followed, because labels may come from others.
    """
    folders = [*pictures, *(near / part for part in PICTURE_FOLDERS)]
    searched = [_without_dots(folder) for folder in folders]
    for folder in folders:
        for candidate in (folder / name, folder / Path(name.replace("\\", "/")).name):
            if not any(_without_dots(candidate).is_relative_to(each) for each in searched):
                continue
            if candidate.is_file():
                return candidate
            if candidate.suffix.lower() not in PICTURE_SUFFIXES:
                for suffix in sorted(PICTURE_SUFFIXES):
                    if (completed := candidate.with_name(candidate.name + suffix)).is_file():
                        return completed
    return None


def _without_dots(path: Path) -> Path:
    """Return the absolute path without ``..``; links, by which folders may be joined, stay."""
    return Path(os.path.normpath(path.absolute()))


FORMATS: dict[str, Reader] = {
    "voc": _voc,
    "coco": _coco,
    "yolo": _yolo,
    "wider": _wider,
    "veil": _veil,
}
