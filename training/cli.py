"""``veil train``: commands that turn labelled pictures into a model for workers.

The commands import heavy modules themselves, so that the help is shown at once.
"""

import hashlib
import json
import math
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tasks.errors import InvalidRequest, TrainingFailed
from tasks.messages import FACE
from worker.commands.command import CommandApp
from worker.commands.options import Json, refuse_beside
from worker.printing import counted, print_note

if TYPE_CHECKING:
    from training.exporting import Exported
    from training.run import Run

LARGEST_ENLARGEMENT = 4.0  # the limit of VEIL_MAX_ENLARGEMENT
LARGEST_SIDE = 8192  # pixels
LARGEST_SEED = 2**32 - 1
REPORTS = "evaluation"  # a folder in that of a run, with a folder for each split
# A smaller fall of AP50 on some dozen pictures of val is chance.
TOLERATED_LOSS = 0.02
LARGE_LOSS = 1e4  # Larger ones are written with an exponent.
ROUNDS = 100
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")


def _above_zero(number: float | None) -> float | None:
    if number is not None and number <= 0:
        raise typer.BadParameter("must be above 0")
    return number


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
            metavar="LABEL=CLASS|ignore|drop",
            help="Map a label to FACE, or to one of --classes; repeatable. Without --map and "
            "--classes all labels become FACE, otherwise other labels are dropped.",
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="LABEL,LABEL",
            help="Labels to keep, as classes of these names; without it they become FACE.",
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
    from training.data import formats, importing, overview
    from training.data.dataset import kind_of

    if form is not None and form not in formats.FORMATS:
        raise typer.BadParameter(f"choose from {', '.join(formats.FORMATS)}", param_hint="--format")
    if val + test >= 1:
        raise typer.BadParameter("--val and --test leave nothing to train on")
    kept = [name.strip() for name in (classes or "").split(",") if name.strip()]
    choice = importing.Choice.of(_mapping(mapping or []), val, test, kept)
    labelled = []
    for source in sources:
        labelled += formats.read(source, form, pictures or [])
    imported = importing.run(labelled, to, choice)
    figures = overview.write(imported, to)
    for doubt in imported.doubts:
        print(f"veil: warning: {doubt}; look at {to / overview.SAMPLES}", file=sys.stderr)
    for line in importing.problem_lines(imported.problems):
        print(f"veil: {line}", file=sys.stderr)
    if as_json:
        print(json.dumps(figures))
        return
    print(f"digest: {figures['digest']}")
    print(f"labels: {overview.label_line(figures)}")
    kind = kind_of(choice.classes)
    for name, counts in figures["splits"].items():
        print(f"{name}: {counted(counts['pictures'], 'picture')}, {counted(counts['faces'], kind)}")
    print(f"samples: {to / overview.SAMPLES}")
    print(f"report: {to / 'report.md'}")
    print(_next("fit", to, "--to", "RUN", "--start", "default"))


@app.command()
def fit(
    folder: Annotated[
        Path, typer.Argument(metavar="DATASET", help="As `veil train import` made it.")
    ],
    to: Annotated[
        Path, typer.Option(metavar="RUN", help="Folder of the run; a stopped run is resumed.")
    ],
    start: Annotated[
        str | None,
        typer.Option(
            metavar="default|RUN",
            help="Begin with the default model, or with the network of another, finished run; "
            "without it, with a new EfficientDet.",
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Size of a new EfficientDet: d0, d1 or d2; by default d0. Not with --start.",
        ),
    ] = None,
    side: Annotated[
        int | None,
        typer.Option(
            metavar="PIXELS",
            max=LARGEST_SIDE,
            help="Side of the squares that the network is given, a multiple of 128, or of 32 with "
            "--start default; by default that of the network.",
        ),
    ] = None,
    batch: Annotated[
        int, typer.Option(metavar="COUNT", min=1, max=512, help="Pictures a step.")
    ] = 8,
    rounds: Annotated[
        float | None,
        typer.Option(
            metavar="COUNT",
            callback=_above_zero,
            help="Times that each picture is used; by default 100.",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(metavar="COUNT", min=1, help="Number of steps, in place of --rounds."),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            metavar="RATE",
            callback=_above_zero,
            help="Highest learning rate; the rate rises to it, then falls as a cosine. By default "
            "0.002; with --start default 0.001, as a share of the magnitude of the weights.",
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="WEIGHTS",
            help="Initial weights of a new EfficientDet's backbone: imagenet, none or a file; by "
            "default imagenet. Not with --start.",
        ),
    ] = None,
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
            metavar="NUMBER",
            min=0,
            max=LARGEST_SEED,
            help="Seed of the weights, the order and the random changes.",
        ),
    ] = 0,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Only resume: fail if RUN has no checkpoint. Without it, the command resumes a "
            "run that has one and begins one otherwise.",
        ),
    ] = False,
    finish: Annotated[
        bool,
        typer.Option(
            "--finish",
            help="Train no further: end RUN at its last checkpoint, as after its last step.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a detector. After a kill, the same command resumes from the last checkpoint.

    Example: veil train fit dataset --to run --start default
    """
    from training import folders
    from training.data.dataset import Dataset, refuse_as_target

    refuse_beside("--start", start, {"--size": size, "--weights": weights})
    refuse_beside("--steps", steps, {"--rounds": rounds})
    dataset = Dataset.load(folder)
    refuse_as_target(to)
    folders.refuse_as_run(to)
    from training import fitting
    from training.backend import has_accelerator
    from training.networks import network_of
    from training.run import Recipe, Run

    size, initial, identity = _initial(start, size or "d0", weights or "imagenet")
    network = network_of(size, dataset.labels)
    side = network.side if side is None else side
    if side < network.multiple or side % network.multiple:
        raise typer.BadParameter(f"must be a multiple of {network.multiple}", param_hint="--side")
    if learning_rate is None:
        learning_rate = network.learning_rate
    precision = precision or ("mixed_bfloat16" if has_accelerator() else "float32")
    if precision not in PRECISIONS:
        raise typer.BadParameter(f"choose from {', '.join(PRECISIONS)}", param_hint="--precision")
    count = steps or math.ceil((rounds or ROUNDS) * len(dataset.split("train")) / batch)
    recipe = Recipe(
        size,
        side,
        batch,
        count,
        learning_rate,
        seed,
        augment,
        identity,
        precision,
        dataset.labels,
    )
    run = Run.open(to, recipe, dataset.digest)
    for flag, is_given in (("--resume", resume), ("--finish", finish)):
        if is_given:
            run.require_checkpoint(flag)

    def report(line: dict[str, Any]) -> None:
        print(json.dumps(line) if as_json else _progress_line(line), flush=True)

    def begun() -> None:
        _print_start(run, None if finish else every, as_json)

    with _resumable(run):
        fitting.fit(run, dataset, initial, every, report, ends_here=finish, begun=begun)
    made = run.steps_made()
    if as_json:
        finished = {"run": str(to), "recipe": recipe.digest, "data": dataset.digest, "steps": made}
        print(json.dumps({"event": "finished", **finished}))
        return
    print(
        f"finished: {to}, {made:,} of {counted(recipe.steps, 'step')}, recipe {recipe.digest[:16]}"
    )
    _warn_of(_losses_since_the_start(run))
    _print_links(run)
    print(_next("evaluate", to, folder))


@app.command()
def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A finished run, or what an entry of VEIL_MODELS may be, such as default.",
        ),
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
            max=LARGEST_SIDE,
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
        typer.Option(
            metavar="FOLDER", help="Where the report goes; by default RUN/evaluation/SPLIT"
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure the detections and the exposed faces of a model, and propose its threshold.

    Example: veil train evaluate run dataset
    """
    from training.data.dataset import SPLITS, Dataset, refuse_as_target
    from training.run import DESCRIPTION, Run
    from worker import logs
    from worker.detection.presets import PassSettings
    from worker.settings import WorkerSettings

    if split not in SPLITS:
        raise typer.BadParameter(f"choose from {', '.join(SPLITS)}", param_hint="--split")
    settings = WorkerSettings.load()
    logs.configure_command(settings.log_format)
    dataset = Dataset.load(folder)
    dataset.split(split)
    home = Path(model).expanduser()
    run = Run.load(home) if (home / DESCRIPTION).is_file() else None
    is_own = run is not None and dataset.digest == run.data
    name = split if is_own else f"{split}-{dataset.digest[:8]}"
    target = to or _report_folder(run, model) / name
    refuse_as_target(target)
    # A threshold that was chosen on `test` would make the figures of `test` too good.
    threshold = run.threshold() if run and split == "test" else None
    from training.evaluation import evaluating, report

    look = None
    if side:
        look = PassSettings((side,), LARGEST_ENLARGEMENT, side, mirrored=False, turned="never")
        passes = f"looked at once at {side} px"
    else:
        scales = settings.pass_settings().scales
        passes = f"looked at as by a worker, at {', '.join(map(str, scales))} px"
    figures = evaluating.evaluate(model, dataset, split, settings, look, alarms, compare, threshold)
    chosen_on = split if threshold is None else "val"
    content = report.write(
        figures, dataset, split, passes, target, alarms=alarms, chosen_on=chosen_on, run=run
    )
    if run and split == "val":
        _keep(run, content, counts=is_own and side is None and compare)
    _warn_of(content["drawbacks"])
    if as_json:
        print(json.dumps(content))
        return
    for line in report.lines(content):
        print(line)
    if run:
        _print_links(run)
    print(f"report: {target / 'report.md'}")
    if run:
        print(_export_line(run))


def _export_line(run: "Run") -> str:
    """Return the command that exports an evaluated run, or the reason why it would be refused."""
    from training import exporting

    if reason := exporting.refusal(run):
        return f"not ready for `veil train export`: {reason}"
    return _next("export", run.folder, "--to", "FOLDER")


def _report_folder(run: "Run | None", model: str) -> Path:
    """Return the folder in which the reports of a run belong."""
    if run:
        return run.folder / REPORTS
    from training.data.dataset import INDEX
    from worker.model_settings import DEFAULT, PLATES

    home = Path(model).expanduser()
    if "://" not in model and model not in (DEFAULT, PLATES) and not home.exists():
        raise typer.BadParameter(f"{model} does not exist", param_hint="MODEL")
    if (home / INDEX).is_file():
        raise typer.BadParameter(
            f"{model} is a data set: give a run, or what VEIL_MODEL may be", param_hint="MODEL"
        )
    raise typer.BadParameter("say where the report goes", param_hint="--to")


def _keep(run: "Run", content: dict[str, Any], *, counts: bool) -> None:
    """Store an evaluation of `val` if it `counts`, else say that it does not.

    An export takes its threshold and its warnings from an evaluation in the passes of a worker, on
    pictures that the run knows, beside the bundled detector.
    """
    from training.run import EVALUATION
    from worker.local_files import write_atomically

    if counts:
        write_atomically(run.folder / EVALUATION, json.dumps(content, indent=1).encode())
        return
    print(
        "veil: exports don't use this evaluation: they need one of the run's own data set, "
        "without --side and --no-compare",
        file=sys.stderr,
    )


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
            help="The model's own; by default what the last evaluation of val proposed, else 0.5.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a finished run as a SavedModel, and print the setting that serves it.

    Example: veil train export run --to model
    """
    from training import exporting
    from training.run import Run
    from worker import logs
    from worker.detection.evaluation import drawbacks_of
    from worker.settings import WorkerSettings

    logs.configure_command(WorkerSettings.load().log_format)
    run = Run.load(folder)
    exported = exporting.export(run, to, threshold)
    metadata = exported.metadata
    _warn_of(drawbacks_of(metadata.get("evaluation")) or _never_evaluated(run))
    if as_json:
        print(json.dumps({"zip": str(exported.zip), "difference": exported.difference, **metadata}))
        return
    print(f"threshold: {metadata['score_threshold']}, {_origin(threshold, run)}")
    print(f"differs from the network by: {exported.difference:.1g}")
    if "difference_in_8_bits" in metadata:
        print(f"in 8 bits: {_eight_bits_line(exported.folder, metadata['difference_in_8_bits'])}")
    _print_links(run)
    for report in sorted((folder / REPORTS).glob("*/report.md")):
        print(f"report: {report}")
    print(_setting_line(exported))


def _never_evaluated(run: "Run") -> list[str]:
    """Return a warning if no evaluation says which objects the model of `run` leaves exposed."""
    if run.evaluation():
        return []
    return [
        "the model was never evaluated on val: `veil train evaluate` says how many objects it "
        "leaves exposed"
    ]


def _setting_line(exported: "Exported") -> str:
    """Return the setting with which workers use a model, as a shell takes it.

    The default model stays beside one that finds no faces, hides them worse, or was not evaluated.
    """
    from worker.detection.evaluation import evaluations

    metadata = exported.metadata
    measured = evaluations(metadata.get("evaluation"))
    if any(one.label == FACE and not one.drawbacks() for one in measured):
        return f"VEIL_MODEL={shlex.quote(str(exported.zip))}"
    return f"VEIL_MODELS={shlex.quote(f'default,{exported.zip}')}"


def _eight_bits_line(folder: Path, difference: float) -> str:
    """Return in words how far the scores of the network in 8 bits are from those in floats."""
    from worker.detection.model import NETWORK

    line = f"scores differ by {difference:g} on average"
    if (folder / NETWORK).is_file():
        return line
    return f"{line}, which is too much: it is left out, and TensorFlow runs the model"


def _warn_of(drawbacks: list[str]) -> None:
    """Print on stderr in which respects a model hides objects badly."""
    for drawback in drawbacks:
        print(f"veil: warning: {drawback}", file=sys.stderr)


def _origin(threshold: float | None, run: "Run") -> str:
    """Return the origin of the threshold of an exported model; `threshold` is that of the flag."""
    if threshold is not None:
        models = run.evaluation().get("models")
        measured = models[0]["threshold"] if models else None
        if measured in (None, threshold):
            return "from --threshold"
        return f"from --threshold; the evaluation of val measured at {measured:g}"
    if run.threshold() is not None:
        return "proposed by the evaluation of val"
    if run.evaluation():
        return "the default, because the evaluation of val proposed none"
    return "the default, because no evaluation of val has proposed one"


def _print_start(run: "Run", every: int | None, as_json: bool) -> None:
    """Say after which step a run is resumed and, unless `every` is None, what is ahead."""
    if run.has_checkpoint:
        print_note(f"resuming {run.folder} after step {_checkpoint_step(run):,}")
    if every is None:
        return
    started = {"event": "started", "run": str(run.folder), "steps": run.recipe.steps}
    line = json.dumps({**started, "every": every}) if as_json else _start_line(run, every)
    print(line, flush=True)


def _start_line(run: "Run", every: int) -> str:
    """Return the line that `fit` prints before its first step."""
    recipe = run.recipe
    return (
        f"training {run.folder}: {counted(recipe.steps, 'step')} of "
        f"{counted(recipe.batch, 'picture')}, "
        f"a checkpoint every {every:,}; {_tensorboard_line(run)}"
    )


def _tensorboard_line(run: "Run") -> str:
    from training.run import EVENTS

    return f"TensorBoard: tensorboard --logdir {shlex.quote(str(run.folder / EVENTS))}"


def _progress_line(line: dict[str, Any]) -> str:
    """Return the line that `fit` prints after its first two steps and at a checkpoint."""
    if line["step"] == 0:
        return f"before the first step: {_on_val(line) or 'no pictures in val'}"
    text = f"step {line['step']:,} of {line['steps']:,}: loss {_loss(line['loss'])}"
    if on_val := _on_val(line):
        text += f"; {on_val}"
    if line["seconds_left"] is None:
        text += f", after {line['seconds']:.1f} s"
    elif line["seconds_left"]:
        text += f", {timedelta(seconds=line['seconds_left'])} left"
    return text


def _losses_since_the_start(run: "Run") -> list[str]:
    """Return a warning if a run that started from weights finds less on val than these did."""
    from training import curves
    from training.run import LOG

    precisions = curves.precisions(run.folder / LOG)
    if 0 not in precisions:
        return []
    before, after = precisions[0], precisions[max(precisions)]
    if after >= before - TOLERATED_LOSS:
        return []
    return [
        f"AP50 on val fell from {before:.3f} to {after:.3f}: use a smaller --learning-rate, or "
        "more labelled pictures; `veil train evaluate` says what it means"
    ]


def _on_val(line: dict[str, Any]) -> str:
    """Return the measurements of the split val in a line of the log; empty if there are none."""
    if "val_loss" not in line:
        return ""
    precision = "no objects" if line["val_ap50"] is None else f"AP50 {line['val_ap50']:.3f}"
    return f"val: loss {_loss(line['val_loss'])}, {precision}"


def _loss(loss: float) -> str:
    return f"{loss:.4f}" if loss < LARGE_LOSS else f"{loss:.1e}"


def _print_links(run: "Run") -> None:
    """Print where the curves and the last checkpoint of a run are, and how to open TensorBoard."""
    from training.run import CHECKPOINT, CURVES

    print(f"curves: {run.folder / CURVES}")
    print(_tensorboard_line(run))
    print(f"last checkpoint: {run.folder / CHECKPOINT}")


def _next(command: str, *arguments: object) -> str:
    """Return the line that names the next command."""
    return f"next: veil train {command} {shlex.join(map(str, arguments))}"


@contextmanager
def _resumable(run: "Run") -> Iterator[None]:
    """Say what is kept of a run that Ctrl-C stops, and how to resume it."""
    try:
        yield
    except KeyboardInterrupt:
        print_note(_stopped_line(run))
        raise


def _stopped_line(run: "Run") -> str:
    from training.run import CHECKPOINT

    made = run.steps_made()
    if run.has_checkpoint:
        return (
            f"stopped after step {made:,}: the checkpoint of step {_checkpoint_step(run):,} is "
            f"kept, {run.folder / CHECKPOINT}, and the same command resumes there"
        )
    if made:
        return (
            f"stopped after step {made:,}, before the first checkpoint: the log is kept, and the "
            "same command begins at step 1 again; a smaller --every loses less"
        )
    return "stopped before the first step: nothing is kept"


def _checkpoint_step(run: "Run") -> int:
    from training import checkpoint
    from training.run import CHECKPOINT

    return checkpoint.step(run.folder / CHECKPOINT)


def _initial(start: str | None, size: str, weights: str) -> tuple[str, str | None, str]:
    """Return the size of the network, its initial weights, and their identity for the recipe.

    Of a file the identity is the digest, because names are reused.
    """
    from training.network import CENTERFACE, DEFAULT
    from training.run import WEIGHTS, Run
    from worker.detection.centerface.default import WEIGHTS as PUBLISHED

    if start == DEFAULT:
        return CENTERFACE, DEFAULT, PUBLISHED.sha256
    if start is not None:
        folder = Path(start).expanduser()
        if not folder.exists():
            raise TrainingFailed(
                f"--start {start} does not exist: give a finished run, or {DEFAULT}"
            )
        run = Run.load(folder)
        run.require_finished()
        return run.recipe.size, str(run.folder), _digest(run.folder / WEIGHTS, "--start")
    if weights == "none":
        return size, None, weights
    if weights == "imagenet":
        return size, weights, weights
    return size, weights, _digest(Path(weights).expanduser(), "--weights")


def _digest(path: Path, option: str) -> str:
    """Return the SHA-256 of the file that `option` names."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise TrainingFailed(f"{option} {path} can't be read: {error.strerror}") from None


def _mapping(given: list[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in given:
        name, equals, target = text.rpartition("=")
        if not equals or not name:
            raise InvalidRequest(f"--map {text!r}: use LABEL=CLASS, LABEL=ignore or LABEL=drop")
        if pairs.setdefault(name, target) != target:
            raise InvalidRequest(
                f"--map gives {name!r:.80} two targets, {pairs[name]!r:.80} and {target!r:.80}: "
                "leave out one of them"
            )
    return pairs
