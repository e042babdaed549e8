"""The models of a worker: found, loaded by the engine that suits them, and tested.

TensorFlow and LiteRT take seconds to import, so functions import them when they need them.
"""

import ctypes
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from tasks.errors import ModelInvalid
from tasks.settings import PREFIX
from worker import searches
from worker.process import processors
from worker.searches import LoadedModel
from worker.settings import WorkerSettings

if TYPE_CHECKING:
    from worker.detection.model import Model

LITERT_MODULE = "ai_edge_litert"
TRAINING_RUN = "run.json"  # the description of a run: see training.run
GPU_DRIVER = "libcuda.so.1"  # of NVIDIA; TensorFlow's wheels support no other GPU


def load_models(settings: WorkerSettings) -> list[LoadedModel]:
    """Return the models of `settings`, tested.

    Raises the errors of load_model, which name the setting of a model that is not the default one,
    and ModelInvalid for one that is there twice, such as in a folder and in its ZIP.
    """
    found: list[LoadedModel] = []
    named = settings.model_addresses()
    for address, one in zip(named, searches.settings_of_models(settings), strict=True):
        try:
            found.append(loaded(load_model(one, address.setting), one))
        except ModelInvalid as error:
            if address.address is None:
                raise
            raise ModelInvalid(f"{address.setting}: {error}") from None
        same = [each for each in found[:-1] if each.model.digest == found[-1].model.digest]
        if same:
            name, other = found[-1].model.name, same[0].model.name
            raise ModelInvalid(
                f"{address.setting}: {name} is the same model as {other}: leave out one of them"
            )
    return found


def loaded(model: "Model", settings: WorkerSettings) -> LoadedModel:
    """Return `model`, which was loaded with `settings`, with its classes."""
    from worker.detection.model import stated_labels

    classes = stated_labels(model.folder) if settings.model else {}
    return LoadedModel(model, classes, settings)


def load_model(settings: WorkerSettings, named_in: str = f"{PREFIX}MODEL") -> "Model":
    """Return the one model of `settings`, tested. The default model is built on first use.

    `named_in` is the setting that names the model, for warnings.

    Raises ModelInvalid if it cannot be loaded or fails its test. Raises the errors of S3 if the
    model is stored there.
    """
    from worker.detection.centerface import known_face

    model = load_untested_model(settings)
    if settings.model is None:
        known_face.check_default(model)
        return model
    threshold = searches.lowest_threshold(settings, model.folder, model.name)
    known_face.try_own(model, threshold, loaded(model, settings).classes)
    _warn_of_evaluation(model, named_in)
    if settings.model.startswith("s3://") and settings.model_sha256 is None:
        structlog.get_logger("veil").warning(
            "the model is not pinned",
            address=settings.model,
            digest=model.digest,
            effect="whoever can write to the address decides what is hidden: "
            "set VEIL_MODEL_SHA256, or add #sha256=DIGEST in VEIL_MODELS",
        )
    return model


def _warn_of_evaluation(model: "Model", named_in: str) -> None:
    """Log a warning if the model's own evaluation says that it hides objects badly."""
    from worker.detection.evaluation import stated_evaluations

    bad = [one for one in stated_evaluations(model.folder) if one.drawbacks()]
    if bad:
        structlog.get_logger("veil").warning(
            "the model did badly in its own evaluation",
            model=model.name,
            evaluation="; ".join(drawback for one in bad for drawback in one.drawbacks()),
            evaluated_threshold=min(one.threshold for one in bad),
            effect="objects may be published, or more is hidden than need be: "
            f"train it longer, or take it out of {named_in}",
        )


def load_untested_model(settings: WorkerSettings) -> "Model":
    """Return the model of `settings`, loaded but not tested; raises the errors of load_model."""
    from worker.detection.centerface import default

    if settings.model:
        from tasks.storage.s3 import ObjectStore
        from worker.detection import own_model

        folder = own_model.folder(
            settings.model, lambda: ObjectStore.connect(settings), settings.model_sha256
        )
        return load_folder(settings, folder, name=settings.model)
    return load_folder(settings, default.default_model(), default.DIGEST, default.DIGEST_IN_8_BITS)


def load_folder(
    settings: WorkerSettings,
    folder: Path,
    digest: str | None = None,
    digest_in_8_bits: str | None = None,
    name: str | None = None,
) -> "Model":
    """Return the model in `folder`, run by the engine of `settings`, but not tested.

    The digests are those of the default model; the engines compute that of any other. `name` is its
    name in messages, by default the folder. Raises ModelInvalid for a run of `veil train fit`.
    """
    if (folder / TRAINING_RUN).is_file():
        raise ModelInvalid(
            f"{name or folder} is a training run: give what `veil train export` made of it"
        )
    if settings.engine == "litert" or _has_network_alone(folder):
        return _load_for_litert(settings, folder, digest_in_8_bits, name)
    if settings.engine == "auto" and _suits_litert(folder):
        return _load_for_litert(settings, folder, digest_in_8_bits, name)
    from worker.detection.saved_model import SavedModel

    threshold = searches.lowest_threshold(settings, folder, name or str(folder))
    return SavedModel(folder, digest, threshold, name)


def _load_for_litert(
    settings: WorkerSettings, folder: Path, digest: str | None, name: str | None
) -> "Model":
    if not find_spec(LITERT_MODULE):
        raise ModelInvalid(
            f"{name or folder} needs LiteRT, which is not installed: pip install ai-edge-litert"
        )
    from worker.detection.centerface.maps import MIN_SCORE
    from worker.detection.detector import WEAK_SCORE_FACTOR
    from worker.detection.litert import QuantizedModel

    lanes = min(settings.pictures_in_flight(), processors.available())
    # The network scores many points very low, and comparing these with each other takes most of the
    # time. The detector uses no score below this one.
    threshold = searches.lowest_threshold(settings, folder, name or str(folder))
    min_score = max(MIN_SCORE, WEAK_SCORE_FACTOR * threshold)
    return QuantizedModel(folder, digest, lanes, min_score, name)


def _has_network_alone(folder: Path) -> bool:
    """Return whether the model in `folder` is a network in 8 bits without another form of it."""
    from worker.detection.model import GRAPH, NETWORK

    return (folder / NETWORK).is_file() and not (folder / GRAPH).is_file()


def _suits_litert(folder: Path) -> bool:
    """Return whether LiteRT is the faster engine for the model in `folder`.

    It is if the folder has a network in 8 bits, and this machine has no GPU.
    """
    from worker.detection.model import NETWORK

    if not (folder / NETWORK).is_file() or _has_gpu():
        return False
    if not find_spec(LITERT_MODULE):
        structlog.get_logger("veil").warning(
            "LiteRT is not installed",
            engine="tensorflow",
            effect="detection is slower on a CPU than it could be",
        )
        return False
    return True


def _has_gpu() -> bool:
    """Return whether TensorFlow can use a GPU.

    Without a driver TensorFlow is not asked, because importing it takes seconds.
    """
    try:
        ctypes.CDLL(GPU_DRIVER)
    except OSError:
        return False
    from worker.detection.saved_model import has_gpu

    return has_gpu()
