"""The work of a picture process: it decodes, masks and encodes pictures, one at a time.

It has neither credentials nor a model. Before it reads the first bytes of a picture it enters the
sandbox, in which no module can be imported any more, so `prepare` imports all of them.
"""

import io
import mmap
import os
import socket
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast, get_args

import numpy as np
from PIL import Image

from tasks.errors import ImageTooLarge, without_data
from tasks.messages import AnonymizeOptions, Method
from worker.anonymizer import Anonymized, Anonymizer, Limits, Stopwatch
from worker.detection.detector import Detector
from worker.detection.faces import Detections
from worker.detection.labelled import LabelledDetector, Search
from worker.images import deep
from worker.images.formats import BY_NAME
from worker.images.heif import deep_avif, heic
from worker.images.writing import AVIF_SPEED
from worker.masking.regions import MaskStyle
from worker.metadata.kept import Kept
from worker.pixels import Pixels
from worker.process import allocator, sandbox
from worker.process.channel import (
    ERRORS,
    MAX_ERROR_LENGTH,
    OUT_OF_MEMORY,
    Bug,
    Canvases,
    Channel,
    ChannelClosed,
    Configuration,
    Faces,
    Failure,
    Handling,
    Kind,
    Message,
    Ready,
    Result,
    Stage,
    Work,
    packed,
    parsed,
    parsed_answers,
    read_file,
)
from worker.residual_check import least_score

PREPARED_SIDE = 48  # pixels; the side of the pictures that are made and read to load every library
WITH_FRAMES = ("PNG", "GIF", "WEBP", "AVIF", "TIFF")  # formats of several frames or pages
MAX_RAISED_AT = 50  # lines of a traceback


class Refused(BaseException):
    """The worker's detector failed. The worker has the error, so nothing here may catch this."""


@dataclass
class Tally:
    """The numbers of objects that the detector returned, and of those near the threshold."""

    detected: int = 0
    near: int = 0

    def add(self, search: Search, found: Detections) -> None:
        """Count what a `search` has `found`."""
        self.detected += len(found)
        self.near += search.near(found)


@dataclass(frozen=True)
class FixedDetector:
    """A Detector that finds `face`, x1 y1 x2 y2 in pixels, in every picture."""

    face: tuple[int, int, int, int]

    def detect(self, _picture: Pixels) -> Detections:
        return Detections(np.array([self.face], np.float32), np.array([0.9], np.float32))


class PictureWork:
    """The pictures that a worker sends over `channel`.

    `pictures` is the descriptor of the file in memory with the bytes of sources and outputs, and
    `canvases` that of the one for canvases.
    """

    def __init__(self, channel: Channel, pictures: int, canvases: int) -> None:
        """Wait for the configuration, and enter the sandbox."""
        allocator.share_arenas()
        prepare()
        self._channel = channel
        self._pictures = pictures
        self._configuration: Configuration = self._receive(Kind.CONFIGURATION)
        if self._configuration.runs_for_long:
            allocator.return_memory()
        # The file has its size by now.
        mapped = mmap.mmap(canvases, os.fstat(canvases).st_size)
        self._canvases = np.frombuffer(mapped, np.uint8)
        self._send(Ready(sandbox.enter(self._configuration.memory_bytes)))

    @classmethod
    def connect(cls, channel: int, pictures: int, canvases: int) -> "PictureWork":
        """Return the work over the socket with the descriptor `channel`."""
        return cls(Channel(socket.socket(fileno=channel)), pictures, canvases)

    def run(self) -> None:
        """Work on pictures until the worker is gone."""
        while True:
            try:
                work: Work = self._receive(Kind.WORK)
            except ChannelClosed:
                return
            self._do(read_file(self._pictures, work.size), work)

    def _do(self, content: bytes, work: Work) -> None:
        """Work on the picture file `content`, and report how that ended."""
        try:
            outcome: Result | Failure | Bug = self._result(content, work)
        except Refused:
            self._channel.send(Kind.REFUSAL)
            return
        except MemoryError:
            outcome = Failure(OUT_OF_MEMORY, "")
        except Exception as error:
            outcome = _failure(error)
        self._send(outcome)

    def _result(self, content: bytes, work: Work) -> Result:
        tally = Tally()
        handling = work.handling or self._configuration
        anonymizer = self._anonymizer(handling, self._detector(handling, tally))
        stopwatch = Stopwatch(self._begin)
        if work.view is not None:
            result = anonymizer.view(content, work.view)
        elif work.detect_only:
            result = anonymizer.detect_file(content, work.options)
        else:
            result = anonymizer.anonymize(content, stopwatch, work.options)
        if result.content is not None:
            self._write(result.content)
        return _packed_result(result, stopwatch, tally, self._configuration.labels)

    def _detector(self, handling: Handling, tally: Tally) -> Detector:
        models = range(len(self._configuration.inputs))
        return LabelledDetector(
            handling.searches,
            [partial(self._infer, model) for model in models],
            handling.detect_seconds,
            tally.add,
        )

    def _anonymizer(self, handling: Handling, detector: Detector) -> Anonymizer:
        return Anonymizer(
            detector=detector,
            style=handling.style,
            limits=handling.limits,
            hold_without_faces=handling.hold_without_faces,
            verify=handling.verify,
            keep=handling.keep,
            labels=self._configuration.labels,
            rules=self._configuration.rules,
            least_check_score=least_score(handling.searches),
        )

    def _infer(self, model: int, canvases: Sequence[Pixels]) -> list[Detections]:
        """Return the detections of the worker's `model` in each canvas, uint8 [h, w, 3] RGB."""
        first = 0
        for canvas in canvases:
            self._canvases[first : first + canvas.size].reshape(canvas.shape)[...] = canvas
            first += canvas.size
        self._send(Canvases([list(canvas.shape[:2]) for canvas in canvases], model))
        kind, content = self._channel.receive()
        if kind == Kind.REFUSAL:
            raise Refused
        return parsed_answers(content)

    def _begin(self, activity: Any) -> None:
        """Tell the worker which stage begins."""
        self._send(Stage(activity))

    def _write(self, output: bytes) -> None:
        """Put `output` where the worker reads it. Raises ImageTooLarge if it does not fit."""
        if len(output) > self._configuration.output_bytes:
            raise ImageTooLarge(
                f"the output has {len(output):,} bytes, more than its pixels have: "
                "save the picture in another format"
            )
        # The limit of the size of files allows no write(2), and mapping them is no write.
        with mmap.mmap(self._pictures, len(output)) as file:
            file[:] = output

    def _send(self, message: Message) -> None:
        self._channel.send(*packed(message))

    def _receive(self, expected: Kind) -> Any:
        """Return the next message, which is of the kind `expected`."""
        kind, content = self._channel.receive()
        assert kind == expected
        return parsed(kind, content)


def prepare() -> list[str]:
    """Import every module and load every library that the work on a picture needs.

    Small pictures of each kind pass through the anonymizer. Returns the kinds that failed, which
    the libraries of this installation do not support.
    """
    side = PREPARED_SIDE
    anonymizer = Anonymizer(
        detector=FixedDetector((side // 4, side // 4, side // 2, side // 2)),
        style=MaskStyle("surround", 0.7, 0.1, "ellipse", 0.05),
        limits=Limits(max_bytes=1 << 20, max_pixels=1 << 20, fetch_seconds=0),
        verify="flag",
        keep=Kept(("DateTimeOriginal",), ("GPano",), "rounded"),
    )
    failed = []
    for kind, sample in _samples(side).items():
        try:
            anonymizer.anonymize(sample(), Stopwatch())
        except Exception:  # A picture of this kind fails in the same way, with its own error.
            failed.append(kind)
    pixels = np.zeros((side, side, 3), np.uint8)
    for method in get_args(Method):
        anonymizer.anonymize_array(pixels, AnonymizeOptions(method=method))
    return failed


def _samples(side: int) -> dict[str, Callable[[], bytes]]:
    """Return functions that make a picture file of each kind, which differ in their libraries."""
    gradient = np.arange(side * side * 4, dtype=np.uint8).reshape(side, side, 4)
    values = gradient[..., :3].astype(np.uint16) * 257
    colours = Image.fromarray(gradient[..., :3])
    samples: dict[str, Callable[[], bytes]] = {
        "gray": lambda: _file(colours.convert("L"), "JPEG", progressive=True),
        "CMYK": lambda: _file(colours.convert("CMYK"), "JPEG"),
        "palette": lambda: _file(colours.quantize(16), "PNG"),
        "alpha": lambda: _file(Image.fromarray(gradient), "PNG"),
        "16-bit PNG": lambda: deep.write_png(values, None, None),
        "16-bit TIFF": lambda: deep.write_tiff([values], None),
    }
    if heic.is_installed():
        samples["HEIC"] = lambda: heic.SAMPLE
    if deep_avif.is_installed():
        encoding = {"depth": 10, "quality": 90, "subsampling": "4:2:0"}
        samples["10-bit AVIF"] = lambda: deep_avif.write(values, encoding, AVIF_SPEED)
    several = {"save_all": True, "append_images": [colours.rotate(90)]}
    for form in BY_NAME:
        samples[form] = partial(_file, colours, form)
        if form in WITH_FRAMES:
            samples[f"frames of {form}"] = partial(_file, colours, form, **several)
    return samples


def _file(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def _packed_result(
    result: Anonymized, stopwatch: Stopwatch, tally: Tally, labels: Sequence[str]
) -> Result:
    return Result(
        size=None if result.content is None else len(result.content),
        format=result.format,
        width=result.width,
        height=result.height,
        faces=Faces.of(result.detections, labels),
        verdict=result.checked.verdict,
        added=Faces.of(result.checked.added, labels),
        remaining=Faces.of(result.checked.remaining, labels),
        reason=result.reason,
        notes=list(result.notes),
        seconds=cast(Any, stopwatch.seconds),
        detected=tally.detected,
        near=tally.near,
    )


def _failure(error: Exception) -> Failure | Bug:
    """Return what the worker is told of `error`."""
    for kind in type(error).__mro__:
        if kind.__name__ in ERRORS:
            return Failure(kind.__name__, str(error)[:MAX_ERROR_LENGTH])
    steps = traceback.extract_tb(error.__traceback__, MAX_RAISED_AT)
    return Bug(
        type(error).__name__,
        str(without_data(error))[:MAX_ERROR_LENGTH],
        [f"{step.filename}:{step.lineno} {step.name}"[:500] for step in steps],
    )
