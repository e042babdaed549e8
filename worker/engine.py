"""The engine for Python programs: anonymize files and arrays in this process, without a queue."""

import os
from typing import Any

import numpy as np

from tasks.errors import ImageTooLarge, UnsupportedImage
from tasks.messages import AnonymizeOptions
from tasks.settings import refuse_unknown
from worker.anonymizer import AS_CONFIGURED, Anonymized, AnonymizedArray, Stopwatch
from worker.bootstrap import build_anonymizer
from worker.detection.faces import Detections
from worker.pixels import Pixels
from worker.settings import WorkerSettings


class Anonymizer:
    """Find and hide faces, with the settings and the limits of a worker.

    The model is loaded and tested once, when the object is created; threads may share it. A process
    that is forked later needs an object of its own. All errors are VeilErrors (`tasks.errors`), and
    an error means that there is no output: the input is never returned in its place.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        """Load the model of `settings`. Raise ModelInvalid if it is missing or fails its test."""
        self._anonymizer = build_anonymizer(settings)
        self._settings = settings

    @classmethod
    def from_settings(cls, **values: Any) -> "Anonymizer":
        """Return an anonymizer with the settings of the environment, ``VEIL_PRESET`` and so on.

        `values` take precedence, named as in the README's table without ``VEIL_``, in lower case:
        ``Anonymizer.from_settings(preset="thorough", verify="hold")``. Raise SettingsInvalid for a
        name or a value that is wrong, and ModelInvalid as the constructor does.
        """
        refuse_unknown(os.environ, WorkerSettings)
        return cls(WorkerSettings.load(**values))

    @property
    def recipe(self) -> str:
        """The digest of everything that decides an output: 16 hex digits, as in receipts."""
        return self._anonymizer.recipe

    def anonymize(self, content: bytes, options: AnonymizeOptions = AS_CONFIGURED) -> Anonymized:
        """Return the anonymized file of `content`, the bytes of a picture file.

        The result has `content` (bytes in the same format), `format` (such as ``JPEG``), `width`,
        `height` and `detections`: `boxes_xyxy`, float32 [n, 4], x1 y1 x2 y2 in pixels of the
        upright picture, and `scores`, float32 [n], strongest first, of all frames together.
        `content` is None if the picture is held back (`no_faces` or `verify` set to ``hold``);
        `reason` says why.

        Raise EmptyObject, UnreadableImage, UnsupportedImage, ImageTooLarge or DetectionFailed if
        the picture can't be anonymized, DetectorUnavailable if the detector does not answer in
        time.
        """
        if not isinstance(content, bytes):
            raise UnsupportedImage(
                f"a file must be given as bytes, and this is {type(content).__name__}"
            )
        if len(content) > self._settings.max_bytes:
            raise ImageTooLarge(
                f"the file has {len(content):,} bytes, the limit is {self._settings.max_bytes:,}: raise VEIL_MAX_BYTES"
            )
        return self._anonymizer.anonymize(content, Stopwatch(), options)

    def anonymize_array(
        self, pixels: Pixels, options: AnonymizeOptions = AS_CONFIGURED
    ) -> AnonymizedArray:
        """Return a copy of `pixels`, uint8 RGB [height, width, 3], with the faces in it hidden.

        The result has `pixels` (uint8 RGB [height, width, 3]) and `detections` as of `anonymize`.
        `pixels` is None if the picture is held back; `reason` says why. The array that is given
        stays as it is.

        Raise UnsupportedImage for anything but such an array, and else as `anonymize` does.
        """
        return self._anonymizer.anonymize_array(self._checked(pixels), options)

    def detect(self, pixels: Pixels) -> Detections:
        """Return the faces in `pixels`, uint8 RGB [height, width, 3]: `boxes_xyxy` and `scores`.

        Raise as `anonymize_array` does.
        """
        return self._anonymizer.detect(self._checked(pixels))

    def _checked(self, pixels: Any) -> Pixels:
        """Return a copy of `pixels`, which nobody can change while it is worked on."""
        if not isinstance(pixels, np.ndarray) or isinstance(pixels, np.ma.MaskedArray):
            raise UnsupportedImage(
                f"a picture must be a NumPy array, and this is {type(pixels).__name__}: "
                "numpy.asarray(picture.convert('RGB')) makes one of a Pillow image"
            )
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise UnsupportedImage(
                "a picture must be uint8 [height, width, 3], red green blue, and this is "
                f"{pixels.dtype} {list(pixels.shape)}"
            )
        height, width = pixels.shape[:2]
        if not pixels.size:
            raise UnsupportedImage(f"a picture of {width} × {height} pixels has none")
        if width * height > self._settings.max_pixels:
            raise ImageTooLarge(
                f"{width} × {height} pixels are over the limit of {self._settings.max_pixels:,}: raise VEIL_MAX_PIXELS"
            )
        return np.array(pixels, order="C", subok=False)
