"""The report of an evaluation: tables, curves, and the worst misses and false alarms."""

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tasks.errors import OutputFailed
from training import charts, sheets
from training.data.dataset import FACE, Dataset, kind_of, sides
from training.data.overview import table
from training.evaluation.evaluating import HIDDEN, MAX_THRESHOLD, PLACES, Figures
from training.evaluation.scoring import SIZES, as_coco, size_name
from training.run import CURVES, Run, stated
from training.sheets import ALARM, FOUND, LABELLED, PAPER
from worker.detection.evaluation import drawbacks_of
from worker.detection.faces import Boxes
from worker.pixels import Pixels
from worker.printing import counted

SHARES = 0, 1.02  # limits of an axis
LEAST_ALARMS = 0.01  # a picture; fewer are drawn there, because the axis is logarithmic
TILES, COLUMNS = 12, 4  # of a sheet
TILE = 240  # pixels
HIDDEN_FACES = (
    "Faces are hidden as by a worker. A face is exposed when half of the structure of its eye band "
    "survives. Spill is the share of changed pixels among those away from every labelled face. "
    "Faces without a label count as false alarms and as spill, and an object of another label as a "
    "false alarm."
)
HIDDEN_OBJECTS = (
    "Objects of this label are hidden as by a worker: all of each with its margin, which "
    f"`VEIL_RULES` sets. One is exposed when less than {HIDDEN:.0%} of its box is hidden. Spill is "
    "the share of changed pixels among those away from everything labelled. What does not have "
    "this label counts as a false alarm, also an object of another label."
)
AS_SERVED = (
    "As served is the threshold with which a worker would use the model: that of "
    "`VEIL_SCORE_THRESHOLD` or `VEIL_RULES`, else that of its `veil.json`, else 0.5. Objects that "
    "`VEIL_RULES` leaves visible, with `ignore` or `smallest`, count as exposed."
)
LABELS, DETECTIONS = "labels.json", "detections.json"
JUDGED = (
    "The surest box of each {kind} is judged. `veil anonymize --detect-only` and the detections of "
    "Python programs have larger boxes, which contain all boxes of a {kind}. "
    f"`{LABELS}` and `{DETECTIONS}` have what is judged, in the form of COCO."
)
AROUND = 3.0  # side of the part that a tile shows, in sides of the box


def write(
    figures: Sequence[Figures],
    dataset: Dataset,
    split: str,
    look: str,
    folder: Path,
    *,
    alarms: float,
    chosen_on: str,
    run: Run | None,
) -> dict[str, Any]:
    """Write ``report.md``, ``evaluation.json`` and their pictures to `folder`, and return the JSON.

    ``labels.json`` has the labels of the split in the form of COCO, and ``detections.json`` all
    detections from FLOOR on as its results.

    The report is about the first of `figures`, whose threshold was chosen on the split `chosen_on`
    for at most `alarms` false alarms a picture, and about the training of `run`, if it is one. If
    there are several labels, each has a report in a folder of its name, and the report in `folder`
    has a row for each. Raise OutputFailed if it can't be written.
    """
    by_label: dict[str, list[Figures]] = {}
    for each in figures:
        by_label.setdefault(each.label, []).append(each)
    about = {
        "data": dataset.digest,
        "split": split,
        "pictures": len(dataset.split(split)),
        "look": look,
        "alarms": alarms,
        "chosen_on": chosen_on,
    }
    content = {**about, **_results(figures, about)}
    try:
        for label, its in by_label.items():
            place = folder if len(by_label) == 1 else folder / label
            place.mkdir(parents=True, exist_ok=True)
            _curves(its, place)
            _coco(its[0], dataset, place, split)
            missed = _misses(its[0], dataset, place / "misses.png", split)
            wrong = _alarms(its[0], dataset, place / "false_alarms.png", split)
            text = _text({**about, **_results(its, about)}, missed, wrong)
            (place / "report.md").write_text("\n".join(text) + "\n")
        if len(by_label) > 1:
            (folder / "report.md").write_text("\n".join(_overview(content)) + "\n")
        if run:
            with (folder / "report.md").open("a") as report:
                report.write("\n".join(_training(run, folder)) + "\n")
        (folder / "evaluation.json").write_text(json.dumps(content, indent=1) + "\n")
    except OSError as error:
        raise OutputFailed(f"the report in {folder} can't be written: {error.strerror}") from None
    return content


def _results(figures: Sequence[Figures], about: dict[str, Any]) -> dict[str, Any]:
    """Return the part of an evaluation's JSON with the proposed threshold and the figures.

    `about` is the other part. With several labels the threshold is the lowest that is proposed for
    one of them.
    """
    proposals = [each.proposed for each in figures if each.proposed]
    content = {
        "proposed_threshold": round(min(proposals), PLACES) if proposals else None,
        "models": [each.summary() for each in figures],
    }
    return {**content, "drawbacks": drawbacks_of(stated(about | content))}


def _head(content: dict[str, Any]) -> list[str]:
    """Return the first lines of a report: what was evaluated, and the results in short."""
    return [
        "# Evaluation",
        "",
        f"{counted(content['pictures'], 'picture')} of the split `{content['split']}` "
        f"of the data set `{content['data'][:16]}`, {content['look']}.",
        "",
        *_summary(content),
    ]


def _overview(content: dict[str, Any]) -> list[str]:
    """Return the lines of a report on several labels, with a row for each."""
    names = ("recall", "precision", "threshold")
    rows = []
    for each in content["models"]:
        label = each["label"]
        for title, hidden in _with_served([each]):
            exposed = f"{hidden['exposed']:,} of {hidden['faces']:,}"
            alarms = f"{hidden['false_alarms_a_picture']:.2f}"
            figures = [_shown(each["AP50"]), *(_shown(hidden[name]) for name in names)]
            rows.append([f"[{label}]({label}/report.md)", title, *figures, alarms, exposed])
    head = ("label", "model", "AP50", *names, "false alarms a picture", "exposed")
    return [
        *_head(content),
        *table(head, rows),
    ]


def lines(content: dict[str, Any]) -> list[str]:
    """Return the figures of each model, and the proposed threshold."""
    has_other_labels = any(each["label"] != FACE for each in content["models"])
    found = []
    for each in content["models"]:
        name = f"{each['model']}, {each['label']}" if has_other_labels else each["model"]
        found.append(
            f"{name}: mAP {each['mAP']}, AP50 {each['AP50']}, "
            f"recall {each['recall']} at {each['threshold']}, {_hidden_line(each)}"
        )
        if served := each["as_served"]:
            found.append(
                f"{name}, as served: recall {served['recall']} at {served['threshold']}, "
                f"{_hidden_line(served)}"
            )
    return found + threshold_lines(content)


def _hidden_line(figures: dict[str, Any]) -> str:
    return f"exposed {figures['exposed']} of {figures['faces']}, spill {figures['spill']:.2%}"


def threshold_lines(content: dict[str, Any]) -> list[str]:
    """Return the proposed threshold in words, or the reason why there is none.

    Lines on the labels that have none follow, if others have one.
    """
    threshold = content["proposed_threshold"]
    measured = content["models"][0]["threshold"]
    if threshold is None:
        what = {"face": "a face"}.get(_kind(content), "an object")
        return [f"no threshold proposed: {_reason(content, what)}; measured at {measured:g}"]
    line = f"proposed threshold: {threshold:g}"
    # The second figures of a label are those of the bundled model.
    own = {each["label"]: each["proposed_threshold"] for each in reversed(content["models"])}
    if content["chosen_on"] != content["split"]:
        return [f"{line}, by the evaluation of the split {content['chosen_on']}"]
    if len(own) > 1:
        proposals = (f"{label} {its:g}" for label, its in reversed(own.items()) if its is not None)
        line += f", the lowest of {', '.join(proposals)}"
    if measured != threshold:
        line += f"; measured at {measured:g}, the lowest of all labels"
    if content["split"] != "val":
        line += "; `veil train export` uses that of the split val only"
    without = (label for label, its in reversed(own.items()) if its is None)
    return [
        line,
        *(f"no threshold proposed for {one}: {_reason(content, 'one')}" for one in without),
    ]


def _reason(content: dict[str, Any], what: str) -> str:
    """Return the reason why no threshold is proposed for `what` is to be found."""
    return (
        f"none up to {MAX_THRESHOLD:g} finds {what} with at most {content['alarms']:g} false "
        "alarms a picture"
    )


def _text(content: dict[str, Any], missed: int, alarms: int) -> list[str]:
    models = content["models"]
    names = [each["model"] for each in models]
    kind = _kind(content)

    def rows(keys: Sequence[tuple[str, str]]) -> list[list[str]]:
        return [[title, *(_shown(each[key]) for each in models)] for title, key in keys]

    rates = list(models[0]["recall_by_false_alarms"])
    titles, hidden = zip(*_with_served(models), strict=True)
    exposed = [
        f"{each['exposed']:,} of {each['faces']:,} ({each['exposed'] / each['faces']:.2%})"
        for each in hidden
    ]
    return [
        *_head(content),
        "## Found",
        "",
        "Average precision as COCO measures it (pycocotools), "
        f"by the side of a square as large as the {kind}.",
        JUDGED.format(kind=kind),
        "",
        *table(("", *names), rows([("mAP, IoU 0.5 to 0.95", "mAP"), ("AP50", "AP50")])),
        "",
        *table(
            (f"AP50 of {kind}s", *names),
            rows([(size_name(size), size_name(size)) for size in SIZES]),
        ),
        "",
        *table(
            ("false alarms a picture", *(f"recall, {name}" for name in names)),
            [
                [rate, *(f"{each['recall_by_false_alarms'][rate]:.3f}" for each in models)]
                for rate in rates
            ],
        ),
        "",
        "A dot is at the model's threshold. It can be off the curve, because passes are merged "
        "differently at the threshold than at the lowest score of the curve.",
        "",
        "![Precision and recall](precision_recall.png)",
        "",
        "![Recall and false alarms](recall_by_false_alarms.png)",
        "",
        "![By threshold](by_threshold.png)",
        "",
        "## Hidden",
        "",
        HIDDEN_FACES if models[0]["label"] == FACE else HIDDEN_OBJECTS,
        "",
        *([AS_SERVED, ""] if models[0]["as_served"] else []),
        *table(
            ("at the threshold", *titles),
            [
                *(
                    [name, *(_shown(each[name]) for each in hidden)]
                    for name in ("threshold", "recall", "precision")
                ),
                [
                    "false alarms a picture",
                    *(f"{each['false_alarms_a_picture']:.2f}" for each in hidden),
                ],
                ["exposed", *exposed],
                ["spill", *(f"{each['spill']:.2%}" for each in hidden)],
            ],
        ),
        "",
        f"## {names[0]}: the worst of {missed:,} missed {kind}s",
        "",
        *(
            [f"![Missed {kind}s](misses.png)", "", "Blue: labelled. Green: found nearby."]
            if missed
            else ["None is missed."]
        ),
        "",
        f"## {names[0]}: the surest of {alarms:,} false alarms",
        "",
        *(
            ["![False alarms](false_alarms.png)", "", "Red: found. Blue: labelled."]
            if alarms
            else ["There is none."]
        ),
    ]


def _with_served(models: Sequence[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and the figures of each of `models`, and those of it as served."""
    for each in models:
        yield each["model"], each
        if each["as_served"]:
            yield f"{each['model']}, as served", each["as_served"]


def _kind(content: dict[str, Any]) -> str:
    """Return the word for what the models of an evaluation were to find."""
    return kind_of(tuple({each.get("label", FACE) for each in content["models"]}))


def _training(run: Run, folder: Path) -> list[str]:
    """Return the section on the training of a run, with a copy of its curves in `folder`."""
    shutil.copyfile(run.folder / CURVES, folder / CURVES)
    recipe = [
        [
            name.replace("_", " "),
            ", ".join(value) if isinstance(value, list | tuple) else str(value),
        ]
        for name, value in run.recipe.content.items()
    ]
    return [
        "",
        "## Training",
        "",
        f"{run.steps_made():,} of {counted(run.recipe.steps, 'step')} of the recipe "
        f"`{run.recipe.digest[:16]}` on the data set `{run.data[:16]}`.",
        "",
        *table(("option", "value"), recipe),
        "",
        f"![Loss by step]({CURVES})",
    ]


def _summary(content: dict[str, Any]) -> list[str]:
    lines = []
    for line in threshold_lines(content):
        lines += [f"**{line[0].upper()}{line[1:]}.**", ""]
    if content["drawbacks"]:
        lines += ["The evaluation warns of this:", ""]
        lines += [f"- {drawback}" for drawback in content["drawbacks"]]
        lines.append("")
    return lines


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _curves(figures: Sequence[Figures], folder: Path) -> None:
    main = figures[0]
    kinds = f"{kind_of((main.label,))}s"
    chosen = {}
    recalls = {}
    for each in figures:
        recall, precision, false_alarms = each.hidden.at_threshold()
        title = f"{each.name} at {each.threshold:.2f}"
        chosen[title] = recall, math.nan if precision is None else precision
        recalls[title] = max(false_alarms, LEAST_ALARMS), recall
    charts.lines(
        folder / "precision_recall.png",
        "Precision and recall",
        f"recall, share of the {kinds}",
        "precision, share of the detections",
        {
            f"{each.name}, AP50 {_shown(each.precision['AP50'])}": (
                each.curve.recall.tolist(),
                each.curve.precision.tolist(),
            )
            for each in figures
        },
        limits=SHARES,
        width=SHARES,
        dots=chosen,
    )
    charts.lines(
        folder / "recall_by_false_alarms.png",
        "Recall by false alarms",
        "false alarms a picture",
        f"recall, share of the {kinds}",
        {
            each.name: (each.curve.alarms.clip(LEAST_ALARMS).tolist(), each.curve.recall.tolist())
            for each in figures
        },
        limits=SHARES,
        logarithmic=True,
        dots=recalls,
    )
    thresholds = main.curve.thresholds.tolist()
    charts.lines(
        folder / "by_threshold.png",
        f"{main.name} by threshold",
        "threshold, lowest score of a detection that counts",
        "share",
        {
            f"recall, of the {kinds}": (thresholds, main.curve.recall.tolist()),
            "precision, of the detections": (thresholds, main.curve.precision.tolist()),
        },
        limits=SHARES,
        width=SHARES,
        marks={"proposed" if main.proposed == main.threshold else "measured": main.threshold},
    )


def _coco(figures: Figures, dataset: Dataset, folder: Path, split: str) -> None:
    """Write the labels and the detections, by which others may compute the average precision."""
    labels, detections = as_coco(figures.everything, figures.label)
    for image, picture in zip(labels["images"], dataset.split(split), strict=True):
        image |= {"file_name": picture.file, "width": picture.width, "height": picture.height}
    (folder / LABELS).write_text(json.dumps(labels) + "\n")
    (folder / DETECTIONS).write_text(json.dumps(detections) + "\n")


def _misses(figures: Figures, dataset: Dataset, path: Path, split: str) -> int:
    """Draw the largest missed faces, which show most of a person; return the number of all."""
    pictures = dataset.split(split)
    missed = []
    for number, judged in enumerate(figures.hidden.shown):
        for face, found_at in zip(judged.faces, judged.found_at, strict=True):
            if not found_at:
                missed.append((float(sides([face])[0]), number, face))
    missed.sort(key=lambda miss: miss[0], reverse=True)
    tiles = []
    for _, number, face in missed[:TILES]:
        boxes = [(box, FOUND) for box in figures.hidden.shown[number].found.boxes_xyxy]
        tiles.append(
            _tile(
                dataset.pixels(pictures[number]),
                face,
                [*boxes, (face, LABELLED)],
            )
        )
    _sheet(tiles, path)
    return len(missed)


def _alarms(figures: Figures, dataset: Dataset, path: Path, split: str) -> int:
    """Draw the false alarms with the highest scores; return the number of all."""
    pictures = dataset.split(split)
    alarms = []
    for number, judged in enumerate(figures.hidden.shown):
        found = judged.found
        wrong = np.flatnonzero(judged.face_of == -1)
        alarms += [(float(found.scores[i]), number, found.boxes_xyxy[i]) for i in wrong]
    alarms.sort(key=lambda alarm: alarm[0], reverse=True)
    tiles = []
    for _, number, box in alarms[:TILES]:
        labelled = [(face, LABELLED) for face in figures.hidden.shown[number].faces]
        tiles.append(_tile(dataset.pixels(pictures[number]), box, [*labelled, (box, ALARM)]))
    _sheet(tiles, path)
    return len(alarms)


def _tile(pixels: Pixels, box: Boxes, boxes: Sequence[tuple[Any, tuple[int, int, int]]]) -> Pixels:
    """Return a square of TILE pixels around `box`, with `boxes` drawn in their colours."""
    side = max(float((box[2:] - box[:2]).max()) * AROUND, 16.0)
    left, top = ((box[:2] + box[2:]) / 2 - side / 2).tolist()
    scale = TILE / side
    shift = np.array([[scale, 0, -left * scale], [0, scale, -top * scale]])
    size = TILE, TILE
    warped = cv2.warpAffine(pixels, shift, size, flags=cv2.INTER_AREA, borderValue=PAPER)
    shown = warped.astype(np.uint8)
    for sides_, colour in boxes:
        corners = [(v - o) * scale for v, o in zip(sides_, (left, top) * 2, strict=True)]
        sheets.draw(shown, corners, colour)
    return shown


def _sheet(tiles: Sequence[Pixels], path: Path) -> None:
    if not tiles:
        path.unlink(missing_ok=True)
        return
    path.write_bytes(sheets.encoded(sheets.sheet(tiles, TILE, COLUMNS), ".png"))
