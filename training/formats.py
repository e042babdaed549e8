"""Readers of labels: Pascal VOC, COCO, YOLO text, WIDER FACE text, and the annotations of Veil."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import yaml

from tasks.errors import DatasetInvalid
from worker.local_files import PICTURE_SUFFIXES

Box = tuple[float, float, float, float]  # x1 y1 x2 y2
# The usual folders of pictures, relative to the folder of their annotations.
PICTURE_FOLDERS = (".", "images", "JPEGImages", "../images", "../JPEGImages", "..")
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
    shares of the sides of the picture. `size` is (width, height) if the source states it.
    """

    name: str
    path: Path | None
    labels: tuple[Label, ...]
    size: tuple[int, int] | None = None
    shares: bool = False


Reader = Callable[[Path, Sequence[Path]], Iterator[Labelled]]


def read(source: Path, form: str | None, pictures: Sequence[Path]) -> list[Labelled]:
    """Return the labelled pictures of `source`, a file or a folder.

    `form` names its format; without it, the format is recognised by the content. `pictures` are
    further folders to search for the pictures. Raise DatasetInvalid, with a message of one line, if
    `source` can't be read.
    """
    if not source.exists():
        raise DatasetInvalid(f"{source} does not exist")
    name = form or _recognised(source)
    try:
        found = list(FORMATS[name](source, pictures))
    except OSError as error:
        raise DatasetInvalid(f"{error.filename} can't be read: {error.strerror}") from None
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
        ElementTree.ParseError,
    ) as error:
        raise DatasetInvalid(
            f"{source} is not {name}, or damaged ({type(error).__name__}: {error!s:.120})"
        ) from None
    if not found:
        raise DatasetInvalid(f"{source} labels no picture as {name}")
    return found


def _recognised(source: Path) -> str:
    """Return the name of the format of `source`, recognised by its content."""
    if file := _json_file(source):
        try:
            content = json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise DatasetInvalid(f"{file} is no JSON that can be read ({error!s:.120})") from None
        return "coco" if isinstance(content, dict) and "annotations" in content else "veil"
    if source.suffix == ".xml" or (source.is_dir() and next(source.rglob("*.xml"), None)):
        return "voc"
    if source.suffix == ".txt" or (source.is_dir() and next(source.glob("**/*_bbx_gt.txt"), None)):
        return "wider"
    if source.suffix in (".yaml", ".yml") or (
        source.is_dir() and next(source.rglob("*.txt"), None)
    ):
        return "yolo"
    raise DatasetInvalid(
        f"{source} has no labels of a known format: name it with --format {'|'.join(FORMATS)}"
    )


def _json_file(source: Path) -> Path | None:
    """Return `source` if it is JSON, or the annotations.json or the only JSON file in it."""
    if source.is_file():
        return source if source.suffix == ".json" else None
    files = sorted(source.glob("*.json"))
    named = [file for file in files if file.name == "annotations.json"]
    if named:
        return named[0]
    return files[0] if len(files) == 1 else None


def _voc(source: Path, pictures: Sequence[Path]) -> Iterator[Labelled]:
    """Read Pascal VOC: an XML file for each picture, with corners in pixels."""
    for file in [source] if source.is_file() else sorted(source.rglob("*.xml")):
        # Expat refuses exponential entities since 2.4.1.
        root = ElementTree.parse(file).getroot()  # noqa: S314
        name = root.findtext("filename") or file.stem
        labels = []
        for item in root.iter("object"):
            corners = item.find("bndbox")
            if corners is None:
                raise ValueError(f"an object of {file.name} has no bndbox")
            x1, y1, x2, y2 = (
                float(corners.findtext(side, "")) for side in ("xmin", "ymin", "xmax", "ymax")
            )
            label = item.findtext("name", "").strip()
            labels.append(
                Label(label, (x1, y1, x2, y2), item.findtext("difficult", "0").strip() == "1")
            )
        path = _picture(name, file.parent, pictures) or _picture(file.stem, file.parent, pictures)
        width, height = (
            int(float(root.findtext(f"size/{side}", "0"))) for side in ("width", "height")
        )
        yield Labelled(name, path, tuple(labels), (width, height) if width and height else None)


def _coco(source: Path, pictures: Sequence[Path]) -> Iterator[Labelled]:
    """Read COCO: one JSON file with boxes x y width height in pixels; a crowd is ignored."""
    file = _json_file(source) or source
    content = json.loads(file.read_text())
    names = {category["id"]: str(category["name"]) for category in content["categories"]}
    labels: dict[Any, list[Label]] = {image["id"]: [] for image in content["images"]}
    for item in content["annotations"]:
        if item["image_id"] not in labels:
            raise ValueError(
                f"an annotation names the picture {item['image_id']}, which is not listed"
            )
        x, y, width, height = map(float, item["bbox"])
        crowd = bool(item.get("iscrowd") or item.get("ignore"))
        labels[item["image_id"]].append(
            Label(names[item["category_id"]], (x, y, x + width, y + height), crowd)
        )
    for image in content["images"]:
        size = (
            (int(image["width"]), int(image["height"]))
            if image.get("width") and image.get("height")
            else None
        )
        name = str(image["file_name"])
        yield Labelled(
            name, _picture(name, file.parent, pictures), tuple(labels[image["id"]]), size
        )


def _yolo(source: Path, pictures: Sequence[Path]) -> Iterator[Labelled]:
    """Read YOLO text: a line for each box, with its class, and centre and sides as shares.

    The names of the classes are in data.yaml or classes.txt.
    """
    folder = source if source.is_dir() else source.parent
    names = _yolo_names(source, folder)
    images = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURE_SUFFIXES)
    by_stem = {_yolo_key(path, folder): path for path in images}
    files = {
        _yolo_key(path, folder): path for path in sorted(folder.rglob("*.txt")) if _is_yolo(path)
    }
    for key in sorted(by_stem.keys() | files.keys()):
        labels = []
        # A picture without a file has no face.
        lines = files[key].read_text().splitlines() if key in files else []
        for line in filter(str.strip, lines):
            index, x, y, width, height = (float(part) for part in line.split()[:5])
            box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
            labels.append(Label(names.get(int(index), f"{index:g}"), box))
        path = by_stem.get(key) or _picture(Path(key).name, folder, pictures)
        yield Labelled(key, path, tuple(labels), shares=True)


def _yolo_names(source: Path, folder: Path) -> dict[int, str]:
    described = (
        [source] if source.is_file() else sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")])
    )
    for file in described:
        names = (yaml.safe_load(file.read_text()) or {}).get("names")
        if names:
            return dict(names) if isinstance(names, dict) else dict(enumerate(names))
    for name in ("classes.txt", "obj.names"):
        for file in sorted(folder.rglob(name)):
            return dict(enumerate(file.read_text().split()))
    return {}


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
    for file in [source] if source.is_file() else sorted(source.glob("**/*_bbx_gt.txt")):
        lines = [line.strip() for line in file.read_text().splitlines() if line.strip()]
        folders = [
            *pictures,
            *sorted(path for path in file.parent.parent.glob("**/images") if path.is_dir()),
        ]
        at = 0
        while at < len(lines):
            name, count = lines[at], int(lines[at + 1])
            rows = [re.split(r"\s+", line) for line in lines[at + 2 : at + 2 + count]]
            if len(rows) < count:
                raise ValueError(f"{file.name} ends within {name}")
            labels = []
            for row in rows:
                x, y, width, height = map(float, row[:4])
                invalid = len(row) >= WIDER_FIELDS and row[WIDER_INVALID] == "1"
                labels.append(Label("face", (x, y, x + width, y + height), invalid))
            yield Labelled(name, _picture(name, file.parent, folders), tuple(labels))
            at += 2 + count
            # A picture without faces has one line of zeros.
            if not count and at < len(lines) and re.fullmatch(r"[0\s]+", lines[at]):
                at += 1


def _veil(source: Path, pictures: Sequence[Path]) -> Iterator[Labelled]:
    """Read the annotations of Veil.

    They are {"images": [{"file", "width", "height", "faces": [[x1, y1, x2, y2]…], "labels",
    "ignore"}]}.
    """
    file = _json_file(source) or source
    for image in json.loads(file.read_text())["images"]:
        names = image.get("labels") or ["face"] * len(image["faces"])
        labels = [
            Label(str(name), _box(box)) for name, box in zip(names, image["faces"], strict=True)
        ]
        labels += [Label("ignore", _box(box), ignored=True) for box in image.get("ignore", [])]
        size = (
            (int(image["width"]), int(image["height"]))
            if image.get("width") and image.get("height")
            else None
        )
        yield Labelled(
            image["file"], _picture(image["file"], file.parent, pictures), tuple(labels), size
        )


def _box(sides: Sequence[Any]) -> Box:
    x1, y1, x2, y2 = map(float, sides)
    return x1, y1, x2, y2


def _picture(name: str, near: Path, pictures: Sequence[Path]) -> Path | None:
    """Return the path of the picture `name`, searched in `pictures` and in the usual folders.

    Annotations may name a picture with or without its folder and suffix.
    """
    for folder in [*pictures, *(near / part for part in PICTURE_FOLDERS)]:
        for candidate in (folder / name, folder / Path(name.replace("\\", "/")).name):
            if candidate.is_file():
                return candidate
            if candidate.suffix.lower() not in PICTURE_SUFFIXES:
                for suffix in sorted(PICTURE_SUFFIXES):
                    if (completed := candidate.with_name(candidate.name + suffix)).is_file():
                        return completed
    return None


FORMATS: dict[str, Reader] = {
    "voc": _voc,
    "coco": _coco,
    "yolo": _yolo,
    "wider": _wider,
    "veil": _veil,
}
