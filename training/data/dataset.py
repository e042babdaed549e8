"""A data set on disk: pictures named by content, their faces and splits, and a digest."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.errors import DatasetInvalid, OutputFailed, VeilError
from worker import images
from worker.pixels import Pixels

VERSION = 1
INDEX = "dataset.json"
SPLITS = ("train", "val", "test")
MAX_PIXELS = 210_000_000
FACE = "FACE"
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Picture:
    """A picture of the data set, with the boxes of its faces, x1 y1 x2 y2 in pixels.

    Faces are objects of other classes, too, if the data set has such. `classes` has the place of
    each one's label among those of the data set; it is empty if there is only one label.
    `width` and `height` are those of the upright picture. Detections in the areas `ignore` count
    neither as faces nor as false alarms.
    """

    file: str
    sha256: str
    width: int
    height: int
    faces: tuple[Box, ...]
    ignore: tuple[Box, ...]
    split: str
    classes: tuple[int, ...] = ()

    def boxes_of(self, number: int) -> tuple[Box, ...]:
        """Return the boxes of the class `number`."""
        if not self.classes:
            return self.faces
        of_class = zip(self.faces, self.classes, strict=True)
        return tuple(box for box, its in of_class if its == number)


@dataclass(frozen=True)
class Dataset:
    """A folder of pictures with an index.

    `digest` covers everything that training and evaluation use. `labels` are the names of the
    classes.
    """

    folder: Path
    pictures: tuple[Picture, ...]
    digest: str
    labels: tuple[str, ...] = (FACE,)

    @classmethod
    def load(cls, folder: Path) -> "Dataset":
        """Return the data set in `folder`.

        Raise DatasetInvalid if there is none, or if its index does not match its digest.
        """
        try:
            content = json.loads((folder / INDEX).read_text())
            if content["version"] != VERSION:
                raise DatasetInvalid(
                    f"{folder} has version {content['version']}, not {VERSION}: import it again"
                )
            pictures = tuple(_picture(record) for record in content["pictures"])
            labels = tuple(map(str, content.get("labels", [FACE])))
            stated = content["digest"]
        except (FileNotFoundError, NotADirectoryError):
            raise DatasetInvalid(
                f"{folder} holds no {INDEX}: make it with `veil train import`"
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DatasetInvalid(
                f"{folder / INDEX} is damaged ({type(error).__name__}): import it again"
            ) from None
        if digest(pictures, labels) != stated:
            raise DatasetInvalid(f"{folder / INDEX} is not what its digest names: import it again")
        return cls(folder, pictures, stated, labels)

    def split(self, name: str) -> tuple[Picture, ...]:
        """Return the pictures of one split; raise DatasetInvalid if none of them has an object."""
        chosen = tuple(picture for picture in self.pictures if picture.split == name)
        if not chosen:
            raise DatasetInvalid(
                f"the split {name!r} of {self.folder} is empty: "
                "import more pictures, or choose another"
            )
        if not any(picture.faces for picture in chosen):
            raise DatasetInvalid(
                f"the split {name!r} of {self.folder} has no {kind_of(self.labels)} in it: "
                "import more pictures"
            )
        return chosen

    def pixels(self, picture: Picture) -> Pixels:
        """Return uint8 RGB [height, width, 3]; raise DatasetInvalid if the file has changed."""
        return first_view(self.frame(picture))

    def frame(self, picture: Picture) -> images.Frame:
        """Return the first frame of the file; raise DatasetInvalid if the file has changed."""
        path = self.folder / picture.file
        try:
            frame, _ = decoded(path.read_bytes())
        except OSError as error:
            raise DatasetInvalid(
                f"{path} can't be read ({error.strerror}): import the data set again"
            ) from None
        except VeilError as error:
            raise DatasetInvalid(
                f"{path} is damaged ({error}): import the data set again"
            ) from None
        if (frame.height, frame.width) != (picture.height, picture.width):
            raise DatasetInvalid(
                f"{path} is not the picture that was imported: import the data set again"
            )
        return frame


def refuse_as_target(folder: Path) -> None:
    """Raise OutputFailed if `folder` has a data set, so that no result is written into it."""
    if (folder / INDEX).exists():
        raise OutputFailed(f"{folder} is a data set: choose another --to")


def decoded(content: bytes) -> tuple[images.Frame, str]:
    """Return the first frame of a picture, decoded as in a worker, and the name of its format.

    Raise the VeilError of worker.images if it can't be decoded.
    """
    picture = images.decode(content, MAX_PIXELS)
    return picture.frames[0], picture.format


def first_view(frame: images.Frame) -> Pixels:
    """Return the first of the views in which a worker detects, uint8 RGB [height, width, 3]."""
    return next(frame.views())


def digest(pictures: Iterable[Picture], labels: Sequence[str] = (FACE,)) -> str:
    """Return the SHA-256 of contents, boxes, labels and splits, in any order of the sources."""
    lines = sorted(json.dumps(_record(picture), sort_keys=True) for picture in pictures)
    if tuple(labels) != (FACE,):
        lines.append(json.dumps(list(labels)))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def index(pictures: Iterable[Picture], labels: Sequence[str] = (FACE,)) -> dict[str, Any]:
    """Return the content of the file INDEX."""
    ordered = sorted(pictures, key=lambda picture: picture.sha256)
    named = {} if tuple(labels) == (FACE,) else {"labels": list(labels)}
    return {
        "version": VERSION,
        "digest": digest(ordered, labels),
        **named,
        "pictures": [_record(picture) for picture in ordered],
    }


def kind_of(labels: Sequence[str]) -> str:
    """Return the word for an object with one of `labels`."""
    return "face" if tuple(labels) == (FACE,) else "object"


def sides(boxes: Iterable[Box]) -> NDArray[np.float64]:
    """Return for each box the side, in pixels, of a square of the same area."""
    corners = np.array(list(boxes), np.float64).reshape(-1, 4)
    found: NDArray[np.float64] = np.sqrt((corners[:, 2:] - corners[:, :2]).prod(axis=1))
    return found


def _record(picture: Picture) -> dict[str, Any]:
    """Return the fields of `picture`, without classes if there are none."""
    record = asdict(picture)
    if not picture.classes:
        del record["classes"]
    return record


def _picture(record: dict[str, Any]) -> Picture:
    boxes = {name: tuple(map(_box, record[name])) for name in ("faces", "ignore")}
    classes = tuple(map(int, record.get("classes", ())))
    picture = Picture(**{**record, **boxes, "classes": classes})
    if classes and len(classes) != len(picture.faces):
        raise ValueError("a picture has another number of classes than of boxes")
    return picture


def _box(corners: list[float]) -> Box:
    return corners[0], corners[1], corners[2], corners[3]
