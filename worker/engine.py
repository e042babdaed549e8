"""The engine for Python programs: it anonymizes files and arrays without a queue."""

import difflib
import os
from collections.abc import Mapping
from io import TextIOBase
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
from PIL import Image, ImageOps

from tasks.errors import (
    DetectorUnavailable,
    ImageTooLarge,
    InvalidRequest,
    SettingsInvalid,
    UnreadableImage,
    UnsupportedImage,
)
from tasks.messages import AnonymizeOptions
from tasks.settings import PREFIX, refuse_unknown
from worker import logs
from worker.anonymizer import Anonymized, AnonymizedArray, Stopwatch
from worker.bootstrap import build_anonymizer
from worker.detection.faces import Detections
from worker.local_files import check_size, read_picture
from worker.pixels import Pixels
from worker.settings import WorkerSettings, changes_no_picture
from worker.treatments import AS_CONFIGURED

File = bytes | bytearray | memoryview | str | os.PathLike[str] | BinaryIO
"""A picture file: its bytes, its path, or a file that is open in binary mode."""

Options = AnonymizeOptions | Mapping[str, Any]
"""Options of one picture, or a dict of them as `tasks.anonymize_image` takes it."""

BYTES = bytes | bytearray | memoryview
CONVERTED_MODES = ("RGB", "L")  # modes of Pillow that become RGB without a loss


class Anonymizer:
    """Finds and hides faces with the settings and the limits of a worker.

    The model is loaded and tested once, when the object is created. Threads may share the object.
    Each process needs its own: after a fork the methods raise DetectorUnavailable, and pickling
    raises TypeError. All errors of the methods are VeilErrors (`tasks.errors`). After an error
    there is no output: the input is never returned in its place.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        """Load the model of `settings`.

        Raises ModelInvalid if it is missing or fails its test.
        """
        logs.use_standard_library()
        self._anonymizer = build_anonymizer(settings)
        self._settings = settings
        self._process = os.getpid()

    def __reduce__(self) -> NoReturn:
        raise TypeError("an Anonymizer can't be copied or pickled: create one in each process")

    @classmethod
    def from_settings(cls, **values: Any) -> "Anonymizer":
        """Return an anonymizer with the settings of the environment, ``VEIL_PRESET`` and so on.

        `values` take precedence. Their names are those of docs/settings.md without ``VEIL_``, in
        lower case: ``Anonymizer.from_settings(preset="thorough", verify="hold")``.

        Raises SettingsInvalid for a wrong name or value, and for a setting that changes no picture;
        and the errors of the constructor.
        """
        refuse_unknown(os.environ, WorkerSettings)
        for name in values:
            _check_name(name)
            # Those of S3 say where a model is.
            if changes_no_picture(name) and not name.startswith("s3_"):
                raise SettingsInvalid(f"{PREFIX}{name.upper()} changes no picture: leave it out")
        return cls(WorkerSettings.load(**values))

    @property
    def recipe(self) -> str:
        """The digest of everything that decides an output: 16 hex digits, as in receipts."""
        return self._anonymizer.recipe

    def anonymize(self, content: File, options: Options = AS_CONFIGURED) -> Anonymized:
        """Return the anonymized file of `content`: bytes, a path, or an open file.

        A file that is open in binary mode is read from its position on.

        `options` replace settings for this picture: ``{"region": "full", "extra": [[0, 0, 80,
        20]]}``. Their names are those of AnonymizeOptions.

        The result has `content` (bytes in the same format), `format` (such as ``JPEG``), `width`,
        `height` and `detections`. These are the faces of all frames, strongest first:
        `boxes_xyxy`, float32 [n, 4], x1 y1 x2 y2 in pixels of the upright picture, and `scores`,
        float32 [n]. `content` is None if the picture is held (`no_faces` or `verify` set to
        ``hold``); `reason` says why.

        Raises EmptyObject, UnreadableImage, UnsupportedImage, ImageTooLarge or DetectionFailed if
        the picture cannot be anonymized, InvalidRequest for wrong options or a wrong type,
        DetectorUnavailable if the detector does not answer in time, and OSError if the path cannot
        be read.
        """
        checked = _checked_options(options)
        return self._anonymizer.anonymize(self._content(content), Stopwatch(), checked)

    def anonymize_array(
        self, pixels: Pixels | Image.Image, options: Options = AS_CONFIGURED
    ) -> AnonymizedArray:
        """Return a copy of `pixels` with the faces in it hidden.

        `pixels` is an array, uint8 RGB [height, width, 3], or a Pillow image in the mode RGB or L,
        which is rotated as its EXIF orientation says. The argument is not changed. `options` are
        those of `anonymize`.

        The result has `pixels`, uint8 RGB [height, width, 3], the same pixels as the Pillow image
        `image`, and the `detections` of `anonymize`. `pixels` and `image` are None if the picture
        is held; `reason` says why.

        Raises UnsupportedImage for any other array or image, and the errors of `anonymize`.
        """
        return self._anonymizer.anonymize_array(self._checked(pixels), _checked_options(options))

    def detect(self, pixels: File | Pixels | Image.Image) -> Detections:
        """Return the faces in `pixels`: `boxes_xyxy` and `scores`.

        `pixels` is any argument of `anonymize` or `anonymize_array`. Raises the errors of these.
        """
        if isinstance(pixels, BYTES | str | os.PathLike) or _is_open_file(pixels):
            return self._anonymizer.detect_file(self._content(pixels)).detections
        return self._anonymizer.detect(self._checked(pixels))

    def _check_process(self) -> None:
        """Raise DetectorUnavailable after a fork, which the threads of the model do not survive."""
        if os.getpid() != self._process:
            raise DetectorUnavailable(
                "this process was forked after the Anonymizer was created: "
                "create one in each process"
            )

    def _content(self, file: Any) -> bytes:
        """Return the bytes of `file`, within the limit; a larger file is not read."""
        self._check_process()
        if isinstance(file, str) and "://" in file and not Path(file).exists():
            raise UnsupportedImage(
                f"{file:.200} is an address, and only local files are read: "
                "pass the bytes of the object"
            )
        max_bytes = self._settings.max_bytes
        try:
            if isinstance(file, str | os.PathLike):
                file = read_picture(Path(file), max_bytes)
            elif _is_open_file(file) and not isinstance(file, TextIOBase):
                file = _read(file, max_bytes + 1)
        except OSError:
            raise
        except ValueError as error:  # a path with a null byte, or a file that was closed
            raise InvalidRequest(f"the file can't be read: {error}") from None
        if not isinstance(file, BYTES):
            raise InvalidRequest(
                "a file must be given as bytes, as a path, or open in binary mode, not as "
                f"{type(file).__name__}: anonymize_array takes arrays and Pillow images"
            )
        check_size(memoryview(file).nbytes, max_bytes)
        return bytes(file)

    def _checked(self, picture: Any) -> Pixels:
        """Return the checked pixels of `picture` as a copy, which the caller cannot change."""
        self._check_process()
        if isinstance(picture, Image.Image):
            self._check_dimensions(*picture.size)
            return _pixels_of(picture)
        if not isinstance(picture, np.ndarray) or isinstance(picture, np.ma.MaskedArray):
            raise InvalidRequest(
                "a picture must be a NumPy array or a Pillow image or, for anonymize and detect, a "
                f"file (bytes, a path, or open in binary mode), not {type(picture).__name__}"
            )
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise UnsupportedImage(
                "a picture must be uint8 [height, width, 3], red green blue, not "
                f"{picture.dtype} {list(picture.shape)}"
            )
        height, width = picture.shape[:2]
        self._check_dimensions(width, height)
        return np.array(picture, order="C", subok=False)

    def _check_dimensions(self, width: int, height: int) -> None:
        if not width * height:
            raise UnsupportedImage(f"a picture of {width} × {height} pixels is empty")
        if width * height > self._settings.max_pixels:
            raise ImageTooLarge(
                f"{width} × {height} pixels exceed the limit of {self._settings.max_pixels:,}: "
                "raise VEIL_MAX_PIXELS"
            )


def _check_name(name: str) -> None:
    """Raise SettingsInvalid if `name` is not that of a setting, with the likely one."""
    known = WorkerSettings.model_fields
    if name not in known:
        written = name.lower().removeprefix(PREFIX.lower())
        near = difflib.get_close_matches(written, known, n=1, cutoff=0.75)
        hint = f"write {near[0]}=" if near else "docs/settings.md lists all settings"
        raise SettingsInvalid(f"{name:.60} is not the name of a setting here: {hint}")


def _is_open_file(file: Any) -> bool:
    # Pillow images and paths have no method `read`.
    return callable(getattr(file, "read", None))


def _read(file: Any, limit: int) -> Any:
    """Return the bytes of an open `file`, `limit` at most, or what it gives in place of bytes."""
    content = bytearray()
    while len(content) < limit and (part := file.read(limit - len(content))):
        if not isinstance(part, bytes):
            return part
        content += part
    return content


def _checked_options(options: Options) -> AnonymizeOptions:
    """Return `options` as an object. Raises InvalidRequest."""
    return options if isinstance(options, AnonymizeOptions) else AnonymizeOptions.of(options)


def _pixels_of(image: Image.Image) -> Pixels:
    """Return the upright pixels of a Pillow image, uint8 RGB [height, width, 3].

    Other modes are refused: Pillow's conversion clips 16 bits, and drops transparency.
    """
    if image.mode not in CONVERTED_MODES:
        raise UnsupportedImage(
            f"a Pillow image must have the mode RGB or L, not {image.mode}: "
            "image.convert('RGB') converts it"
        )
    try:
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except Exception as error:  # A lazy image is decoded here, and its file can be damaged.
        raise UnreadableImage(f"Pillow can't decode the image ({type(error).__name__})") from None
