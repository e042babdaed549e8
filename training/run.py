"""A training run on disk: its recipe, the digest of its data, its progress and its results."""

import fcntl
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tasks.errors import OutputFailed, TrainingFailed

VERSION = 1
DESCRIPTION, CHECKPOINT, WEIGHTS, LOG = "run.json", "checkpoint.npz", "weights.npz", "log.csv"
EVALUATION = "evaluation.json"


@dataclass(frozen=True)
class Recipe:
    """All options that affect the weights.

    `size` is d0 to d2, `side` the side of the training squares in pixels, and `steps` the number of
    batches of `batch` pictures. `weights` are the initial weights of the backbone: none, imagenet,
    or the SHA-256 of a file.
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

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


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
            return cls(folder, Recipe(**content["recipe"]), content["data"])
        except FileNotFoundError:
            raise TrainingFailed(
                f"{folder} holds no {DESCRIPTION}: begin a run with `veil train fit`"
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TrainingFailed(
                f"{folder / DESCRIPTION} is damaged ({type(error).__name__}): begin anew"
            ) from None

    @classmethod
    def open(cls, folder: Path, recipe: Recipe, data: str) -> "Run":
        """Begin or resume a run; raise TrainingFailed if `folder` contains another one."""
        if (folder / DESCRIPTION).exists():
            known = cls.load(folder)
            before, now = known.identity, cls(folder, recipe, data).identity
            if differing := [name for name in now if now[name] != before[name]]:
                raise TrainingFailed(
                    f"{folder} is a run with another {', '.join(differing)}: choose another --to"
                )
            return known
        run = cls(folder, recipe, data)
        text = json.dumps({"version": VERSION, "recipe": asdict(recipe), "data": data}, indent=1)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            partial = folder / f".{DESCRIPTION}"
            partial.write_text(text + "\n")
            partial.replace(folder / DESCRIPTION)
        except OSError as error:
            raise OutputFailed(f"{folder} can't be written: {error.strerror}") from None
        return run

    @property
    def identity(self) -> dict[str, Any]:
        return {**asdict(self.recipe), "data": self.data}

    @property
    def is_finished(self) -> bool:
        return (self.folder / WEIGHTS).is_file()

    def threshold(self) -> float | None:
        """Return the score threshold that the last evaluation proposed, or None."""
        try:
            proposed: Any = json.loads((self.folder / EVALUATION).read_text())["proposed_threshold"]
        except (OSError, ValueError, KeyError):
            return None
        return float(proposed)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lock the folder; raise TrainingFailed if another process trains in it."""
        with (self.folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise TrainingFailed(f"another process trains in {self.folder}") from None
            yield
