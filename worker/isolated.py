"""The anonymizer of a worker: pictures in processes of their own, the model in this one."""

import time
from collections.abc import Sequence

import structlog

from tasks.errors import Busy, ImageTooLarge, PictureCrashed, PictureProcessLost
from tasks.messages import AnonymizeOptions
from worker import metrics
from worker.anonymizer import (
    Anonymized,
    Anonymizer,
    FileAnonymizer,
    OnStage,
    Stopwatch,
    ignore_stage,
)
from worker.detection.tiled import Infer
from worker.images.formats import CONTENT_TYPES
from worker.images.viewing import View
from worker.process.channel import Handling, Work
from worker.process.pool import Finished, PicturePool, PictureProcess, ProcessDied
from worker.residual_check import Checked
from worker.treatments import AS_CONFIGURED

log = structlog.get_logger("veil")


class IsolatedAnonymizer(FileAnonymizer):
    """A FileAnonymizer that works on each picture in a picture process.

    Only the canvases come here, to the detector's model. Threads share one anonymizer.
    """

    def __init__(
        self,
        local: Anonymizer,
        pool: PicturePool,
        infer: Sequence[Infer],
        seconds: float,
        handling: Handling | None = None,
    ) -> None:
        """Work in the processes of `pool`, which are configured as `local` is.

        `infer` has the function that runs each model. `seconds` is the limit for both tries of a
        picture. With a `handling`, the pool has other anonymizers, too, and this is the handling of
        `local`.
        """
        self._handling = handling
        self.limits = local.limits
        self.hold_without_faces = local.hold_without_faces
        self.verify = local.verify
        self.treatments = local.treatments
        self.recipe = local.recipe
        self.made_with = local.made_with
        self._local = local
        self._pool = pool
        self._infer = infer
        self._seconds = seconds

    def anonymize(
        self, content: bytes, stopwatch: Stopwatch, options: AnonymizeOptions = AS_CONFIGURED
    ) -> Anonymized:
        """Return the anonymized file of the picture file `content`.

        Raises the errors of Anonymizer.anonymize; PictureCrashed if two processes die of the
        picture; PictureProcessLost if they are killed from outside, or other pictures leave no time
        for a second try alone; and Busy if no process is free.
        """
        stopwatch.on_stage("decoding")  # It may refuse the picture.
        work = Work(len(content), options, detect_only=False, handling=self._handling)
        finished = self._finished(content, work, stopwatch.on_stage)
        for stage, seconds in finished.result.seconds.items():
            stopwatch.seconds[stage] = seconds
        return _anonymized(finished, self.treatments.labels)

    def detect_file(self, content: bytes, options: AnonymizeOptions = AS_CONFIGURED) -> Anonymized:
        """Return the faces that `anonymize` would hide; `content` is None. Raises its errors."""
        work = Work(len(content), options, detect_only=True, handling=self._handling)
        return _anonymized(self._finished(content, work, ignore_stage), self.treatments.labels)

    def view(self, content: bytes, view: View) -> Anonymized:
        """Return a JPEG of the picture for people, with nothing hidden. Raises its errors."""
        work = Work(len(content), AS_CONFIGURED, detect_only=False, view=view)
        return _anonymized(self._finished(content, work, ignore_stage), self.treatments.labels)

    def without_weaker(self, options: AnonymizeOptions) -> AnonymizeOptions:
        """Return the part of `options` that hides at least as much as the configured style."""
        return self._local.without_weaker(options)

    def _finished(self, content: bytes, work: Work, on_stage: OnStage) -> Finished:
        """Return what a picture process makes of `content`, with a second try if it dies.

        The second try is in a new process, and no other picture is worked on meanwhile if others
        may be to blame.
        """
        if work.size > self.limits.max_bytes:
            raise ImageTooLarge(
                f"the file has {work.size:,} bytes, the limit is {self.limits.max_bytes:,}: "
                "raise VEIL_MAX_BYTES"
            )
        deadline = time.monotonic() + self._seconds

        def run(process: PictureProcess) -> Finished:
            return process.work(content, work, self._infer, on_stage, deadline)

        try:
            with self._pool.borrowed() as process:
                finished = run(process)
        except ProcessDied as first:
            metrics.PROCESS_DEATHS.inc()
            log.warning("picture process died", reason=str(first), action="one more try")
            try:
                with self._pool.borrowed(is_new=True, alone=first.is_doubtful) as process:
                    finished = run(process)
            except ProcessDied as second:
                metrics.PROCESS_DEATHS.inc()
                raise _given_up(first, second) from None
            except Busy as busy:
                if not first.is_doubtful:
                    raise
                # As Busy it would be tried without limit, and end a process each time.
                raise PictureProcessLost(
                    f"the picture's process died: {first}; it can't be tried alone: {busy}"
                ) from None
        metrics.count_detections(finished.result.detected, finished.result.near)
        return finished


def _given_up(first: ProcessDied, second: ProcessDied) -> PictureCrashed | PictureProcessLost:
    """Return the error of a picture at which two processes died."""
    if second.is_foreign:
        return PictureProcessLost(f"the picture's process was killed twice: {first}; {second}")
    return PictureCrashed(f"two processes died of this picture: {first}; {second}")


def _anonymized(finished: Finished, labels: Sequence[str]) -> Anonymized:
    result = finished.result
    added, remaining = result.added.detections(labels), result.remaining.detections(labels)
    return Anonymized(
        finished.output,
        CONTENT_TYPES[result.format],
        result.format,
        result.width,
        result.height,
        result.faces.detections(labels),
        Checked(result.verdict, added, remaining),
        result.reason,
        tuple(result.notes),
    )
