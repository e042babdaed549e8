"""The engine for Python programs: it anonymizes files and arrays without a queue."""

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
    """Finds and hides faces with the settings and the limits of a worker.

    The model is loaded and tested once, when the object is created. Threads may share the object; a
    process that is forked later needs its own. All errors are VeilErrors (`tasks.errors`). After an
    error there is no output: the input is never returned in its place.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        """Load the model of `settings`.

        Raises ModelInvalid if it is missing or fails its test.
        """
        self._anonymizer = build_anonymizer(settings)
        self._settings = settings

    @classmethod
    def from_settings(cls, **values: Any) -> "Anonymizer":
        """Return an anonymizer with the settings of the environment, ``VEIL_PRESET`` and so on.

        `values` take precedence. Their names are those of docs/settings.md without ``VEIL_``, in
        lower case: ``Anonymizer.from_settings(preset="thorough", verify="hold")``.

        Raises SettingsInvalid for a wrong name or value, and the errors of the constructor.
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
        `height` and `detections`. These are the faces of all frames, strongest first:
        `boxes_xyxy`, float32 [n, 4], x1 y1 x2 y2 in pixels of the upright picture, and `scores`,
        float32 [n]. `content` is None if the picture is held (`no_faces` or `verify` set to
        ``hold``); `reason` says why.

        Raises EmptyObject, UnreadableImage, UnsupportedImage, ImageTooLarge or DetectionFailed if
        the picture cannot be anonymized, DetectorUnavailable if the detector does not answer in
        time.
        """
        if not isinstance(content, bytes):
            raise UnsupportedImage(
                f"a file must be given as bytes, not as {type(content).__name__}"
            )
        if len(content) > self._settings.max_bytes:
            raise ImageTooLarge(
                f"the file has {len(content):,} bytes, the limit is {self._settings.max_bytes:,}: "
                "raise VEIL_MAX_BYTES"
            )
        return self._anonymizer.anonymize(content, Stopwatch(), options)

    def anonymize_array(
        self, pixels: Pixels, options: AnonymizeOptions = AS_CONFIGURED
    ) -> AnonymizedArray:
        """Return a copy of `pixels`, uint8 RGB [height, width, 3], with the faces in it hidden.

        The result has `pixels`, uint8 RGB [height, width, 3], and the `detections` of `anonymize`.
        `pixels` is None if the picture is held; `reason` says why. The given array is not changed.

        Raises UnsupportedImage for any other argument, and the errors of `anonymize`.
        """
        return self._anonymizer.anonymize_array(self._checked(pixels), options)

    def detect(self, pixels: Pixels) -> Detections:
        """Return the faces in `pixels`, uint8 RGB [height, width, 3]: `boxes_xyxy` and `scores`.

        Raises the errors of `anonymize_array`.
        """
        return self._anonymizer.detect(self._checked(pixels))

    def _checked(self, pixels: Any) -> Pixels:
        """Return a checked copy of `pixels`, which the caller cannot change during the work."""
        if not isinstance(pixels, np.ndarray) or isinstance(pixels, np.ma.MaskedArray):
            raise UnsupportedImage(
                f"a picture must be a NumPy array, not {type(pixels).__name__}: "
                "numpy.asarray(picture.convert('RGB')) converts a Pillow image"
            )
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise UnsupportedImage(
                "a picture must be uint8 [height, width, 3], red green blue, not "
                f"{pixels.dtype} {list(pixels.shape)}"
            )
        height, width = pixels.shape[:2]
        if not pixels.size:
            raise UnsupportedImage(f"a picture of {width} × {height} pixels is empty")
        if width * height > self._settings.max_pixels:
            raise ImageTooLarge(
                f"{width} × {height} pixels exceed the limit of {self._settings.max_pixels:,}: "
                "raise VEIL_MAX_PIXELS"
            )
        return np.array(pixels, order="C", subok=False)
