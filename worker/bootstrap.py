"""Composition root: settings to detector to pipeline."""

import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from celery.signals import task_postrun, task_prerun, worker_ready
from redis.exceptions import RedisError

from tasks.errors import ModelInvalid
from tasks.settings import refuse_unknown
from tasks.storage.s3 import ObjectStore
from worker import logs, metrics
from worker.process import allocator, processors
from worker.process.watchdog import Watch, Watchdog, unwatched
from worker.settings import PICTURE_SECONDS, WorkerSettings

if TYPE_CHECKING:
    from worker.anonymizer import Anonymizer
    from worker.detection.faces import Detections
    from worker.detection.model import Model
    from worker.masking.regions import MaskStyle
    from worker.pipeline import Pipeline
    from worker.pixels import Pixels

BATCH_ON_GPU = 8
BATCH_ON_CPU = 1
LITERT = "ai_edge_litert"
GPU_DRIVER = "libcuda.so.1"  # NVIDIA's; what TensorFlow's wheels run on
STALLED_SECONDS = 10  # that a batch may take beyond the limit of a detection pass
PACKAGES = (
    "veil",
    "tensorflow",
    "tensorflow-cpu",
    "ai-edge-litert",
    "opencv-python-headless",
    "pillow",
    "numpy",
)


def worker_pipeline(app: Any, on_stall: Callable[[str], None]) -> "Pipeline":
    """Return the pipeline of a queue worker, configured by the environment.

    It is the entry point `pipeline` of the group ``veil``. The watchdog calls `on_stall` before it
    ends the process.
    """
    refuse_unknown(os.environ, WorkerSettings)
    settings = WorkerSettings.load()
    logs.configure(settings.log_format)
    from tasks.metrics import serve  # which only a queue worker needs

    serve(settings, app)
    metrics.watch_worker()
    worker_ready.connect(_announce, weak=False)
    watchdog = Watchdog(on_stall=on_stall)
    _watch_pictures(watchdog)
    pipeline = build_pipeline(
        settings,
        ObjectStore.connect(settings, connections=settings.concurrency + 2),
        watchdog.watch,
    )
    watchdog.start()
    return pipeline


def _watch_pictures(watchdog: Watchdog) -> None:
    def begin(task_id: str, args: Any, **_: Any) -> None:
        watchdog.begin((task_id, threading.get_ident()), f"{str(args)[:1100]}", PICTURE_SECONDS)

    def end(task_id: str, **_: Any) -> None:
        watchdog.end((task_id, threading.get_ident()))

    task_prerun.connect(begin, weak=False)
    task_postrun.connect(end, weak=False)


def load_model(settings: WorkerSettings) -> "Model":
    """Return the model that `settings` name, by default the bundled one, built on first use, and
    tested.

    Raises ModelInvalid if that fails, and what S3 answers where the model comes from there.
    """
    from worker.detection.centerface import known_face

    model = plain_model(settings)
    if settings.model is None:
        known_face.check_default(model)
        return model
    known_face.try_own(model, settings.score_threshold or model.score_threshold)
    if settings.model.startswith("s3://") and settings.model_sha256 is None:
        structlog.get_logger("veil").warning(
            "the model is not pinned",
            address=settings.model,
            digest=model.digest,
            effect="whoever can write to the address decides what is hidden: set VEIL_MODEL_SHA256",
        )
    return model


def plain_model(settings: WorkerSettings) -> "Model":
    """Return the model that `settings` name, loaded and not tested; raises as load_model does."""
    from worker.detection import centerface, own_model

    digest: str | None = None
    digest_in_8_bits: str | None = None
    if settings.model:
        folder = own_model.folder(
            settings.model, lambda: ObjectStore.connect(settings), settings.model_sha256
        )
    else:
        folder, digest, digest_in_8_bits = (
            centerface.default_model(),
            centerface.DIGEST,
            centerface.DIGEST_IN_8_BITS,
        )
    if settings.engine == "litert" or (settings.engine == "auto" and _suits_litert(folder)):
        if not find_spec(LITERT):
            raise ModelInvalid(
                "VEIL_ENGINE=litert needs LiteRT, which is not installed: pip install ai-edge-litert"
            )
        from worker.detection.centerface.maps import MIN_SCORE
        from worker.detection.detector import WEAK_SCORE_FACTOR
        from worker.detection.litert import QuantizedModel
        from worker.detection.model import stated_threshold

        lanes = min(settings.concurrency, processors.available())
        # Points that are hardly faces are many, and sorting them out costs most; nobody asks for
        # those below this.
        least_score = max(
            MIN_SCORE, WEAK_SCORE_FACTOR * (settings.score_threshold or stated_threshold(folder))
        )
        return QuantizedModel(folder, digest_in_8_bits, lanes, least_score)
    from worker.detection.saved_model import SavedModel

    return SavedModel(folder, digest, settings.score_threshold)


def _suits_litert(folder: Path) -> bool:
    """Whether the model in `folder` has a network in 8 bits, and no GPU is there that would run it
    faster.
    """
    from worker.detection.model import NETWORK

    if not (folder / NETWORK).is_file() or _has_gpu():
        return False
    if not find_spec(LITERT):
        structlog.get_logger("veil").warning(
            "LiteRT is not installed",
            engine="tensorflow",
            effect="detection is slower on a CPU than it could be",
        )
        return False
    return True


def _has_gpu() -> bool:
    """Whether TensorFlow has a GPU to run on. Where there is no driver it need not be asked, which
    takes seconds.
    """
    try:
        ctypes.CDLL(GPU_DRIVER)
    except OSError:
        return False
    from worker.detection.saved_model import has_gpu

    return has_gpu()


def _versions() -> dict[str, str]:
    """Of Veil and of what decides an output's bytes, by package."""
    found = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _announce(sender: Any, **_: Any) -> None:
    """Tell producers what is made here, and the log that work begins."""
    from tasks import publishing  # the Celery app, which only a queue worker needs

    try:
        publishing.announce_recipe(sender.app.backend.client, sender.app.work.pipeline.recipe)
    except RedisError as error:
        structlog.get_logger("veil").warning("recipe not announced", error=type(error).__name__)
    structlog.get_logger("veil").info("worker ready", worker=sender.hostname)


def mask_style(settings: WorkerSettings) -> "MaskStyle":
    """How `settings` say that faces are hidden."""
    from worker.masking.regions import MaskStyle

    return MaskStyle(
        settings.method, settings.region, settings.margin, settings.shape, settings.feather
    )


def build_pipeline(
    settings: WorkerSettings, store: ObjectStore, watch: Watch = unwatched
) -> "Pipeline":
    """The pipeline of objects in `store` for `settings`; raises and watches as build_anonymizer
    does.
    """
    from worker.pipeline import Pipeline

    allocator.stay_small()
    keys = settings.receipt_keys()
    return Pipeline(
        store=store,
        anonymizer=build_anonymizer(settings, watch),
        routes=settings.parsed_routes(),
        receipt_key=next(iter(keys), None),
        older_keys=keys[1:],
    )


def build_anonymizer(
    settings: WorkerSettings, watch: Watch = unwatched, model: "Model | None" = None
) -> "Anonymizer":
    """Return the anonymizer for `settings`, its model loaded and tested unless given; ModelInvalid
    if that fails.

    Batches, decoding and encoding run under `watch`.
    """
    from worker.anonymizer import Anonymizer, Limits, recipe_digest
    from worker.detection.batching import Batcher
    from worker.detection.detector import ScaledDetector

    allocator.share_arenas()
    model = model or load_model(settings)
    threshold = settings.score_threshold or model.score_threshold
    batch_size = settings.batch_size or (BATCH_ON_GPU if model.on_gpu else BATCH_ON_CPU)

    counted = metrics.counted(model.predict)

    def predict(batch: "Pixels") -> "Sequence[Detections]":
        # Ends before whoever waits for the batch gives up: the picture that it stalls on must still
        # be at work then.
        patience = settings.detect_seconds + min(STALLED_SECONDS, settings.detect_seconds / 2)
        with watch("a batch in the detector", patience):
            return counted(batch)

    batcher = Batcher(
        predict, batch_size, settings.batch_wait_seconds, settings.detect_seconds, model.lanes
    )
    metrics.watch_batcher(batcher)
    style = mask_style(settings)
    look = settings.look()
    recipe = recipe_digest(
        model=model.digest,
        score_threshold=threshold,
        look=look,
        style=style,
        keep_exif=settings.keep_exif,
        checked=settings.verify != "off",
    )
    made_with = {"model": model.digest, "engine": model.engine, **_versions()}
    metrics.BUILD.info(
        {"version": made_with.get("veil", ""), "recipe": recipe, "model": model.digest[:16]}
    )
    structlog.get_logger("veil").info(
        "detector ready",
        engine=model.engine,
        device=model.device,
        model=model.digest[:16],
        score_threshold=threshold,
        preset=settings.preset,
        scales=list(look.scales),
        batch_size=batch_size,
        recipe=recipe,
    )
    detector = ScaledDetector(
        batcher.infer, look, threshold, model.fixed_size, settings.detect_seconds * look.passes
    )
    return Anonymizer(
        detector=metrics.ScoredDetector(detector, threshold),
        style=style,
        limits=Limits(
            settings.max_bytes,
            settings.max_pixels,
            settings.fetch_seconds,
            settings.max_frames,
            settings.longest_look(),
        ),
        hold_without_faces=settings.no_faces == "hold",
        verify=settings.verify,
        keep_exif=settings.keep_exif,
        recipe=recipe,
        made_with=made_with,
        guard=watch,
    )
