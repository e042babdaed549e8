"""Arrays in a file that is replaced atomically: a kill or a full disk leaves the previous file."""

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.errors import OutputFailed, TrainingFailed
from training.run import WEIGHTS, remedy

PARTIAL = ".partial"


def save(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Replace `path` with `arrays`; raise OutputFailed, and keep the file, if that fails."""
    partial = path.with_name(path.name + PARTIAL)  # the next call overwrites one that a kill left
    try:
        with partial.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        kept = "; the one before it is kept" if path.exists() else ""
        raise OutputFailed(f"{path} can't be written: {error.strerror}{kept}") from None


def load(path: Path, advice: str = "start the run anew") -> dict[str, NDArray[Any]]:
    """Return the arrays in `path`; raise TrainingFailed, with `advice`, if it can't be read."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            return dict(kept)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise TrainingFailed(f"{path} can't be read ({type(error).__name__}): {advice}") from None


def step(path: Path) -> int:
    """Return the step of the checkpoint in `path`; raise TrainingFailed if it can't be read."""
    return int(load(path)["step"])


def restore_finished(folder: Path, model: Any) -> None:
    """Give the Keras network `model` the weights of the finished run in `folder`.

    Raise TrainingFailed if they can't be read, or belong to another network.
    """
    path = folder / WEIGHTS
    restore("w", model.weights, load(path, remedy(folder)), path)


def numbered(prefix: str, variables: Any) -> dict[str, NDArray[Any]]:
    """Return Keras variables as arrays, named by their position."""
    return {f"{prefix}{i}": np.asarray(variable) for i, variable in enumerate(variables)}


def restore(prefix: str, variables: Any, arrays: Mapping[str, NDArray[Any]], path: Path) -> None:
    """Set Keras variables to the arrays that `numbered` returned.

    Raise TrainingFailed if the arrays belong to another network.
    """
    expected = {f"{prefix}{i}": tuple(variable.shape) for i, variable in enumerate(variables)}
    stored = {name: array.shape for name, array in arrays.items() if name.startswith(prefix)}
    if stored != expected:
        raise TrainingFailed(f"{path} holds the weights of another network")
    for name, variable in zip(expected, variables, strict=True):
        variable.assign(arrays[name])
