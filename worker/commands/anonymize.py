"""``veil anonymize``: the anonymizer on local files and folders, without a queue."""

import json
import os
import secrets
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from rich.console import Console

from tasks.errors import (
    EmptyObject,
    ImageTooLarge,
    OutputFailed,
    UnreadableImage,
    VeilError,
    without_data,
)
from tasks.messages import AnonymizeOptions
from worker import images
from worker.anonymizer import AS_CONFIGURED, Anonymizer, Stopwatch
from worker.bootstrap import build_anonymizer
from worker.commands.progress import progress_bar
from worker.settings import WorkerSettings

# A file in a folder that neither is a picture nor is named like one is passed over, and counted.
PICTURE_SUFFIXES = {
    ".apng", ".arw", ".avif", ".bmp", ".cr2", ".cr3", ".dng", ".gif", ".heic", ".heif", ".ico", ".j2k", ".jfif", ".jp2",
    ".jpe", ".jpeg", ".jpg", ".jxl", ".mpo", ".nef", ".orf", ".png", ".psd", ".raf", ".rw2", ".tif", ".tiff", ".webp",
}  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What came of one file: one line of ``--json``."""

    source: str
    output: str | None
    status: Literal["anonymized", "held", "failed", "ignored"]
    faces: int = 0
    boxes_xyxy: list[list[float]] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    reason: str | None = None
    found_by_check: int = 0
    error: str | None = None
    message: str | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Job:
    """One file, where its output goes, and whether it was named by the user or found in a
    folder.
    """

    source: Path
    output: Path
    named: bool


def run(
    settings: WorkerSettings,
    paths: list[Path],
    output: Path,
    as_json: bool,
    options: AnonymizeOptions = AS_CONFIGURED,
) -> int:
    """Anonymize `paths` into the folder `output`, which is made; the number of files that
    failed.
    """
    jobs = list(find_jobs(paths, output))
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputFailed(f"{output} can't be made: {error.strerror}") from None
    anonymizer = build_anonymizer(settings)
    counts: Counter[str] = Counter()
    with (
        progress_bar("anonymized", total=len(jobs)) as bar,
        ThreadPoolExecutor(settings.concurrency) as pool,
    ):
        futures = [
            pool.submit(anonymize_file, anonymizer, job, settings.max_bytes, options)
            for job in jobs
        ]
        try:
            for future in as_completed(futures):
                outcome = future.result()
                counts[outcome.status] += 1
                _print(outcome, as_json)
                bar.advance()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    summary = (
        ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
        or "no files found"
    )
    Console(stderr=True).print(summary, highlight=False)
    return counts["failed"]


def find_jobs(paths: list[Path], output: Path) -> Iterator[Job]:
    """A job for each file. Raises OutputFailed where an output would replace a source or another
    output.
    """
    taken: dict[Path, Path] = {}
    files = list(_files(paths, output.resolve()))
    sources = {source.resolve() for source, _, _ in files}
    for source, relative, named in files:
        target = output / relative
        if target.resolve() in sources:
            raise OutputFailed(
                f"{target} would be replaced by the output of {source}: choose another --output"
            )
        if target in taken:
            raise OutputFailed(
                f"{taken[target]} and {source} would both become {target}: run them apart"
            )
        taken[target] = source
        yield Job(source, target, named)


def _files(paths: list[Path], output: Path) -> Iterator[tuple[Path, Path, bool]]:
    for path in paths:
        if not path.is_dir():
            yield path, Path(path.name), True
            continue
        for folder, folders, names in os.walk(path, onerror=_refuse):
            folders[:] = sorted(
                n
                for n in folders
                if not n.startswith(".") and (Path(folder) / n).resolve() != output
            )
            for name in sorted(names):
                if not name.startswith(".") and not _is_special(Path(folder) / name):
                    yield Path(folder) / name, (Path(folder) / name).relative_to(path), False


def _refuse(error: OSError) -> None:
    raise OutputFailed(f"{error.filename} can't be read ({error.strerror}): nothing was done")


def _is_special(path: Path) -> bool:
    """Whether `path` is a pipe, a socket or a device, which would be waited for; a broken link is
    not.
    """
    return path.exists() and not path.is_file()


def anonymize_file(
    anonymizer: Anonymizer, job: Job, max_bytes: int, options: AnonymizeOptions = AS_CONFIGURED
) -> Outcome:
    """Anonymize one file. Every error becomes an outcome: one bad file never ends the run."""
    started = time.perf_counter()
    source, content = str(job.source), b""
    try:
        size = job.source.stat().st_size
        if size > max_bytes:
            raise ImageTooLarge(
                f"the file has {size:,} bytes, the limit is {max_bytes:,}: raise VEIL_MAX_BYTES"
            )
        content = job.source.read_bytes()
        result = anonymizer.anonymize(content, Stopwatch(), options)
        if result.content is not None:
            write_atomically(job.output, result.content)
    except Exception as error:
        picture = (
            job.named
            or job.source.suffix.lower() in PICTURE_SUFFIXES
            or images.is_recognised(content)
        )
        ignored = isinstance(error, UnreadableImage | EmptyObject) and not picture
        # What is not a VeilError is a bug of ours or of a library: named, and the run goes on.
        message = (
            str(error)
            if isinstance(error, VeilError)
            else " ".join(str(without_data(error)).split())
        )
        return Outcome(
            source,
            None,
            "ignored" if ignored else "failed",
            error=type(error).__name__,
            message=message,
            seconds=round(time.perf_counter() - started, 3),
        )
    return Outcome(
        source,
        None if result.content is None else str(job.output),
        "held" if result.content is None else "anonymized",
        faces=len(result.detections),
        boxes_xyxy=[
            [round(float(side), 1) for side in box] for box in result.detections.boxes_xyxy
        ],
        scores=[round(float(score), 4) for score in result.detections.scores],
        reason=result.reason,
        found_by_check=len(result.checked.added),
        seconds=round(time.perf_counter() - started, 3),
    )


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path`, all of it or nothing, making the folders above."""
    partial = path.with_name(f".{secrets.token_hex(8)}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_bytes(content)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise OutputFailed(f"{path} can't be written: {error.strerror}") from None


def _print(outcome: Outcome, as_json: bool) -> None:
    if as_json:
        print(json.dumps(asdict(outcome)), flush=True)
    elif outcome.status in ("failed", "ignored"):
        note = "ignored, " if outcome.status == "ignored" else ""
        print(f"{outcome.source}: {note}{outcome.error}: {outcome.message}", file=sys.stderr)
    elif outcome.reason is not None:
        print(f"{outcome.source}: {outcome.status}, {outcome.reason}", file=sys.stderr)
