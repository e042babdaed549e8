"""``veil receipt``: check outputs and sources against their receipts."""

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from tasks.addresses import PrefixUri
from tasks.bulk.annotations import FORMATS
from tasks.bulk.verify import THREADS, Audit, Compare, Disposal, FaceCheck, State, Verdict
from tasks.errors import NothingFound, OutputFailed, Permanent
from tasks.messages import FACE
from tasks.publishing import Publisher, Wanted
from tasks.routes import Route
from tasks.storage.s3 import ObjectStore
from worker.commands import waiting
from worker.commands.command import CommandApp
from worker.commands.exit_codes import ExitCode
from worker.commands.options import (
    Json,
    Queue,
    Timeout,
    Wait,
    refuse_beside,
    refuse_without,
    seconds_to_wait,
)
from worker.commands.progress import progress_bar
from worker.commands.queue import celery_app
from worker.local_files import refuse_unwritable, replaced
from worker.printing import counted, print_note, print_summary, printable, summarized
from worker.settings import WorkerSettings

if TYPE_CHECKING:
    from tasks.bulk.boxes import Correction, Export
    from tasks.storage.receipts import Face, Receipt
    from worker.detection.faces import Detections
    from worker.treatments import Treatments

# Each thread reads an output, its receipt and its source; outputs and receipts are also listed.
CONNECTIONS_PER_THREAD = 3
LISTINGS = 2
MAX_FACES_SHOWN = 5  # on the line of an output
DELETIONS: dict[State, str] = {"source deleted": "deleted", "source due": "would be deleted"}
VISIBLE = "objects that a rule or an exempt area leaves visible"
OTHER_RECIPE = "another recipe than that of these settings, by which objects visible was decided"
AGAIN = "veil reconcile SOURCE --enqueue makes the output again"
# What to do about states, the worst first.
ADVICE: tuple[tuple[tuple[State, ...], str], ...] = (
    (
        ("original",),
        f"the clear source is in its output's place: remove it, and {AGAIN}, or choose another "
        "destination",
    ),
    (
        ("face exposed",),
        "veil enqueue SOURCE --extra X1,Y1,X2,Y2 hides an exposed face; repeat the options that "
        "the picture has already",
    ),
    (
        ("no receipt", "output differs", "metadata differs", "unreadable", "bad receipt"),
        f"remove the object if its source is still there, and {AGAIN}; if another program put it "
        "there, choose another destination",
    ),
    (("unsigned", "bad signature", "misplaced", "output gone", "source changed"), AGAIN),
    (("unknown key",), "add the key to VEIL_RECEIPT_KEY"),
    (("output unlike source",), "look at both; the source is kept"),
)
TWICE = "the file has it more than once: join its boxes"


def _known_format(name: str) -> str:
    if name not in FORMATS:
        raise typer.BadParameter(f"choose from {', '.join(FORMATS)}")
    return name


Addresses = Annotated[
    list[str],
    typer.Argument(metavar="s3://OUTPUT", help="Outputs, receipts, and prefixes."),
]
Source = Annotated[
    str | None,
    typer.Option(
        metavar="s3://SOURCE/PREFIX",
        help="Where the sources are, if `backfill --to` put the outputs elsewhere.",
    ),
]
Redetect = Annotated[
    bool,
    typer.Option(
        "--redetect",
        help="Also detect faces in each output, and report one that its receipt does not have.",
    ),
]
DeleteSource = Annotated[
    bool,
    typer.Option(
        "--delete-source",
        help="Delete the source of each output that matches its receipt, equals the source "
        "outside the hidden regions, and is not flagged.",
    ),
]
OlderThan = Annotated[
    float | None,
    typer.Option(metavar="DAYS", min=0, help="With --delete-source: keep younger sources."),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="With --delete-source: only report which would be deleted."),
]
YesDelete = Annotated[bool, typer.Option("--yes", help="Confirm that --delete-source is meant.")]
ExportedAddress = Annotated[
    str, typer.Argument(metavar="s3://OUTPUT", help="An output, or a prefix of outputs.")
]
BoxFormat = Annotated[
    str,
    typer.Option("--format", metavar="FORMAT", callback=_known_format, help="coco, cvat or jsonl."),
]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="FILE", help="File instead of the output.")
]
BoxFile = Annotated[Path, typer.Argument(metavar="FILE", help="COCO, CVAT or JSON lines.")]
Outputs = Annotated[
    str | None,
    typer.Option(
        metavar="s3://OUTPUT/PREFIX",
        help="Where the outputs are whose names in the file are no addresses.",
    ),
]
ImportDryRun = Annotated[
    bool, typer.Option("--dry-run", help="Only print what would be requested.")
]
ShowFaces = Annotated[
    bool,
    typer.Option("--show-faces", help="Also request the pictures that would show a face."),
]

app = CommandApp(
    "Check outputs against their receipts.\n\nExample: veil receipt verify s3://camera-clean/2026"
)


@app.command(has_summary=True)
def verify(
    addresses: Addresses,
    source: Source = None,
    redetect: Redetect = False,
    delete_source: DeleteSource = False,
    older_than: OlderThan = None,
    dry_run: DryRun = False,
    yes: YesDelete = False,
    as_json: Json = False,
) -> ExitCode:
    """Compare outputs and sources with their receipts, and print the result of each on a line.

    Without --yes, --delete-source only counts the sources that it would delete. Exit with 1 if an
    output differs from its receipt, or sources would be deleted and --yes is missing.

    Example: veil receipt verify s3://camera-clean/2026 --redetect
    """
    refuse_without(
        "--delete-source",
        delete_source,
        {"--dry-run": dry_run, "--older-than": older_than, "--yes": yes},
    )
    refuse_beside("--dry-run", dry_run, {"--yes": yes})
    settings = WorkerSettings.load()
    audits: dict[Route | None, Audit] = {}  # None for the routes without settings of their own

    def audit_at(address: str) -> Audit:
        route = settings.parsed_routes().of_destination(PrefixUri.parse(address))
        route = route if route and route.settings else None
        if route not in audits:
            own = settings.of_route(route) if route else settings
            disposal = None
            if delete_source:
                age = timedelta(days=older_than or 0)
                disposal = Disposal(age, not yes, comparison(own), _recipe(own))
            audits[route] = _audit(own, redetect, disposal)
        return audits[route]

    tally = _Tally()
    started = time.monotonic()

    def summarize() -> None:
        tally.print(time.monotonic() - started, as_json)

    with summarized(summarize), progress_bar("verified") as bar:
        for address in addresses:
            for verdict in audit_at(address).verdicts(address, source):
                tally.add(verdict)
                _print(verdict, as_json)
                bar.advance()
    is_confirmed = dry_run or not tally.states["source due"]
    if not is_confirmed:
        print_note("nothing was deleted: add --yes to delete these sources")
    return ExitCode.ok_if(tally.checked == tally.good and is_confirmed)


@app.command(has_summary=True)
def export(
    address: ExportedAddress,
    form: BoxFormat = "jsonl",
    output: Output = None,
) -> ExitCode:
    """Write the boxes of outputs for annotation tools, from their receipts alone.

    The name of a picture in the file is the address of its output. Pictures without an output, such
    as held ones, are left out. Exit with 1 if no picture is left; the file stays as it was then.

    Example: veil receipt export s3://camera-clean/2026 --format cvat -o boxes.xml
    """
    from tasks.bulk import boxes
    from tasks.bulk.annotations import WRITERS

    settings = WorkerSettings.load()
    store = ObjectStore.connect(settings, connections=boxes.THREADS + LISTINGS)
    exported = boxes.Export(store, settings.parsed_routes(), settings.receipt_keys())
    count = 0

    def summarize() -> None:
        print_summary(", ".join([f"{counted(count, 'picture')} exported", *_left_out(exported)]))

    with summarized(summarize), _opened(output) as file, progress_bar("exported") as bar:
        writer = WRITERS[form](file)
        for picture in exported.pictures(address):
            writer.add(picture)
            bar.advance()
            count += 1
        if not count:
            raise NothingFound(_nothing(address, exported))
        writer.close()
    return ExitCode.OK


@app.command("import", has_summary=True)
def import_boxes(
    file: BoxFile,
    outputs: Outputs = None,
    show_faces: ShowFaces = False,
    dry_run: ImportDryRun = False,
    queue: Queue = "uploads",
    wait: Wait = False,
    timeout: Timeout = None,
    as_json: Json = False,
) -> ExitCode:
    """Request pictures again as their corrected boxes say.

    The file is one that `export` wrote, or in one of its formats, corrected with an annotation
    tool. A new or changed shape becomes an extra area. A face whose box is missing in a picture of
    the file stays clear, unless a new shape is near. Such a picture is only requested with
    --show-faces. Exit with 1 if a picture isn't requested and, with --wait, if one failed, has no
    result, or is held while an older output stays.

    Example: veil receipt import boxes.xml --dry-run
    """
    from tasks.bulk import annotations, boxes

    refuse_beside("--dry-run", dry_run, {"--wait": wait})
    wait_seconds = seconds_to_wait(wait, timeout)
    pictures = annotations.read(file)
    boxes.require_pictures(pictures)
    if outputs is not None:
        pictures = boxes.placed(pictures, outputs)
    counts = Counter(picture.name for picture in pictures)
    settings = WorkerSettings.load()
    routes, keys = settings.parsed_routes(), settings.receipt_keys()
    corrections = boxes.Corrections(ObjectStore.connect(settings), routes, keys)
    wanted = []
    problems = showing = outdated = 0
    for picture in pictures:
        found = corrections.of(picture)
        if found.wanted is not None and counts[picture.name] > 1:
            # The output of the last request would take the place of the others.
            found = boxes.Correction(picture.name, problem=TWICE)
        _print_correction(found, as_json)
        problems += found.problem is not None
        showing += bool(found.removed)
        outdated += found.outdated
        if found.wanted is not None and (show_faces or not found.removed):
            wanted.append(found.wanted)
    left_out = 0 if show_faces else showing
    waited_for: dict[str, Wanted] = {}
    if wanted and not dry_run:
        with closing(Publisher(celery_app())) as publisher:
            task_ids = publisher.publish(wanted, queue, keep_results=wait)
        waited_for = dict(zip(task_ids, wanted, strict=True))
    done = "would be enqueued" if dry_run else "enqueued"
    unchanged = len(pictures) - len(wanted) - left_out - problems
    print_summary(f"{len(wanted):,} {done}, {unchanged:,} unchanged, {problems:,} refused")
    if outdated:
        print_summary(f"{counted(outdated, 'unchanged output')} made again since the export")
    if left_out or (dry_run and showing):
        advice = "" if show_faces else ": look at each, and give --show-faces"
        print_summary(f"{counted(showing, 'picture')} would show a face{advice}")
    is_complete = not problems and (dry_run or not left_out)
    if wait_seconds is None or not waited_for:
        return ExitCode.ok_if(is_complete)
    endings = waiting.wait(celery_app(), waited_for, queue, wait_seconds, as_json)
    return ExitCode.ok_if(is_complete and endings.are_good)


@contextmanager
def _opened(output: Path | None) -> Iterator[TextIO]:
    """Open the file to write, or standard output. Raise OutputFailed.

    The file is replaced at the end alone: an export that fails leaves the corrected boxes of an
    earlier one.
    """
    if output is None:
        yield sys.stdout
        return
    target = output.resolve() if output.is_file() else output
    refuse_unwritable(target)
    try:
        with replaced(target) as partial, partial.open("w", encoding="utf-8") as file:
            yield file
    except OSError as error:
        raise OutputFailed(f"{output} can't be written: {error.strerror}") from None


def _nothing(address: str, exported: "Export") -> str:
    """Return why no picture at `address` was exported."""
    if left_out := list(_left_out(exported)):
        return f"no output with its receipt at {address}: {', '.join(left_out)}"
    return f"no output and no receipt at {address}: correct the address"


def _left_out(exported: "Export") -> Iterator[str]:
    """Yield how many pictures were left out, for each reason."""
    if exported.without_output:
        yield f"{exported.without_output:,} without an output left out"
    if exported.without_receipt:
        yield f"{exported.without_receipt:,} without a receipt left out"
    if exported.of_unknown_key:
        count = f"{exported.of_unknown_key:,} signed by an unknown key left out"
        yield f"{count} (add the key to VEIL_RECEIPT_KEY)"


def _print_correction(found: "Correction", as_json: bool) -> None:
    if as_json:
        line = {
            "output": found.output,
            "extra": found.added,
            "exempt": found.removed,
            "problem": found.problem,
            "outdated": found.outdated,
        }
        print(json.dumps(line), flush=True)
    elif found.problem is not None:
        print_note(f"{printable(found.output)}: {printable(found.problem)}")
    elif found.wanted is not None:
        parts = [f"--extra {','.join(map(str, area))}" for area in found.added]
        parts += [f"--exempt {','.join(map(str, area))}" for area in found.removed]
        print(f"{printable(found.output)}  {' '.join(parts)}")


def comparison(settings: WorkerSettings) -> Compare:
    """Return the comparison of an output with its source, for workers with these settings.

    It is true if both are equal outside the regions that such workers hide.
    """
    import cv2

    from worker import images, likeness

    # OpenCV would report each file that it can't decode.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    treatments = _treatments(settings)
    as_configured = settings.kept_metadata().without_metadata()

    def compare(output: bytes, source: bytes, receipt: "Receipt") -> bool:
        before = images.decode(source, settings.max_pixels, settings.max_frames, as_configured)
        after = images.decode(output, settings.max_pixels, settings.max_frames)
        if not (likeness.is_confirmed(source, before) and likeness.is_confirmed(output, after)):
            return False
        smallest_scale = min(settings.pass_settings().scales)
        parts = treatments.parts(_hidden_objects(receipt), receipt.asked)
        hidden = likeness.hidden_by(parts, receipt.asked.extra, before, smallest_scale)
        return likeness.is_alike(before, after, hidden)

    return compare


def _audit(settings: WorkerSettings, redetect: bool, disposal: Disposal | None) -> Audit:
    # A thread that decodes pictures needs memory, so there are no more of them than in a worker.
    threads = settings.pictures_in_flight() if redetect or disposal else THREADS
    return Audit(
        ObjectStore.connect(settings, connections=CONNECTIONS_PER_THREAD * threads + LISTINGS),
        settings.parsed_routes(),
        settings.fetch_seconds,
        settings.receipt_keys(),
        face_check=_redetection(settings) if redetect else None,
        disposal=disposal,
        threads=threads,
        leaves_visible=_treatments(settings).leaves_visible,
    )


def _redetection(settings: WorkerSettings) -> FaceCheck:
    """Return the check of an output for faces that it shows, as the residual check judges them.

    Detection is that of a worker with these settings.
    """
    from worker import images, logs, residual_check
    from worker.bootstrap import build_anonymizer
    from worker.reports import listed

    logs.configure_command(settings.log_format)
    anonymizer = build_anonymizer(settings)
    decode = partial(images.decode, max_pixels=settings.max_pixels, max_frames=settings.max_frames)

    def exposed_faces(content: bytes, source: bytes | None, receipt: "Receipt") -> list["Face"]:
        picture, original = decode(content), None
        if source is not None:
            with suppress(Permanent):  # A source that can't be decoded can't be compared.
                original = decode(source)
        shown = residual_check.exposed(
            picture,
            original,
            _hidden_objects(receipt),
            anonymizer.detect_frames,
            anonymizer.treatments,
            receipt.asked,
            anonymizer.least_check_score,
        )
        return [face for faces in shown for face in listed(faces)]

    return exposed_faces


def _recipe(settings: WorkerSettings) -> str:
    """Return the recipe of workers with these settings."""
    from worker import logs
    from worker.bootstrap import build_anonymizer

    logs.configure_command(settings.log_format)
    return build_anonymizer(settings).recipe


def _treatments(settings: WorkerSettings) -> "Treatments":
    """Return the treatments of workers with these settings."""
    from worker.bootstrap import mask_style
    from worker.searches import rules_of_treatment
    from worker.treatments import Treatments

    return Treatments(mask_style(settings), rules=rules_of_treatment(settings))


def _hidden_objects(receipt: "Receipt") -> "Detections":
    """Return the objects of the receipt, in pixels."""
    import numpy as np

    from worker.detection.faces import Detections

    boxes = np.array([face["box_xyxy"] for face in receipt.faces], np.float32).reshape(-1, 4)
    scores = np.array([face["score"] for face in receipt.faces], np.float32)
    labels = np.array(receipt.labels, np.str_)
    return Detections(boxes, scores, labelled=labels if set(receipt.labels) - {FACE} else None)


def _print(verdict: Verdict, as_json: bool) -> None:
    if not as_json:
        parts = [printable(str(verdict.output)), *_face_texts(verdict.exposed)]
        print(f"{', '.join(verdict.states):<16} {'  '.join(parts)}")
        return
    line = {
        "output": str(verdict.output),
        "receipt": None if verdict.receipt is None else str(verdict.receipt),
        "states": list(verdict.states),
        "good": verdict.is_good,
        "exposed": list(verdict.exposed),
        "exempt": list(verdict.exempt),
    }
    print(json.dumps(line), flush=True)


def _face_texts(faces: Sequence["Face"]) -> Iterator[str]:
    """Yield the boxes as --extra takes them, with their scores, of MAX_FACES_SHOWN faces."""
    strongest_first = sorted(faces, key=lambda face: -face["score"])
    for face in strongest_first[:MAX_FACES_SHOWN]:
        yield f"{','.join(map(str, face['box_xyxy']))} (score {face['score']:.2f})"
    if len(faces) > MAX_FACES_SHOWN:
        yield f"and {len(faces) - MAX_FACES_SHOWN:,} more (--json)"


@dataclass
class _Tally:
    """The counts of verdicts.

    Each is counted in `first`, by its first state, and once in `states` for each state. Of those
    whose source is or would be deleted, `with_visible` have the state ``objects visible``, and
    `of_other_recipe` have ``other recipe``.
    """

    checked: int = 0
    good: int = 0
    with_visible: int = 0
    of_other_recipe: int = 0
    first: Counter[State] = field(default_factory=Counter)
    states: Counter[State] = field(default_factory=Counter)

    def add(self, verdict: Verdict) -> None:
        self.checked += 1
        self.good += verdict.is_good
        self.first[verdict.states[0]] += 1
        self.states.update(verdict.states)
        if not DELETIONS.keys().isdisjoint(verdict.states):
            self.with_visible += "objects visible" in verdict.states
            self.of_other_recipe += "other recipe" in verdict.states

    def print(self, seconds: float, as_json: bool) -> None:
        """Print the summary, and for people what to do about each kind of fault."""
        if as_json:
            summary = {
                "checked": self.checked,
                "good": self.good,
                "states": dict(self.states),
                "seconds": round(seconds, 3),
            }
            print(json.dumps({"summary": summary}))
            return
        parts = f": {_counts_text(self.first)}" if self.checked else ""
        print_summary(f"{self.checked:,} verified{parts} in {seconds:.1f} s")
        further = self.states - self.first
        if also := Counter({s: count for s, count in further.items() if s not in DELETIONS}):
            print_summary(f"also: {_counts_text(also)}")
        for state, done in DELETIONS.items():
            if count := self.states[state]:
                line = f"{counted(count, 'source')} {done}"
                if self.with_visible:
                    line += f", {self.with_visible:,} of them of outputs with {VISIBLE}"
                print_summary(line)
        if self.of_other_recipe:
            print_summary(f"{self.of_other_recipe:,} of them of outputs of {OTHER_RECIPE}")
        for states, advice in ADVICE:
            if present := [state for state in states if self.states[state]]:
                print_summary(f"{', '.join(present)}: {advice}")


def _counts_text(counts: Counter[State]) -> str:
    """Return the counts of states, originals first, then the most frequent state first."""
    ordered = sorted(counts.most_common(), key=lambda pair: pair[0] != "original")
    return ", ".join(f"{count:,} {state}" for state, count in ordered)
