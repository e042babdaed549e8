"""A training run on disk: its recipe, the digest of its data, its progress and its results."""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tasks.errors import OutputFailed, TrainingFailed
from training.data.dataset import FACE
from training.network import CENTERFACE, DEFAULT
from worker.local_files import write_atomically

VERSION = 1
DESCRIPTION, CHECKPOINT, WEIGHTS, LOG = "run.json", "checkpoint.npz", "weights.npz", "log.csv"
EVALUATION = "evaluation.json"  # the last evaluation of the split "val"
CURVES, EVENTS = "curves.png", "events"
LOCK = "lock"
REMAINS = LOG, EVENTS, LOCK  # what a run leaves that fails before its first step
SHOWN_DIGITS = 8  # of a digest in a message


@dataclass(frozen=True)
class Recipe:
    """All options that affect the weights.

    `size` is d0 to d2, or centerface for a network that starts from the default model's. `side` is
    the side of the training squares in pixels, and `steps` the number of batches of `batch`
    pictures. `weights` are the initial weights, of the backbone or of a whole network: none,
    imagenet, or the SHA-256 of a file. `classes` are the labels of the data set.
    """

    size: str
    side: int
    batch: int
    steps: int
    learning_rate: float
    seed: int
    augment: bool
    weights: str
    precision: str
    classes: tuple[str, ...] = (FACE,)

    @property
    def content(self) -> dict[str, Any]:
        """The fields, without the classes if these are faces alone, as in Veil 0.4."""
        fields = asdict(self)
        if self.classes == (FACE,):
            del fields["classes"]
        return fields

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Run:
    """The folder of a run, its recipe and the digest of its data set."""

    folder: Path
    recipe: Recipe
    data: str

    @classmethod
    def load(cls, folder: Path) -> "Run":
        """Return the run in `folder`; raise TrainingFailed if there is none."""
        try:
            content = json.loads((folder / DESCRIPTION).read_text())
            recipe = content["recipe"]
            classes = tuple(map(str, recipe.pop("classes", (FACE,))))
            return cls(folder, Recipe(**recipe, classes=classes), content["data"])
        except FileNotFoundError:
            if not folder.exists():
                raise TrainingFailed(f"{folder} does not exist: give the folder of a run") from None
            raise TrainingFailed(
                f"{folder} holds no {DESCRIPTION}: begin a run with `veil train fit`"
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TrainingFailed(
                f"{folder / DESCRIPTION} is damaged ({type(error).__name__}): begin anew"
            ) from None

    @classmethod
    def open(cls, folder: Path, recipe: Recipe, data: str) -> "Run":
        """Return a new run, or the one in `folder`; raise TrainingFailed if that is another one.

        A run that failed before its first step does not count. Nothing is written before `held`.
        """
        run = cls(folder, recipe, data)
        run._refuse_another()
        return run

    def _refuse_another(self) -> None:
        """Raise TrainingFailed if the folder contains another run that has made a step."""
        if not (self.folder / DESCRIPTION).exists():
            return
        before, now = Run.load(self.folder).options(), self.options()
        differing = [name for name in now if now[name] != before.get(name)]
        differing += [name for name in before if name not in now]
        if differing and self.has_steps:
            had, wanted = (
                ", ".join(
                    f"{name} {options[name]}".strip() for name in differing if name in options
                )
                for options in (before, now)
            )
            kind, remedy = "run", "give its options to resume it, or choose another --to"
            if self.is_finished:
                kind = "finished run"
                remedy = f"train its network further with --start {self.folder} and another --to"
            raise TrainingFailed(f"{self.folder} is a {kind} with {had}, not {wanted}: {remedy}")

    def options(self) -> dict[str, str]:
        """Return the options of `veil train fit` that set the recipe, and the data set's digest."""
        fields = asdict(self.recipe)
        size, weights = fields.pop("size"), _initial_weights(fields.pop("weights"))
        labels = ",".join(fields.pop("classes"))
        is_augmented = fields.pop("augment")
        network = {"--start": weights}
        if size != CENTERFACE:
            network = {"--size": size, "--weights": weights}
        return {
            **network,
            **{f"--{name.replace('_', '-')}": str(value) for name, value in fields.items()},
            "--augment" if is_augmented else "--no-augment": "",
            "the labels": labels,
            "the data set": self.data[:SHOWN_DIGITS],
        }

    @property
    def is_finished(self) -> bool:
        return (self.folder / WEIGHTS).is_file()

    @property
    def has_steps(self) -> bool:
        """True if the run has made a step, so that a run with another recipe can't replace it."""
        return self.has_checkpoint or self.is_finished or self.steps_made() > 0

    def steps_made(self) -> int:
        """Return the last step in the log, 0 without one: after the end, the number of steps."""
        try:
            _header, *lines = (self.folder / LOG).read_text().splitlines()
        except (FileNotFoundError, ValueError):
            return 0
        return int(lines[-1].partition(",")[0]) if lines else 0

    @property
    def has_checkpoint(self) -> bool:
        return (self.folder / CHECKPOINT).is_file()

    def require_finished(self) -> None:
        """Raise TrainingFailed if the run isn't finished."""
        if not self.is_finished:
            raise TrainingFailed(
                f"{self.folder} isn't finished: go on with the same `veil train fit`, "
                "or end it at its last checkpoint with the same command and --finish"
            )

    def require_checkpoint(self, flag: str) -> None:
        """Raise TrainingFailed if there is nothing that `flag` could resume or finish."""
        if not (self.has_checkpoint or self.is_finished):
            raise TrainingFailed(
                f"{self.folder} has no checkpoint to resume from: check --to; leave out {flag} to "
                "begin a new run"
            )

    def threshold(self) -> float | None:
        """Return the score threshold that the last evaluation of `val` proposed, or None."""
        proposed = self.evaluation().get("proposed_threshold")
        return None if proposed is None else float(proposed)

    def evaluation(self) -> dict[str, Any]:
        """Return the content of the last evaluation of the split `val`; empty if there is none."""
        try:
            content: dict[str, Any] = json.loads((self.folder / EVALUATION).read_text())
            # Veil 0.2 wrote evaluations of every split to this file.
            return content if content["split"] == "val" else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    @contextmanager
    def held(self) -> Iterator[None]:
        """Write the description of the run, and lock its folder, which is made if need be.

        If the run has made no step at the end, its description is removed, and so is a folder that
        this call made: neither blocks the next try. Raise TrainingFailed if another process trains
        in the folder, or if it contains another run, and OutputFailed if it can't be written.
        """
        is_new = not self.folder.exists()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = (self.folder / LOCK).open("w")
        except OSError as error:
            raise OutputFailed(f"{self.folder} can't be written: {error.strerror}") from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise TrainingFailed(
                    f"another process trains in {self.folder}: wait for its end, or choose "
                    "another --to"
                ) from None
            if not os.fstat(lock.fileno()).st_nlink:
                # The process that held the lock has failed, and has removed the file meanwhile.
                raise TrainingFailed(f"another process trained in {self.folder}: try again")
            self._refuse_another()
            try:
                self._describe()
                yield
            finally:
                if not self.has_steps:
                    self._remove(is_new)

    def _describe(self) -> None:
        content = {"version": VERSION, "recipe": self.recipe.content, "data": self.data}
        write_atomically(self.folder / DESCRIPTION, (json.dumps(content, indent=1) + "\n").encode())

    def _remove(self, with_folder: bool) -> None:
        """Remove the description and the lock or, `with_folder`, the folder and all its files."""
        if with_folder:
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        for name in (DESCRIPTION, LOCK):
            (self.folder / name).unlink(missing_ok=True)


def remedy(folder: Path) -> str:
    """Return what to do about a damaged result of the finished run in `folder`."""
    if not (folder / CHECKPOINT).is_file():
        return "start the run anew"
    return (
        f"remove {folder / WEIGHTS}, and give the same `veil train fit` with --finish, which makes "
        "the results anew from the last checkpoint"
    )


def _initial_weights(weights: str) -> str:
    """Return the initial weights of a recipe as an option names them, a file by its digest."""
    from worker.detection.centerface.default import WEIGHTS as PUBLISHED

    if weights == PUBLISHED.sha256:
        return DEFAULT
    return weights if weights in ("none", "imagenet") else f"of SHA-256 {weights[:SHOWN_DIGITS]}"


def stated(content: dict[str, Any]) -> dict[str, Any]:
    """Return the part of an evaluation's JSON that an exported model states in its veil.json.

    The figures are those of FACE, or else of the first label. ``labels`` has those of each label,
    and of the bundled detector that finds it.
    """
    names = ("threshold", "exposed", "faces", "spill")
    by_label: dict[str, list[dict[str, Any]]] = {}
    for figures in content["models"]:
        its = {name: figures[name] for name in names}
        by_label.setdefault(figures.get("label", FACE), []).append(its)
    labels = {
        label: {**results[0], "bundled": results[1] if len(results) > 1 else None}
        for label, results in by_label.items()
    }
    main = labels.get(FACE) or next(iter(labels.values()))
    about = {name: content[name] for name in ("data", "split", "pictures", "look")}
    return {**about, **main, "labels": labels}
