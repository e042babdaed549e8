"""``veil preview``: a sheet with a random sample of sources, anonymized in memory."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tasks.addresses import PrefixUri
from tasks.errors import BucketNotAllowed
from tasks.routes import Route
from worker import logs
from worker.commands.command import CommandApp
from worker.commands.exit_codes import ExitCode
from worker.commands.options import Json, Suffix
from worker.commands.progress import progress_bar
from worker.local_files import refuse_unwritable
from worker.printing import (
    counted,
    duration,
    print_note,
    print_summary,
    printable,
    told_if_interrupted,
)
from worker.settings import WorkerSettings

if TYPE_CHECKING:
    from worker.preview.sources import SourcePicture
    from worker.preview.summary import Preview

SHEET = Path("veil-preview.html")
OWNER_ONLY = 0o600

Place = Annotated[
    str, typer.Argument(metavar="s3://BUCKET/PREFIX|FOLDER", help="Where the sources are.")
]
SampleSize = Annotated[
    int, typer.Option("--sample", min=1, max=1000, metavar="PICTURES", help="Pictures to draw.")
]
Seed = Annotated[
    int, typer.Option(metavar="NUMBER", help="Another seed draws another sample of the same place.")
]
Compare = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SETTING=VALUE",
        help="Also try other settings, such as preset=thorough,region=full; repeatable.",
    ),
]
Output = Annotated[
    Path, typer.Option("--output", "-o", metavar="FILE", help="File of the sheet, replaced.")
]
NoOriginals = Annotated[
    bool, typer.Option("--no-originals", help="Leave the sources out of the sheet.")
]
Cores = Annotated[
    int | None,
    typer.Option(min=1, metavar="NUMBER", help="Cores to compute the time for; else those here."),
]

app = CommandApp()


@app.command(has_summary=True)
def preview(
    place: Place,
    sample: SampleSize = 24,
    seed: Seed = 1,
    compare: Compare = None,
    output: Output = SHEET,
    no_originals: NoOriginals = False,
    suffix: Suffix = None,
    cores: Cores = None,
    as_json: Json = False,
) -> ExitCode:
    """Show a sample of an archive as it would be anonymized.

    The command anonymizes the sample in memory, and writes one HTML file: before and after, what
    was found, what fails and why, and the time and the cost of the whole. It writes nothing else.
    With --json it prints the figures, and writes no file. Exit with 1 if a picture failed.

    Example: veil preview s3://camera-uploads/2026 --compare region=full --compare preset=thorough
    """
    from worker.preview import sheet, trial
    from worker.preview.capacity import Prices
    from worker.preview.sources import draw
    from worker.preview.summary import summarize
    from worker.preview.variants import variants
    from worker.process import processors

    route, suffixes = _route(place, suffix or [])
    chosen = variants(compare or [], route)
    logs.configure_command(chosen[0].settings.log_format)
    if not as_json:
        refuse_unwritable(output)
    is_store = "://" in place
    shows_originals = not (no_originals or as_json)
    with progress_bar("anonymized") as bar:

        def tell() -> None:
            print_summary(f"{bar.count:,} anonymized in memory, no result: it is made at the end")

        with told_if_interrupted(tell):
            drawn = draw(_pictures(place, chosen[0].settings, suffixes), sample, seed, place)
            strata = drawn.draw()
            pictures = [picture for stratum in strata for picture in stratum.drawn]
            bar.expect(len(pictures) * len(chosen))
            tried = trial.run(chosen, pictures, shows_originals, bar.advance)
    made = summarize(
        place,
        seed,
        drawn,
        strata,
        chosen,
        tried,
        cores or processors.available(),
        Prices(),
        has_requests=is_store,
    )
    if as_json:
        print(json.dumps(made.to_json()))
    else:
        sheet.write(output, made)
        _print_summary(made, output, shows_originals)
    return ExitCode.ok_if(not any(variant.failed for variant in made.variants))


def _route(place: str, suffixes: list[str]) -> tuple[Route | None, list[str]]:
    """Return the route of the sources at `place`, and the suffixes of those that it takes.

    A folder has no route, and a prefix may have none. Raise BucketNotAllowed if routes begin below
    the prefix: each has settings of its own.
    """
    if "://" not in place:
        return None, suffixes
    prefix = PrefixUri.parse(place)
    routes = WorkerSettings.load().parsed_routes()
    if route := routes.of_source(prefix):
        return route, list(route.suffixes_among(suffixes))
    if routes.sources_below(prefix):
        raise BucketNotAllowed(
            f"no route of {routes.setting} leads from {prefix}: {routes.advice(prefix)}"
        )
    if made_by := routes.of_destination(prefix):
        name = made_by.name or str(made_by)
        print_note(f"{prefix} has the outputs of the route {name}: these are no sources")
    else:
        print_note(
            f"no route of {routes.setting} leads from {prefix}: the settings are the deployment's"
        )
    return None, suffixes


def _pictures(
    place: str, settings: WorkerSettings, suffixes: list[str]
) -> Iterator["SourcePicture"]:
    """Return the pictures of a prefix or of a folder. Raise BadParameter if it is neither."""
    from worker.preview import sources

    if "://" in place:
        from tasks.storage.s3 import ObjectStore

        store = ObjectStore.connect(settings)
        return sources.objects(store, place, suffixes, settings.max_bytes, settings.fetch_seconds)
    folder = Path(place)
    if not place or not folder.is_dir():
        raise typer.BadParameter(f"{place!r:.200} is no folder and no s3:// address")
    return sources.files(folder, _files(folder, suffixes), settings.max_bytes)


def _files(folder: Path, suffixes: list[str]) -> Iterator[Path]:
    """Yield the files in `folder` that `veil anonymize` would take for pictures."""
    from worker.commands.anonymize import find_jobs
    from worker.local_files import PICTURE_SUFFIXES

    endings = tuple(suffix.lower() for suffix in suffixes) or tuple(PICTURE_SUFFIXES)
    for job in find_jobs([folder], None):
        if job.source.name.lower().endswith(endings) and job.source.is_file():
            yield job.source


def _print_summary(made: "Preview", output: Path, shows_originals: bool) -> None:
    from worker.preview.capacity import SECONDS_AN_HOUR

    for variant in made.variants:
        parts = [f"{variant.found} in {variant.with_objects:,} of {variant.pictures:,}"]
        parts += [f"{variant.held:,} held"] if variant.held else []
        parts += [f"{variant.failed:,} failed"] if variant.failed else []
        if variant.seconds_a_picture is not None:
            parts.append(f"{variant.seconds_a_picture:.2f} s a picture")
        if variant.whole is not None:
            whole = variant.whole
            time = duration(whole.hours * SECONDS_AN_HOUR)
            parts.append(f"the whole: {time} on {counted(whole.cores, 'core')}")
        print_summary(f"{printable(variant.name)}: {', '.join(parts)}")
    warning = "; it holds clear pictures" if shows_originals else ""
    print_summary(
        f"{output} has {len(made.pictures):,} of {counted(made.count, 'picture')}{warning}"
    )
