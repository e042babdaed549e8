"""``veil train fit``: train a detector on a data set; a run that was killed resumes."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tasks.errors import OutputFailed, TrainingFailed
from training import checkpoint, curves
from training.backend import jit, keras, layers, reproducible
from training.batches import Batch, Batches
from training.data.dataset import Dataset
from training.network import Network
from training.networks import network_of
from training.optimizer import LONGEST_AVERAGE, FlatAdamW
from training.run import CHECKPOINT, CURVES, EVENTS, LOG, WEIGHTS, Recipe, Run
from training.validation import Validation
from worker.commands.progress import progress_bar
from worker.detection.detector import canvases_of
from worker.pixels import Pixels
from worker.settings import WorkerSettings

WARM_UP = 0.05  # share of the steps
# In a short run, weights are averaged over its last tenth, and normalisations over its last sixth,
# but over some ten steps at least: the statistics of single batches differ so much that a network
# which normalises other pictures by them has logits of 100 and more.
AVERAGED, NORMALISED, SHORTEST_NORMALISED, LONGEST_NORMALISED = 10, 6, 0.9, 0.99
SETTLING_BATCHES = 16
FINISHING_PICTURES = 12  # of the training split, by which a network in 8 bits is calibrated

Report = Callable[[dict[str, Any]], None]


def fit(
    run: Run,
    dataset: Dataset,
    weights: str | None,
    every: int,
    report: Report,
    *,
    ends_here: bool = False,
    begun: Callable[[], None] = lambda: None,
) -> None:
    """Train `run` from its last checkpoint to its end, with a checkpoint after `every` steps.

    `weights` are initial ones, as Network.start takes them, or None. `report` gets a line for the
    start, if it has initial weights, for the first two steps and for each checkpoint: the values of
    the log, `steps`, the number of all, `seconds_left`, which is None until the second step, and
    whether there is a `checkpoint`. With `ends_here` the run ends at its last checkpoint, without
    further steps. `begun` is called before the work on a run that isn't finished, when no other
    process can train in its folder any more.

    Raise TrainingFailed if the loss is not a number, DatasetInvalid if the data set has no faces,
    and OutputFailed if the disk is full. The last checkpoint remains intact in each case, and a run
    that fails before its first step leaves none.
    """
    recipe = run.recipe
    network = network_of(recipe.size, recipe.classes)
    batches = _batches(dataset, "train", recipe, network)
    try:
        with run.held():
            if run.is_finished:
                return
            begun()
            reproducible(recipe.seed)
            trained = _Trained(recipe, network, weights, next(batches.starting(0, 1)))
            step = trained.restore(run.folder / CHECKPOINT)
            end = step if ends_here else recipe.steps
            step = _train(run, dataset, trained, batches, step, end, every, report)
            trained.settle(batches, step)
            curves.plot(run.folder / LOG, run.folder / CURVES, network.titles)
            network.finish(trained.model, canvases(dataset), run.folder)
            checkpoint.save(run.folder / WEIGHTS, checkpoint.numbered("w", trained.model.weights))
    except OSError as error:
        raise OutputFailed(
            f"{run.folder} can't be written: {error.strerror}: make room, and go on"
        ) from None


def finished_model(run: Run) -> Any:
    """Return the network with the weights of a run; raise TrainingFailed if it isn't finished."""
    run.require_finished()
    model = network_of(run.recipe.size, run.recipe.classes).build()
    checkpoint.restore_finished(run.folder, model)
    return model


def canvases(dataset: Dataset) -> Iterator[Pixels]:
    """Yield canvases of some training pictures, as a worker with default settings makes them."""
    look = replace(WorkerSettings().pass_settings(), turned="never")
    pictures = dataset.split("train")
    for picture in pictures[:: math.ceil(len(pictures) / FINISHING_PICTURES)]:
        yield from canvases_of(dataset.pixels(picture), look)


class _Trained:
    """The network and its optimizer: the state of a run."""

    def __init__(self, recipe: Recipe, network: Network, weights: str | None, first: Any) -> None:
        keras.config.set_dtype_policy(recipe.precision)
        self.model = network.build()
        self.is_started = weights is not None
        if weights is not None:
            network.start(self.model, weights, recipe.seed)
            for layer in network.frozen(self.model):
                layer.trainable = False
        momentum = max(SHORTEST_NORMALISED, 1 - NORMALISED / recipe.steps)
        self._set_momentum(min(LONGEST_NORMALISED, momentum))
        warm_up = max(1, round(WARM_UP * recipe.steps))
        schedule = keras.optimizers.schedules.CosineDecay(
            0.0,
            max(1, recipe.steps - warm_up),
            warmup_target=recipe.learning_rate,
            warmup_steps=warm_up,
        )
        average = min(LONGEST_AVERAGE, max(0.0, 1 - AVERAGED / recipe.steps))
        self.flat = FlatAdamW(schedule, average, is_relative=network.is_relative)
        self.model.compile(optimizer=self.flat, loss=network.losses(), jit_compile=jit())
        self.optimizer = self.model.optimizer  # wrapped, if the precision needs a scaled loss
        self.optimizer.build(self.model.trainable_variables)
        # The first loss creates the metrics. Created within a step, they would make Keras trace it
        # twice.
        outputs = self.model(first.pictures[:1])
        truth = {name: values[:1] for name, values in first.truth.items()}
        self.model.compute_loss(x=None, y=truth, y_pred=outputs)

    def step(self, batch: Batch) -> dict[str, Any]:
        """Train on `batch`, and return the losses."""
        losses: dict[str, Any] = self.model.train_on_batch(
            batch.pictures, batch.truth, return_dict=True
        )
        return losses

    def loss_of(self, batch: Batch) -> float:
        """Return the loss of `batch` without training on it."""
        losses = self.model.test_on_batch(batch.pictures, batch.truth, return_dict=True)
        return float(losses["loss"])

    @property
    def learning_rate(self) -> float:
        return float(self.flat.learning_rate)

    def save(self, path: Path, step: int) -> None:
        arrays = checkpoint.numbered("m", self.model.variables) | checkpoint.numbered(
            "o", self.optimizer.variables
        )
        checkpoint.save(path, {**arrays, "step": np.asarray(step)})

    def restore(self, path: Path) -> int:
        """Load the checkpoint in `path` and return its step; 0 if there is none."""
        if not path.exists():
            return 0
        arrays = checkpoint.load(path)
        step = int(arrays.pop("step"))
        checkpoint.restore("m", self.model.variables, arrays, path)
        checkpoint.restore("o", self.optimizer.variables, arrays, path)
        return step

    def settle(self, batches: Batches, step: int) -> None:
        """Use the averaged weights, and measure the statistics of their normalisations anew.

        The running statistics belong to the weights before averaging: Wu and Johnson, "Rethinking
        'Batch' in BatchNorm", arXiv:2105.07576, section 3.
        """
        self.flat.use_average()
        if not self._normalisations:
            return
        for number, batch in enumerate(batches.starting(step, step + min(SETTLING_BATCHES, step))):
            self._set_momentum(number / (number + 1))
            self.model(batch.pictures, training=True)

    @property
    def _normalisations(self) -> list[Any]:
        nested = [layer for layer in self.model.layers if isinstance(layer, keras.Model)]
        every = [layer for model in [self.model, *nested] for layer in model.layers]
        return [layer for layer in every if isinstance(layer, layers.BatchNormalization)]

    def _set_momentum(self, momentum: float) -> None:
        for layer in self._normalisations:
            layer.momentum = momentum


def _train(
    run: Run,
    dataset: Dataset,
    trained: _Trained,
    batches: Batches,
    step: int,
    end: int,
    every: int,
    report: Report,
) -> int:
    """Train from `step` to `end`, which is returned. Lines of the log after `step` are removed."""
    recipe = run.recipe
    has_validation = any(picture.split == "val" for picture in dataset.pictures)
    validation = (
        Validation(_batches(dataset, "val", recipe, batches.network)) if has_validation else None
    )
    writer = curves.Curves(run.folder / LOG, run.folder / EVENTS, step)
    started = time.monotonic()
    first = step + 1
    remaining = _Remaining(end)

    def measured() -> dict[str, Any]:
        if validation is None:
            return {}
        found = validation.measure(trained.model)
        return {"val_loss": found.loss, "val_ap50": found.ap50}

    try:
        if trained.is_started and step == 0 < end:
            line = {"step": 0, **measured(), "seconds": 0.0}
            writer.add(line)
            report({**line, "steps": end, "seconds_left": None, "checkpoint": False})
        with progress_bar("trained", total=end) as bar:
            bar.advance(step)
            for batch in batches.starting(step, end):
                rate = trained.learning_rate
                step += 1
                losses = trained.step(batch)
                line = {
                    "step": step,
                    **{name: float(loss) for name, loss in losses.items()},
                    "learning_rate": rate,
                }
                _refuse_diverged(line["loss"], step)
                is_checkpoint = step == end or step % every == 0
                if is_checkpoint:
                    line |= measured()
                    # The loss of a step is that before it.
                    after = line["val_loss"] if validation else trained.loss_of(batch)
                    _refuse_diverged(after, step)
                line["seconds"] = round(time.monotonic() - started, 2)
                writer.add(line)
                seconds_left = remaining.after(step)
                if is_checkpoint:
                    trained.save(run.folder / CHECKPOINT, step)
                # The first step shows that training has begun, and the second how long it takes.
                if is_checkpoint or step <= first + 1:
                    progress = {"steps": end, "seconds_left": seconds_left}
                    report({**line, **progress, "checkpoint": is_checkpoint})
                bar.advance()
    finally:
        writer.close()
    return step


def _refuse_diverged(loss: float, step: int) -> None:
    """Raise TrainingFailed if `loss` is not a number."""
    if not math.isfinite(loss):
        raise TrainingFailed(
            f"the loss is not a number after step {step}: "
            "lower --learning-rate, and choose another --to"
        )


class _Remaining:
    """An estimate of the time that the remaining steps take.

    The first step is not counted, because Keras compiles the network in it.
    """

    def __init__(self, steps: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._steps = steps
        self._clock = clock
        self._first: tuple[int, float] | None = None

    def after(self, step: int) -> int | None:
        """Return the estimate in seconds at the end of `step`; None after the first call."""
        if self._first is None:
            self._first = step, self._clock()
            return None
        first_step, started = self._first
        seconds_a_step = (self._clock() - started) / (step - first_step)
        return round(seconds_a_step * (self._steps - step))


def _batches(dataset: Dataset, split: str, recipe: Recipe, network: Network) -> Batches:
    augment = recipe.augment and split == "train"
    pictures = dataset.split(split)
    return Batches(dataset, pictures, network, recipe.side, recipe.batch, recipe.seed, augment)
