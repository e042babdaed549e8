"""A data set on disk: pictures by content, their faces and splits, and one digest that names all of it."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.errors import DatasetInvalid, VeilError
from worker import images
from worker.pixels import Pixels

VERSION = 1
INDEX = "dataset.json"
SPLITS = ("train", "val", "test")
MAX_PIXELS = 100_000_000
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Picture:
    """One picture: its file in the data set, SHA-256 and sides, upright; boxes x1 y1 x2 y2 in pixels.

    What is in `ignore` counts neither as a face nor as none.
    """

    file: str
    sha256: str
    width: int
    height: int
    faces: tuple[Box, ...]
    ignore: tuple[Box, ...]
    split: str


@dataclass(frozen=True)
class Dataset:
    """A folder with an index. `digest` is over everything that training and evaluation see."""

    folder: Path
    pictures: tuple[Picture, ...]
    digest: str

    @classmethod
    def load(cls, folder: Path) -> "Dataset":
        """Raises DatasetInvalid when the folder holds no data set, or not the one that its digest names."""
        try:
            content = json.loads((folder / INDEX).read_text())
            if content["version"] != VERSION:
                raise DatasetInvalid(f"{folder} has version {content['version']}, not {VERSION}: import it again")
            pictures = tuple(_picture(record) for record in content["pictures"])
            stated = content["digest"]
        except FileNotFoundError:
            raise DatasetInvalid(f"{folder} holds no {INDEX}: make it with `veil train import`") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DatasetInvalid(f"{folder / INDEX} is damaged ({type(error).__name__}): import it again") from None
        if digest(pictures) != stated:
            raise DatasetInvalid(f"{folder / INDEX} is not what its digest names: import it again")
        return cls(folder, pictures, stated)

    def split(self, name: str) -> tuple[Picture, ...]:
        """The pictures of one split; DatasetInvalid if it has none, or none with a face."""
        chosen = tuple(picture for picture in self.pictures if picture.split == name)
        if not chosen:
            raise DatasetInvalid(
                f"the split {name!r} of {self.folder} is empty: import more pictures, or choose another"
            )
        if not any(picture.faces for picture in chosen):
            raise DatasetInvalid(f"the split {name!r} of {self.folder} has no face in it: import more pictures")
        return chosen

    def pixels(self, picture: Picture) -> Pixels:
        """uint8 RGB [height, width, 3]; DatasetInvalid if the file is not what was imported."""
        path = self.folder / picture.file
        try:
            pixels, _ = decoded(path.read_bytes())
        except OSError as error:
            raise DatasetInvalid(f"{path} can't be read ({error.strerror}): import the data set again") from None
        except VeilError as error:
            raise DatasetInvalid(f"{path} is damaged ({error}): import the data set again") from None
        if pixels.shape[:2] != (picture.height, picture.width):
            raise DatasetInvalid(f"{path} is not the picture that was imported: import the data set again")
        return pixels


def decoded(content: bytes) -> tuple[Pixels, str]:
    """The first frame of a picture's bytes as a worker looks at it, and its format; a VeilError as worker.images'."""
    picture = images.decode(content, MAX_PIXELS)
    return next(iter(picture.frames[0].views())), picture.format


def digest(pictures: Iterable[Picture]) -> str:
    """SHA-256 over contents, boxes and splits; neither the order of sources nor the names of files matter."""
    lines = sorted(json.dumps(asdict(picture), sort_keys=True) for picture in pictures)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def index(pictures: Iterable[Picture]) -> dict[str, Any]:
    """What INDEX holds."""
    ordered = sorted(pictures, key=lambda picture: picture.sha256)
    return {"version": VERSION, "digest": digest(ordered), "pictures": [asdict(picture) for picture in ordered]}


def sides(boxes: Iterable[Box]) -> NDArray[np.float64]:
    """For each box the side, in pixels, of a square as large."""
    corners = np.array(list(boxes), np.float64).reshape(-1, 4)
    found: NDArray[np.float64] = np.sqrt((corners[:, 2:] - corners[:, :2]).prod(axis=1))
    return found


def _picture(record: dict[str, Any]) -> Picture:
    faces, ignore = (tuple((b[0], b[1], b[2], b[3]) for b in record[name]) for name in ("faces", "ignore"))
    return Picture(**{**record, "faces": faces, "ignore": ignore})
