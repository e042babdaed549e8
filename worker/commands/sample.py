"""``veil sample``: the rate of misses in an archive, from a random sample that people review."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tasks.messages import AnonymizeOptions
from tasks.records import samples
from tasks.redis.errors import connected
from worker.commands.command import CommandApp
from worker.commands.exit_codes import ExitCode
from worker.commands.options import Json
from worker.commands.queue import celery_app
from worker.local_files import refuse_unwritable
from worker.printing import counted, print_note, print_summary, printable
from worker.settings import WorkerSettings

if TYPE_CHECKING:
    from tasks.records.samples import Mark, Sample
    from worker.sampling.acceptance import Acceptance
    from worker.sampling.intervals import Rate
    from worker.sampling.marked import Marked
    from worker.sampling.outputs import SampleRequest

Addresses = Annotated[
    list[str], typer.Argument(metavar="s3://OUTPUT/PREFIX", help="Where the outputs are.")
]
Pictures = Annotated[int, typer.Option(min=1, max=100_000, metavar="NUMBER", help="To draw.")]
Seed = Annotated[int, typer.Option(metavar="NUMBER", help="Another seed draws another sample.")]
Marks = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Marks of reviewers, instead of those made on the desk: COCO, CVAT or JSON lines.",
    ),
]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="FILE", help="Also write an HTML report.")
]
Training = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Write the sources with a miss and their objects there, for `veil train import`.",
    ),
]
Redo = Annotated[
    bool, typer.Option("--redo", help="Request the pictures with a miss again, with it hidden.")
]

INTERVAL = "two-sided 95 % interval"

app = CommandApp()


@app.command(has_summary=True)
def sample(
    addresses: Addresses,
    pictures: Pictures = 300,
    seed: Seed = 1,
    marks: Marks = None,
    output: Output = None,
    training: Training = None,
    redo: Redo = False,
    as_json: Json = False,
) -> ExitCode:
    """Measure the rate of misses in an archive.

    The first call draws a random sample of outputs and puts it on the review desk, which `veil
    review serve` opens. Reviewers mark each face that is still recognisable. The same call later
    prints the rates with their 95 % intervals. Exit with 1 until every picture is reviewed.

    Example: veil sample s3://camera-clean/2026 --pictures 300 --output report.html
    """
    from worker.sampling import report
    from worker.sampling.acceptance import accept
    from worker.sampling.outputs import SampleRequest

    if output is not None:
        refuse_unwritable(output)
    settings = WorkerSettings.load()
    request = SampleRequest(addresses, pictures, seed)
    found: Mapping[int, Mark]
    left_out = 0
    if marks is not None:
        drawn = _draw(settings, request)
        in_file = _marks_of(settings, drawn, marks)
        found, left_out = in_file.marks, in_file.others_exposed
    else:
        drawn, found = _on_desk(settings, request)
    result = accept(drawn, found)
    if output is not None:
        report.write(output, result)
    if training is not None:
        _export(settings, result, training)
    if redo:
        _redo(settings, result)
    if as_json:
        print(json.dumps({**result.to_json(), "exposed_left_out": left_out}))
    else:
        _print(result, marks is None)
    return ExitCode.ok_if(result.is_complete)


def _draw(settings: WorkerSettings, request: "SampleRequest") -> "Sample":
    """Return the sample of the present archive."""
    from tasks.storage.s3 import ObjectStore
    from worker.sampling import outputs

    store = ObjectStore.connect(settings)
    return outputs.draw(store, settings.parsed_routes(), settings.receipt_keys(), request)


def _on_desk(
    settings: WorkerSettings, request: "SampleRequest"
) -> tuple["Sample", "Mapping[int, Mark]"]:
    """Return the sample on the desk with its marks; draw it if it is not there yet."""
    redis = celery_app().backend.client
    if (known := _known(redis, request.name)) is not None:
        return known
    drawn = _draw(settings, request)
    # Another process may have drawn it meanwhile, and people may have marked its pictures.
    if (known := _known(redis, request.name)) is not None:
        return known
    with connected():
        samples.store(redis, drawn)
    return drawn, {}


def _known(redis: Any, name: str) -> tuple["Sample", "Mapping[int, Mark]"] | None:
    """Return the sample `name` on the desk with its marks; None if it is not there."""
    with connected():
        found = samples.find(redis, name)
        return None if found is None else (found, samples.marks(redis, name))


def _marks_of(settings: WorkerSettings, drawn: "Sample", path: Path) -> "Marked":
    """Return the marks in a file, and print what is odd in it."""
    from worker.sampling import marked

    found = marked.read(path, drawn, marked.no_face_labels(drawn, settings.rules))
    if found.others:
        count = counted(found.others, "picture")
        print_note(f"{count} of {path} not in the sample, left out")
    if found.others_exposed:
        count = counted(found.others_exposed, "picture")
        print_note(
            f"{count} left out with a mark of an exposed face, which the rates do not count: "
            "give the --pictures and --seed of the sample that was marked"
        )
    if found.clipped:
        print_note(f"{counted(found.clipped, 'mark')} of {path} clipped to the picture")
    if not any(mark.exposed_xyxy for mark in found.marks.values()):
        print_note(
            f"no picture of the sample has a mark of an exposed face in {path}: "
            "shapes with the labels face and extra are hidden areas"
        )
    for label, marks in found.no_faces.items():
        print_note(
            f"{counted(marks, 'mark')} of {path} with the label {label}, which is no face: the "
            "rates and --redo leave out such marks; give the label exposed to what must be hidden"
        )
    return found


def _export(settings: WorkerSettings, result: "Acceptance", folder: Path) -> None:
    from tasks.storage.s3 import ObjectStore
    from worker.sampling import training

    exported, gone = training.export(ObjectStore.connect(settings), settings, result, folder)
    sources = counted(exported, "source")
    if exported:
        print_summary(f"{sources} with a miss in {folder}, which holds clear pictures")
    else:
        print_summary(f"no source with a miss to write: {folder} is not made")
    if others := {label for finding in result.misses for label, _ in finding.others}:
        labels = ",".join(["face", *sorted(others)])
        print_note(f"{folder} has other labels, too: veil train import --classes {labels}")
    if exported and (count := _with_visible(settings, result)):
        print_note(
            f"{counted(count, 'picture')} made with an exempt area or a rule that leaves objects "
            f"visible, which no receipt lists: label them in {folder}, or they are learned as "
            "background"
        )
    if gone:
        print_note(f"{counted(gone, 'source')} gone, changed, or not known: left out")


def _with_visible(settings: WorkerSettings, result: "Acceptance") -> int:
    """Return in how many pictures with a miss the request can have left objects visible."""
    from worker.bootstrap import mask_style
    from worker.searches import rules_of_treatment
    from worker.treatments import Treatments

    treatments = Treatments(mask_style(settings), rules=rules_of_treatment(settings))
    asked = (AnonymizeOptions.of(finding.picture.options) for finding in result.misses)
    return sum(map(treatments.leaves_visible, asked))


def _redo(settings: WorkerSettings, result: "Acceptance") -> None:
    from tasks.storage.s3 import ObjectStore
    from worker.sampling import redo

    store, routes = ObjectStore.connect(settings), settings.parsed_routes()
    count = redo.enqueue(celery_app(), store, routes, settings.receipt_keys(), result.misses)
    print_summary(f"{count:,} enqueued with their misses as extra areas")
    if left_out := len(result.misses) - count:
        print_note(
            f"{counted(left_out, 'picture')} with a miss left out: hidden since it was marked, or "
            "its source is gone, changed, or not known"
        )


def _print(result: "Acceptance", is_on_desk: bool) -> None:
    for finding in result.misses:
        boxes = " ".join(",".join(map(str, box)) for box in finding.exposed_xyxy)
        print(f"{printable(finding.picture.output)}  {boxes}")
    if result.reviewed:
        print(f"pictures with an exposed face: {_rate_text(result.pictures, result.is_census)}")
        print(f"exposed faces: {_rate_text(result.faces, result.is_census)}")
    drawn = len(result.sample.pictures)
    print_summary(result.statement)
    if result.skipped:
        print_summary(
            f"{result.skipped:,} can't be marked, because the output was replaced or deleted "
            "since it was drawn: left out"
        )
    if not result.reviewed and not result.unreviewed:
        print_summary("nothing is left to review: draw another sample, with another --seed")
    elif not result.is_complete:
        where = ": veil review serve" if is_on_desk else ""
        print_summary(
            f"sample {result.sample.name}: {result.reviewed:,} of {drawn:,} reviewed{where}"
        )


def _rate_text(rate: "Rate", is_census: bool) -> str:
    """Return a rate with its interval, unless it is exact or says nothing."""
    from worker.sampling.acceptance import low_end, percent_up, says_nothing

    text = f"{rate.found:,} of {rate.of:,}"
    if is_census:
        return f"{text}, of the whole archive"
    if says_nothing(rate):
        return f"{text}, too few for an interval"
    return f"{text}, {INTERVAL} {low_end(rate)} to {percent_up(rate.high)}"
