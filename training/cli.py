"""``veil train``: from labelled pictures to a model that workers serve. Heavy imports stay inside the commands."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tasks.errors import InvalidRequest

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A detector of your own: import, fit, evaluate, export.",
)

Json = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]


@app.callback()
def train() -> None:
    """A detector of your own: import, fit, evaluate, export."""


@app.command("import")
def import_(
    sources: Annotated[list[Path], typer.Argument(metavar="SOURCE...", help="Files and folders with labels.")],
    to: Annotated[Path, typer.Option(metavar="DATASET", help="Folder for the data set.")],
    form: Annotated[
        str | None,
        typer.Option("--format", help="voc, coco, yolo, wider or veil; by default what a source looks like."),
    ] = None,
    pictures: Annotated[
        list[Path] | None, typer.Option(help="Where the pictures are, if not beside their labels; repeatable.")
    ] = None,
    mapping: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            metavar="LABEL=FACE|ignore|drop",
            help="What becomes of a label; repeatable. Labels that are not named are then dropped; without --map "
            "every one becomes FACE.",
        ),
    ] = None,
    val: Annotated[float, typer.Option(min=0, max=0.9, help="Share of pictures for validation.")] = 0.1,
    test: Annotated[float, typer.Option(min=0, max=0.9, help="Share of pictures for the final test.")] = 0.1,
    as_json: Json = False,
) -> None:
    """Make a data set of labelled pictures: checked, without duplicates, split."""
    from training import formats, importing, overview

    if form is not None and form not in formats.FORMATS:
        raise typer.BadParameter(f"choose from {', '.join(formats.FORMATS)}", param_hint="--format")
    if val + test >= 1:
        raise typer.BadParameter("--val and --test leave nothing to train on")
    choice = importing.Choice(_mapping(mapping or []), val, test)
    labelled = [each for source in sources for each in formats.read(source, form, pictures or [])]
    imported = importing.run(labelled, to, choice)
    figures = overview.write(imported, to)
    for line in importing.problem_lines(imported.problems):
        print(f"veil: {line}", file=sys.stderr)
    if as_json:
        print(json.dumps(figures))
        return
    print(f"digest: {figures['digest']}")
    for name, counts in figures["splits"].items():
        print(f"{name}: {counts['pictures']:,} pictures, {counts['faces']:,} faces")
    print(f"report: {to / 'report.md'}")


def _mapping(given: list[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in given:
        name, equals, target = text.rpartition("=")
        if not equals or not name:
            raise InvalidRequest(f"--map {text!r}: use LABEL=FACE, LABEL=ignore or LABEL=drop")
        pairs[name] = target
    return pairs


def main(arguments: list[str]) -> Any:
    """Run ``veil train ARGUMENTS``."""
    return app(args=arguments, prog_name="veil train")
