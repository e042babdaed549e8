"""``veil anonymize``: the anonymizer on local files and folders, without a queue."""

import json
import os
import stat
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tasks.errors import (
    EmptyObject,
    OutputFailed,
    UnreadableImage,
    VeilError,
    without_data,
)
from tasks.messages import FACE, AnonymizeOptions
from tasks.output_names import with_heif_suffix
from worker import logs
from worker.commands import options
from worker.commands.command import CommandApp
from worker.commands.exit_codes import ExitCode
from worker.commands.interruption import Terminated
from worker.commands.progress import progress_bar
from worker.local_files import PICTURE_SUFFIXES, read_picture, write_atomically
from worker.object_counts import counted_objects
from worker.printing import (
    best_effort,
    counted,
    print_note,
    print_summary,
    print_system_error,
    printable,
    summarized,
)
from worker.settings import WorkerSettings

if TYPE_CHECKING:
    from worker.anonymizer import Anonymized, FileAnonymizer

app = CommandApp()

# Files whose read could block for ever.
SPECIAL_KINDS = {
    stat.S_IFIFO: "pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}
STOP_SECONDS = 5.0  # after Ctrl-C or SIGTERM, for the files that were begun


@dataclass(frozen=True)
class Outcome:
    """The outcome of one file, and its line of ``--json``.

    `width` and `height` are those of the upright picture, in pixels; None if it failed. Boxes are
    x1 y1 x2 y2 in its pixels, and each has a score and a label. `faces` counts those with the label
    FACE. `seconds` is the time until the output was written, with the wait for a picture process;
    None if the file failed. `older_output` is the path of a file in the place of an output that was
    not written, None if there is no such file.
    """

    source: str
    output: str | None
    status: Literal["anonymized", "held", "detected", "failed", "ignored"]
    width: int | None = None
    height: int | None = None
    faces: int = 0
    boxes_xyxy: list[list[float]] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    reason: str | None = None
    found_by_check: int = 0
    notes: list[str] = field(default_factory=list)
    error: str | None = None
    message: str | None = None
    seconds: float | None = None
    older_output: str | None = None


@dataclass(frozen=True)
class Job:
    """A file and the path of its output, which is None if its faces are only detected.

    `named` tells a file of the command line from one found in a folder.
    """

    source: Path
    output: Path | None
    named: bool


def _local_path(text: str | Path) -> Path:
    """Return the path `text`. Raise BadParameter for an empty text and for an address.

    A script passes an empty text where it has no value, and Path takes it for the current folder.
    """
    if not str(text):
        raise typer.BadParameter("an empty path: name a file or a folder")
    if "://" in str(text):
        raise typer.BadParameter(f"{text} is no local path: `veil enqueue` takes s3:// addresses")
    return Path(text)


@app.command(has_summary=True)
def anonymize(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH", parser=_local_path, help="Pictures and folders."),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            parser=_local_path,
            help="Folder for the outputs; created if missing.",
        ),
    ] = None,
    method: options.MethodName = None,
    region: options.Region = None,
    exempt: options.Exempt = None,
    extra: options.Extra = None,
    rules: options.Rules = None,
    detect_only: Annotated[
        bool, typer.Option("--detect-only", help="Print the faces, and write no outputs.")
    ] = False,
    as_json: options.Json = False,
) -> ExitCode:
    """Anonymize local pictures, without a queue.

    Folders are searched, and their structure is kept; hidden files and links to folders in them
    are left out. Exit with 1 if a picture failed, if there was none, or if an older file is in the
    place of an output that was not written.

    Example: veil anonymize holiday/ --detect-only --json

    Example: veil anonymize holiday/ --output clean/ --region full
    """
    _check_output(output, detect_only)
    others = {"--method": method, "--region": region, "--extra": extra or None}
    options.refuse_beside("--detect-only", detect_only, others)
    _require_paths(paths)
    settings = WorkerSettings.load()
    logs.configure_command(settings.log_format)
    request = options.anonymize_options(method, region, exempt, extra, rules)
    left_out: set[Path] = set()
    jobs = find_jobs(paths, output, settings.heif_suffix, left_out.add)
    if not jobs:
        print_note(f"no file in {', '.join(map(str, paths))}: nothing to anonymize")
        return ExitCode.FAILED
    from worker.bootstrap import build_file_anonymizer

    counts: Counter[str] = Counter()
    older_outputs = 0

    def summarize() -> None:
        _print_counts(counts, len(left_out), output, older_outputs)

    with _ended_in_spite_of_reads(), summarized(summarize):
        anonymizer = build_file_anonymizer(settings, pictures=len(jobs))
        if output is not None:
            _create_folder(output)
        with progress_bar("detected" if detect_only else "anonymized", total=len(jobs)) as bar:

            def report(outcome: Outcome) -> None:
                nonlocal older_outputs
                older_outputs += outcome.older_output is not None
                counts[outcome.status] += 1
                _print(outcome, as_json)
                bar.advance()

            _anonymize_files(anonymizer, jobs, settings, request, report)
    has_pictures = counts.total() > counts["ignored"]
    return ExitCode.ok_if(has_pictures and not counts["failed"] and not older_outputs)


def find_jobs(
    paths: list[Path],
    output: Path | None,
    heif_suffix: str = "",
    on_left_out: Callable[[Path], None] = lambda _: None,
) -> list[Job]:
    """Return a job for each file of `paths` and the folders in it.

    A file that is named twice has one job for each of its outputs. Without `output`, the jobs have
    no outputs. Those of HEIC have `heif_suffix` unless it is empty. `on_left_out` gets the path of
    each hidden file or folder, link to a folder, pipe and device in the folders.

    Raise OutputFailed where an output would replace a source or another output, and for a folder
    that can't be read.
    """
    jobs: dict[tuple[Path, Path | None], Job] = {}
    for source, relative, named in _files(paths, output and output.resolve(), on_left_out):
        target = output and output / with_heif_suffix(relative.as_posix(), heif_suffix)
        # The folder is resolved, but not the file: a link beside its file has an output of its own.
        place = source.parent.resolve() / source.name
        earlier = jobs.setdefault((place, target), Job(source, target, named))
        if named and not earlier.named:
            jobs[place, target] = replace(earlier, named=True)
    _refuse_replacements(jobs.values())
    return list(jobs.values())


def anonymize_file(
    anonymizer: "FileAnonymizer", job: Job, max_bytes: int, request: AnonymizeOptions | None = None
) -> Outcome:
    """Anonymize one file of at most `max_bytes`, or only detect its faces; return its outcome.

    Every error becomes an outcome, so one bad file does not end the run.
    """
    from worker.anonymizer import Stopwatch
    from worker.treatments import AS_CONFIGURED

    started = time.perf_counter()
    content = b""
    try:
        content = _read(job.source, max_bytes)
        if job.output is None:
            result = anonymizer.detect_file(content, request or AS_CONFIGURED)
        else:
            result = anonymizer.anonymize(content, Stopwatch(), request or AS_CONFIGURED)
        if job.output is not None and result.content is not None:
            write_atomically(job.output, result.content)
        seconds = round(time.perf_counter() - started, 3)
        outcome = replace(_success(job, result), seconds=seconds)
    except Exception as error:
        outcome = _failure(job, content, error)
    if outcome.output is not None or job.output is None:
        return outcome
    # Path.is_file would raise the error of a folder that can't be read.
    if os.path.isfile(job.output):  # noqa: PTH113
        outcome = replace(outcome, older_output=str(job.output))
    return outcome


def _refuse_replacements(jobs: Collection[Job]) -> None:
    """Raise OutputFailed if the output of a job would replace a source or another output."""
    sources = {job.source.resolve() for job in jobs}
    source_of: dict[Path, Path] = {}
    for source, target in ((job.source, job.output) for job in jobs):
        if target is None:
            continue
        if target.resolve() in sources:
            raise OutputFailed(
                f"{target} would be replaced by the output of {source}: choose another --output"
            )
        if target in source_of:
            raise OutputFailed(
                f"{source_of[target]} and {source} would both become {target}: run them apart"
            )
        source_of[target] = source


def _check_output(output: Path | None, detect_only: bool) -> None:
    """Raise BadParameter unless there is either a folder for outputs or no output."""
    if output is None and not detect_only:
        raise typer.BadParameter("give a folder, or --detect-only", param_hint="--output")
    if output is not None and detect_only:
        raise typer.BadParameter("--detect-only writes no outputs", param_hint="--output")
    if output is not None and output.is_file():
        raise typer.BadParameter(f"{output} is a file", param_hint="--output")
    if output is not None and not output.exists() and output.suffix.lower() in PICTURE_SUFFIXES:
        raise typer.BadParameter(
            f"{output} would be a folder with the outputs: name it without {output.suffix}",
            param_hint="--output",
        )


def _require_paths(paths: list[Path]) -> None:
    """Raise BadParameter for a path that names no file and no folder, or that can't be read."""
    for path in paths:
        if defect := _defect(path):
            raise typer.BadParameter(defect, param_hint="PATH")


def _defect(path: Path) -> str | None:
    """Return why `path` is neither a file nor a folder; None if it is one of them."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return _absence(path)
    except OSError as error:
        return f"{path} can't be read: {error.strerror}"
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return None
    kind = SPECIAL_KINDS.get(stat.S_IFMT(mode), "special file")
    return f"{path} is a {kind}: name a file or a folder"


def _absence(path: Path) -> str:
    """Return why there is no file at `path`: a dangling link is told from a missing file."""
    if path.is_symlink():
        return f"{path} is a link to {path.readlink()}, which does not exist"
    return f"{path} does not exist"


def _files(
    paths: list[Path], output: Path | None, on_left_out: Callable[[Path], None]
) -> Iterator[tuple[Path, Path, bool]]:
    """Yield each file, its path below the output folder, and whether the user named it."""
    for path in paths:
        if not path.is_dir():
            yield path, Path(path.name), True
            continue
        for file in _files_in(path, output, on_left_out):
            yield file, file.relative_to(path), False


def _files_in(
    root: Path, output: Path | None, on_left_out: Callable[[Path], None]
) -> Iterator[Path]:
    """Yield the files below `root` in order, without hidden ones and those of earlier outputs."""

    def is_searched(folder: Path) -> bool:
        if folder.resolve() == output:
            return False
        if folder.name.startswith(".") or folder.is_symlink():
            on_left_out(folder)
            return False
        return True

    for path, folder_names, file_names in os.walk(root, onerror=_refuse):
        folder = Path(path)
        # os.walk descends into the folders that remain in this list.
        folder_names[:] = sorted(name for name in folder_names if is_searched(folder / name))
        for name in sorted(file_names):
            if name.startswith(".") or _is_special(folder / name):
                on_left_out(folder / name)
            else:
                yield folder / name


def _refuse(error: OSError) -> None:
    raise OutputFailed(f"{error.filename} can't be read ({error.strerror}): nothing was done")


def _is_special(path: Path) -> bool:
    """Return whether `path` is a pipe, a socket or a device, whose read could block for ever.

    A broken link is not special: it is a file that fails.
    """
    return path.exists() and not path.is_file()


def _create_folder(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputFailed(f"{output} can't be made: {error.strerror}") from None


def _anonymize_files(
    anonymizer: "FileAnonymizer",
    jobs: list[Job],
    settings: WorkerSettings,
    request: AnonymizeOptions,
    report: Callable[[Outcome], None],
) -> None:
    """Anonymize all files in threads, and report each outcome as soon as it is known.

    Ctrl-C, or an error of `report`, cancels the files that were not begun, and waits STOP_SECONDS
    for the others: the read of one may never end.
    """
    reported = set()
    pool = ThreadPoolExecutor(settings.pictures_in_flight())
    limit = settings.max_bytes
    futures = [pool.submit(anonymize_file, anonymizer, job, limit, request) for job in jobs]
    try:
        for future in as_completed(futures):
            reported.add(future)
            report(future.result())
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        begun = {future for future in futures if not future.cancelled()}
        for future in wait(begun - reported, STOP_SECONDS).done:
            with best_effort():
                report(future.result())
        raise


@contextmanager
def _ended_in_spite_of_reads() -> Iterator[None]:
    """End the process once Ctrl-C, SIGTERM or an error of its output has ended the block.

    Python itself would wait for the threads, and one may hang in the read of a file.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        with best_effort():
            sys.stdout.flush()
        is_terminated = isinstance(error, Terminated)
        os._exit(ExitCode.TERMINATED if is_terminated else ExitCode.INTERRUPTED)
    except OSError as error:
        print_system_error(error)
        os._exit(ExitCode.FAILED)


def _read(path: Path, max_bytes: int) -> bytes:
    if not path.exists():
        raise FileNotFoundError(_absence(path))
    return read_picture(path, max_bytes)


def _success(job: Job, result: "Anonymized") -> Outcome:
    status: Literal["anonymized", "held", "detected"] = "anonymized"
    if job.output is None:
        status = "detected"
    elif result.content is None:
        status = "held"
    return Outcome(
        str(job.source),
        str(job.output) if status == "anonymized" else None,
        status,
        width=result.width,
        height=result.height,
        faces=result.detections.labels.tolist().count(FACE),
        boxes_xyxy=[_rounded(box) for box in result.detections.boxes_xyxy],
        scores=[round(float(score), 4) for score in result.detections.scores],
        labels=result.detections.labels.tolist(),
        reason=result.reason,
        found_by_check=len(result.checked.added),
        notes=list(result.notes),
    )


def _rounded(box: Iterable[float]) -> list[float]:
    return [round(float(side), 1) for side in box]


def _failure(job: Job, content: bytes, error: Exception) -> Outcome:
    """Return the outcome of a file that could not be anonymized; its bytes are `content`."""
    if isinstance(error, VeilError):
        message = str(error)
    else:  # a bug of Veil or of a library; its text may quote pixels
        message = " ".join(str(without_data(error)).split())
    is_ignored = isinstance(error, UnreadableImage | EmptyObject) and not _is_picture(job, content)
    return Outcome(
        str(job.source),
        None,
        "ignored" if is_ignored else "failed",
        error=type(error).__name__,
        message=message,
    )


def _is_picture(job: Job, content: bytes) -> bool:
    """Return whether a file that can't be decoded was meant as a picture, so that it counts as
    failed.
    """
    from worker import images

    has_suffix = job.source.suffix.lower() in PICTURE_SUFFIXES
    return job.named or has_suffix or images.is_recognised(content)


def _print(outcome: Outcome, as_json: bool) -> None:
    source = printable(outcome.source)
    if as_json:
        print(json.dumps(asdict(outcome)), flush=True)
    elif outcome.status in ("failed", "ignored"):
        note = "ignored, " if outcome.status == "ignored" else ""
        text = f"{source}: {note}{outcome.error}: {printable(outcome.message or '')}"
        print(text, file=sys.stderr)
    elif outcome.status == "detected":
        size = f"{outcome.width} × {outcome.height} pixels"
        print(f"{source}: {printable(counted_objects(outcome.labels))}, {size}", flush=True)
    elif outcome.reason is not None:
        print(f"{source}: {outcome.status}, {outcome.reason}", file=sys.stderr)
    if outcome.older_output is not None and not as_json:
        older = printable(outcome.older_output)
        print(f"{source}: an older file is in its output's place: {older}", file=sys.stderr)


def _print_counts(
    counts: Counter[str], left_out: int, output: Path | None, older_outputs: int
) -> None:
    parts = [f"{count} {status}" for status, count in sorted(counts.items())]
    if left_out:
        parts.append(f"{left_out} left out (hidden, links to folders, pipes or devices)")
    text = ", ".join(parts) or "nothing yet"
    has_outputs = output is not None and counts["anonymized"]
    print_summary(printable(f"{text}; outputs in {output}" if has_outputs else text))
    if older_outputs:
        files = counted(older_outputs, "older file")
        print_summary(f"{files} in the place of an output: look before you publish {output}")
