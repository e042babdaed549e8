"""Arrays in a file that is whole or not there, whenever the process is killed or the disk is full."""

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.errors import OutputFailed, TrainingFailed

PARTIAL = ".partial"


def save(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Put `arrays` in the place of what `path` held; OutputFailed, and `path` as it was, if they can't be written."""
    partial = path.with_name(path.name + PARTIAL)  # of a kill: overwritten by the next
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


def load(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays in `path`; TrainingFailed if it is no such file."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            return dict(kept)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise TrainingFailed(f"{path} can't be read ({type(error).__name__}): start the run anew") from None


def numbered(prefix: str, variables: Any) -> dict[str, NDArray[Any]]:
    """Keras variables as arrays, named by their position."""
    return {f"{prefix}{i}": np.asarray(variable) for i, variable in enumerate(variables)}


def restore(prefix: str, variables: Any, arrays: Mapping[str, NDArray[Any]], path: Path) -> None:
    """Set Keras variables to what `numbered` made of them; TrainingFailed if they are another network's."""
    names = [f"{prefix}{i}" for i in range(len(variables))]
    stored = [name for name in arrays if name.startswith(prefix)]
    fits = len(stored) == len(names) and all(
        arrays[name].shape == tuple(variable.shape) for name, variable in zip(names, variables, strict=True)
    )
    if not fits:
        raise TrainingFailed(f"{path} holds the weights of another network")
    for name, variable in zip(names, variables, strict=True):
        variable.assign(arrays[name])
