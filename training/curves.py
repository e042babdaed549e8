"""The learning curves of a run: a CSV line for each step, TensorBoard events, and a plot."""

import csv
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from training import charts

FIELDS = (
    "step",
    "loss",
    "faces_loss",
    "boxes_loss",
    "learning_rate",
    "val_loss",
    "val_ap50",
    "seconds",
)
SPANS = 50  # points of a plotted curve


@dataclass
class Curves:
    """A writer of both the CSV file `log` and the TensorBoard `events`.

    A run that resumes at `step` discards the lines of later steps, because it repeats them.
    """

    log: Path
    events: Path
    step: int

    def __post_init__(self) -> None:
        kept = [line for line in read(self.log) if int(line["step"]) <= self.step]
        partial = self.log.with_name(self.log.name + ".partial")
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerows(kept)
        partial.replace(self.log)
        self._file = self.log.open("a", newline="")
        self._csv = csv.DictWriter(self._file, FIELDS)
        self._tensorboard = EventFileWriter(str(self.events))
        # A START event makes TensorBoard discard later steps, too.
        start = SessionLog(status=SessionLog.START)
        self._tensorboard.add_event(
            Event(wall_time=time.time(), step=self.step + 1, session_log=start)
        )

    def add(self, line: dict[str, Any]) -> None:
        self._csv.writerow(line)
        self._file.flush()
        values = [
            Summary.Value(tag=name, simple_value=line[name])
            for name in FIELDS[1:]
            if isinstance(line.get(name), float)
        ]
        self._tensorboard.add_event(
            Event(wall_time=time.time(), step=line["step"], summary=Summary(value=values))
        )

    def close(self) -> None:
        self._file.close()
        self._tensorboard.close()


def read(log: Path) -> list[dict[str, str]]:
    """Return the lines of a log, without a last line that a kill truncated."""
    if not log.exists():
        return []
    with log.open(newline="") as file:
        return [line for line in csv.DictReader(file) if line.get("seconds")]


def precisions(log: Path) -> dict[int, float]:
    """Return the AP50 of the split val by step: of the checkpoints, and of the weights at step 0.

    A run that starts from random weights has none at step 0.
    """
    measured = [line for line in read(log) if line.get("val_ap50")]
    return {int(line["step"]): float(line["val_ap50"]) for line in measured}


def plot(log: Path, path: Path, titles: Mapping[str, str]) -> None:
    """Draw the losses of a log, as means of a fiftieth of its steps, and that of the split val.

    `titles` are those of the losses of single outputs of the network.
    """
    every = read(log)
    lines = [line for line in every if line["loss"]]  # the line of step 0 has none
    span = max(1, len(lines) // SPANS)
    steps = [float(line["step"]) for line in lines]
    curves = {}
    parts = [(title, f"{name}_loss") for name, title in titles.items()]
    for title, name in (("loss", "loss"), *parts):
        losses = [float(line[name]) for line in lines]
        curves[title] = _means(steps, span), _means(losses, span)
    if checked := [line for line in every if line["val_loss"]]:
        curves["loss on the split val"] = (
            [float(line["step"]) for line in checked],
            [float(line["val_loss"]) for line in checked],
        )
    title = f"Training: means of {span} steps" if span > 1 else "Training"
    charts.lines(path, title, "training step", "loss per object", curves, limits=(0, None))


def _means(values: list[float], span: int) -> list[float]:
    """Return the mean of each run of `span` values; the last run may be shorter."""
    return [fmean(values[i : i + span]) for i in range(0, len(values), span)]
