"""``veil train``: commands that turn labelled pictures into a model for workers.

The commands import heavy modules themselves, so that the help is shown at once.
"""

import hashlib
import json
import math
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tasks.errors import InvalidRequest, TrainingFailed
from worker.commands.command import CommandApp
from worker.commands.options import Json

LARGEST_ENLARGEMENT = 4.0  # the limit of VEIL_MAX_ENLARGEMENT
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")

app = CommandApp(
    "Train a detector: import, fit, evaluate, export.\n\n"
    "Example: veil train import labels/ --to dataset"
)


@app.command("import")
def import_(
    sources: Annotated[
        list[Path], typer.Argument(metavar="PATH", help="Files and folders with labels.")
    ],
    to: Annotated[Path, typer.Option(metavar="DATASET", help="Folder for the data set.")],
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="voc, coco, yolo, wider or veil; by default what a source looks like.",
        ),
    ] = None,
    pictures: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FOLDER",
            help="Where the pictures are, if not beside their labels; repeatable.",
        ),
    ] = None,
    mapping: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            metavar="LABEL=FACE|ignore|drop",
            help="Map a label; repeatable. Without --map all labels become FACE, otherwise labels "
            "that are not mapped are dropped.",
        ),
    ] = None,
    val: Annotated[
        float,
        typer.Option(metavar="SHARE", min=0, max=0.9, help="Share of pictures for validation."),
    ] = 0.1,
    test: Annotated[
        float,
        typer.Option(metavar="SHARE", min=0, max=0.9, help="Share of pictures for the final test."),
    ] = 0.1,
    as_json: Json = False,
) -> None:
    """Make a data set of labelled pictures: checked, without duplicates, split.

    Example: veil train import labels/ --to dataset --map with_mask=FACE
    """
    from training import formats, importing, overview

    if form is not None and form not in formats.FORMATS:
        raise typer.BadParameter(f"choose from {', '.join(formats.FORMATS)}", param_hint="--format")
    if val + test >= 1:
        raise typer.BadParameter("--val and --test leave nothing to train on")
    choice = importing.Choice(_mapping(mapping or []), val, test)
    labelled = []
    for source in sources:
        labelled += formats.read(source, form, pictures or [])
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


@app.command()
def fit(
    folder: Annotated[
        Path, typer.Argument(metavar="DATASET", help="As `veil train import` made it.")
    ],
    to: Annotated[
        Path, typer.Option(metavar="RUN", help="Folder of the run; one that was stopped goes on.")
    ],
    size: Annotated[
        str, typer.Option(metavar="SIZE", help="Size of the network: d0, d1 or d2.")
    ] = "d0",
    side: Annotated[
        int | None,
        typer.Option(
            metavar="PIXELS",
            help="Side of the squares that the network is given, a multiple of 128; by default "
            "that of --size.",
        ),
    ] = None,
    batch: Annotated[
        int, typer.Option(metavar="COUNT", min=1, max=512, help="Pictures a step.")
    ] = 8,
    rounds: Annotated[
        float, typer.Option(metavar="COUNT", min=0, help="Times that each picture is used.")
    ] = 100,
    steps: Annotated[
        int | None,
        typer.Option(metavar="COUNT", min=1, help="Number of steps, in place of --rounds."),
    ] = None,
    learning_rate: Annotated[
        float,
        typer.Option(
            metavar="RATE",
            min=0,
            help="Highest learning rate; the rate rises to it, then falls as a cosine.",
        ),
    ] = 0.002,
    weights: Annotated[
        str,
        typer.Option(
            metavar="WEIGHTS", help="Initial weights of the backbone: imagenet, none or a file."
        ),
    ] = "imagenet",
    augment: Annotated[bool, typer.Option(help="Change the pictures at random.")] = True,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="PRECISION",
            help="float32, mixed_bfloat16 or mixed_float16; "
            "by default mixed_bfloat16 on an accelerator.",
        ),
    ] = None,
    every: Annotated[
        int, typer.Option(metavar="STEPS", min=1, help="Steps from one checkpoint to the next.")
    ] = 100,
    seed: Annotated[
        int,
        typer.Option(
            metavar="NUMBER", min=0, help="Seed of the weights, the order and the random changes."
        ),
    ] = 0,
    as_json: Json = False,
) -> None:
    """Train a detector. After a kill, the same command resumes from the last checkpoint.

    Example: veil train fit dataset --to run --size d0
    """
    from training.dataset import Dataset

    dataset = Dataset.load(folder)
    from training import fitting
    from training.anchors import MULTIPLE
    from training.backend import has_accelerator
    from training.model import SIZES
    from training.run import Recipe, Run

    if size not in SIZES:
        raise typer.BadParameter(f"choose from {', '.join(SIZES)}", param_hint="--size")
    side = side or SIZES[size].side
    if side < MULTIPLE or side % MULTIPLE:
        raise typer.BadParameter(f"must be a multiple of {MULTIPLE}", param_hint="--side")
    precision = precision or ("mixed_bfloat16" if has_accelerator() else "float32")
    if precision not in PRECISIONS:
        raise typer.BadParameter(f"choose from {', '.join(PRECISIONS)}", param_hint="--precision")
    count = steps or max(1, math.ceil(rounds * len(dataset.split("train")) / batch))
    recipe = Recipe(
        size, side, batch, count, learning_rate, seed, augment, _identity(weights), precision
    )
    run = Run.open(to, recipe, dataset.digest)

    def report(line: dict[str, Any]) -> None:
        if as_json:
            print(json.dumps(line), flush=True)
        elif sys.stderr.isatty():
            validation = f", {line['val_loss']:.4f} on val" if "val_loss" in line else ""
            print(f"step {line['step']:,}: loss {line['loss']:.4f}{validation}", flush=True)

    fitting.fit(run, dataset, None if weights == "none" else weights, every, report)
    if as_json:
        print(
            json.dumps(
                {
                    "event": "finished",
                    "run": str(to),
                    "recipe": recipe.digest,
                    "data": dataset.digest,
                }
            )
        )
    else:
        print(f"finished: {to}, recipe {recipe.digest[:16]}")


@app.command()
def evaluate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A finished run, or what VEIL_MODEL may be.")
    ],
    folder: Annotated[
        Path, typer.Argument(metavar="DATASET", help="As `veil train import` made it.")
    ],
    split: Annotated[str, typer.Option(metavar="SPLIT", help="train, val or test.")] = "val",
    side: Annotated[
        int | None,
        typer.Option(
            metavar="PIXELS",
            min=64,
            max=8192,
            help="Detect in one pass, at this longer side; by default in the passes of a worker.",
        ),
    ] = None,
    alarms: Annotated[
        float,
        typer.Option(
            metavar="COUNT",
            min=0,
            help="False alarms a picture that the proposed threshold may bring.",
        ),
    ] = 0.1,
    compare: Annotated[bool, typer.Option(help="Measure the bundled detector beside it.")] = True,
    to: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where the report goes; by default RUN/evaluation."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure the detections and the exposed faces of a model, and propose its threshold.

    Example: veil train evaluate run dataset
    """
    from training.dataset import SPLITS, Dataset
    from training.run import DESCRIPTION, EVALUATION
    from worker.detection.presets import PassSettings
    from worker.settings import WorkerSettings

    if split not in SPLITS:
        raise typer.BadParameter(f"choose from {', '.join(SPLITS)}", param_hint="--split")
    settings = WorkerSettings.load()
    dataset = Dataset.load(folder)
    dataset.split(split)
    of_a_run = (Path(model).expanduser() / DESCRIPTION).is_file()
    if to is None and not of_a_run:
        raise typer.BadParameter("say where the report goes", param_hint="--to")
    target = to or Path(model).expanduser() / "evaluation"
    from training import evaluating, report

    if side:
        look = PassSettings((side,), LARGEST_ENLARGEMENT, side, mirrored=False, turned="never")
        passes = f"looked at once at {side} px"
    else:
        look = settings.pass_settings()
        passes = f"looked at as by a worker, at {', '.join(map(str, look.scales))} px"
    figures = evaluating.evaluate(model, dataset, split, settings, look, alarms, compare)
    content = report.write(figures, dataset, split, passes, target)
    if of_a_run:
        from worker.local_files import write_atomically

        write_atomically(
            Path(model).expanduser() / EVALUATION, json.dumps(content, indent=1).encode()
        )
    if as_json:
        print(json.dumps(content))
        return
    for figures in content["models"]:
        print(
            f"{figures['model']}: mAP {figures['mAP']}, AP50 {figures['AP50']}, "
            f"recall {figures['recall']} at {figures['threshold']}, "
            f"exposed {figures['exposed']} of {figures['faces']}"
        )
    print(f"proposed threshold: {content['proposed_threshold']}\nreport: {target / 'report.md'}")


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run.")],
    to: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where saved_model/ and saved_model.zip go.")
    ],
    threshold: Annotated[
        float | None,
        typer.Option(
            metavar="SCORE",
            min=0.02,
            max=0.99,
            help="The model's own; by default what the last evaluation proposed.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a finished run as a SavedModel: `VEIL_MODEL=FOLDER/saved_model.zip` serves it.

    Example: veil train export run --to model
    """
    from training import exporting
    from training.run import Run

    made = exporting.export(Run.load(folder), to, threshold)
    threshold = made.metadata["score_threshold"]
    if as_json:
        print(json.dumps({"zip": str(made.zip), "difference": made.difference, **made.metadata}))
        return
    print(f"threshold: {threshold}")
    print(f"differs from the network by: {made.difference:.1g}")
    print(f"VEIL_MODEL={made.zip}")


def _identity(weights: str) -> str:
    """Return the identity of the initial weights: of a file the digest, as names are reused."""
    if weights in ("none", "imagenet"):
        return weights
    try:
        return hashlib.sha256(Path(weights).expanduser().read_bytes()).hexdigest()
    except OSError as error:
        raise TrainingFailed(f"--weights {weights} can't be read: {error.strerror}") from None


def _mapping(given: list[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in given:
        name, equals, target = text.rpartition("=")
        if not equals or not name:
            raise InvalidRequest(f"--map {text!r}: use LABEL=FACE, LABEL=ignore or LABEL=drop")
        pairs[name] = target
    return pairs
