"""The composition root: settings become a model, an anonymizer and a pipeline.

The modules of the detector take seconds to import, so functions import them when they need them.
Wrong settings are refused before that.
"""

import ctypes
import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from celery.signals import task_postrun, task_prerun, worker_ready
from redis.exceptions import RedisError

from tasks import redis_durability
from tasks.errors import ModelInvalid
from tasks.settings import refuse_unknown
from worker import logs, metrics
from worker.process import allocator, processors
from worker.process.watch import Watch, unwatched
from worker.process.watchdog import Watchdog
from worker.settings import PICTURE_SECONDS, PROCESS_WAIT_SECONDS, WorkerSettings

if TYPE_CHECKING:
    from tasks.app import App
    from tasks.storage.s3 import ObjectStore
    from worker.anonymizer import Anonymizer, FileAnonymizer, Limits
    from worker.detection.batching import Predict
    from worker.detection.detector import ScaledDetector
    from worker.detection.faces import Detections
    from worker.detection.model import Model
    from worker.detection.tiled import ModelInput
    from worker.masking.regions import MaskStyle
    from worker.pipeline import Pipeline
    from worker.pixels import Pixels
    from worker.process.channel import Configuration

GPU_BATCH_SIZE = 8
CPU_BATCH_SIZE = 1
LITERT_MODULE = "ai_edge_litert"
TRAINING_RUN = "run.json"  # the description of a run: see training.run
GPU_DRIVER = "libcuda.so.1"  # of NVIDIA; TensorFlow's wheels support no other GPU
# A batch has stalled when it exceeds the time limit of a pass by this much.
STALL_MARGIN_SECONDS = 10
EXTRA_CONNECTIONS = 2  # connections to S3 beyond one for each picture in hand
# The addresses that a picture process may use for each pixel of the largest picture, and the bytes
# that an output may have for each. docs/performance.md has the memory that pictures need.
MEMORY_BYTES_A_PIXEL, OUTPUT_BYTES_A_PIXEL = 40, 5
MAX_LOGGED_CHARACTERS = 1100  # of a message; the longest address has 1,092 bytes
RECORDED_PACKAGES = (
    "veil",
    "tensorflow",
    "tensorflow-cpu",
    "ai-edge-litert",
    "opencv-python-headless",
    "pillow",
    "numpy",
)
"""The packages whose versions receipts record: they decide the bytes of an output."""


def worker_pipeline(app: "App", on_stall: Callable[[str], None], name: str) -> "Pipeline":
    """Return the pipeline of the queue worker `name`, configured by the environment.

    This is the entry point `pipeline` of the group ``veil``. The watchdog calls `on_stall` with
    the stalled work before it ends the process.
    """
    refuse_unknown(os.environ, WorkerSettings)
    settings = WorkerSettings.load()
    logs.configure(settings.log_format, settings.redis_server(), name)
    from tasks.metrics import serve  # only queue workers serve metrics
    from tasks.storage.s3 import ObjectStore

    serve(settings, app)
    metrics.watch_worker()
    worker_ready.connect(_announce_recipe, weak=False)
    worker_ready.connect(_watch_store, weak=False)
    worker_ready.connect(_warn_of_redis, weak=False)
    watchdog = Watchdog(on_stall=on_stall)
    _watch_pictures(watchdog)
    store = ObjectStore.connect(settings, settings.pictures_in_flight() + EXTRA_CONNECTIONS)
    pipeline = build_pipeline(settings, store, watchdog.watch)
    watchdog.start()
    return pipeline


def _watch_pictures(watchdog: Watchdog) -> None:
    """Let `watchdog` end the process for a picture that takes longer than PICTURE_SECONDS."""

    def begin(task_id: str, args: Any, **_: Any) -> None:
        message = str(args)[:MAX_LOGGED_CHARACTERS]
        watchdog.begin((task_id, threading.get_ident()), message, PICTURE_SECONDS)

    def end(task_id: str, **_: Any) -> None:
        watchdog.end((task_id, threading.get_ident()))

    task_prerun.connect(begin, weak=False)
    task_postrun.connect(end, weak=False)


def _announce_recipe(sender: Any, **_: Any) -> None:
    """Store the recipe for producers, and log that the worker is ready.

    `sender` is Celery's consumer.
    """
    from tasks import publishing  # imports the Celery app, which only queue workers need

    app: App = sender.app
    try:
        publishing.announce_recipe(app.backend.client, app.work.pipeline.recipe)
    except RedisError as error:
        structlog.get_logger("veil").warning("recipe not announced", error=type(error).__name__)
    structlog.get_logger("veil").info("worker ready")


def _warn_of_redis(sender: Any, **_: Any) -> None:
    """Log a warning if Redis may lose messages. `sender` is Celery's consumer."""
    try:
        risks = redis_durability.risks(sender.app.backend.client)
    except RedisError:
        return  # An outage has lines of its own.
    if risks:
        structlog.get_logger("veil").warning(
            "redis may lose messages", settings="; ".join(risks), effect="see docs/running.md"
        )


def _watch_store(sender: Any, **_: Any) -> None:
    """Show outages of the store in the metrics. `sender` is Celery's consumer."""
    metrics.watch_circuit_breaker(sender.app.work.circuit_breaker)


def build_pipeline(
    settings: WorkerSettings, store: "ObjectStore", watch: Watch = unwatched
) -> "Pipeline":
    """Return the pipeline over the objects in `store`.

    Raises the errors of build_file_anonymizer. build_anonymizer explains `watch`.
    """
    from worker.pipeline import Pipeline

    allocator.return_memory()
    return Pipeline(
        store=store,
        anonymizer=build_file_anonymizer(settings, watch),
        routes=settings.parsed_routes(),
        keys=settings.receipt_keys(),
    )


def build_file_anonymizer(
    settings: WorkerSettings, watch: Watch = unwatched, pictures: int | None = None
) -> "FileAnonymizer":
    """Return the anonymizer for `settings` whose pictures have processes of their own.

    `pictures` is their number, for a command that a person can end: no more processes are started,
    and a picture may take any time. With VEIL_PROCESSES=0 the anonymizer is that of
    build_anonymizer, which also explains `watch`. Raises the errors of load_model, and
    PictureProcessLost.
    """
    count = settings.picture_processes()
    runs_for_long = pictures is None
    if not count:
        return build_anonymizer(settings, watch, runs_for_long=runs_for_long)
    from worker.isolated import IsolatedAnonymizer
    from worker.process.pool import PicturePool

    if pictures is None:
        pool = PicturePool(count, wait_seconds=PROCESS_WAIT_SECONDS)
        seconds = settings.anonymizer_seconds()
    else:
        pool = PicturePool(max(1, min(count, pictures)))
        seconds = float("inf")
    metrics.watch_pool(pool)
    model = load_model(settings)  # while the process starts
    detector = _detector(settings, model, watch, runs_for_long)
    local = _anonymizer(settings, model, detector, watch)
    pool.configure(_configuration(settings, detector, runs_for_long))
    return IsolatedAnonymizer(local, pool, detector.infer, seconds)


def build_viewer(settings: WorkerSettings, processes: int) -> "FileAnonymizer":
    """Return an anonymizer that only makes views, in at most `processes` picture processes.

    It has no model, so it is there within a second, and it fails on everything else. Raises
    PictureProcessLost.
    """
    from worker.anonymizer import Anonymizer
    from worker.detection.detector import ScaledDetector
    from worker.detection.tiled import ModelInput
    from worker.isolated import IsolatedAnonymizer
    from worker.process.pool import PicturePool

    def refuse(_canvases: "Sequence[Pixels]") -> "list[Detections]":
        raise ModelInvalid("this process only shows pictures, and has no model")

    detector = ScaledDetector(refuse, settings.pass_settings(), 0.5, ModelInput(None, 1, False), 1)
    local = Anonymizer(detector=detector, style=mask_style(settings), limits=_limits(settings))
    count = min(settings.picture_processes(), processes)
    if not count:
        return local
    pool = PicturePool(count, wait_seconds=PROCESS_WAIT_SECONDS)
    pool.configure(_configuration(settings, detector, runs_for_long=True))
    return IsolatedAnonymizer(local, pool, refuse, settings.anonymizer_seconds())


def _configuration(
    settings: WorkerSettings, detector: "ScaledDetector", runs_for_long: bool
) -> "Configuration":
    """Return what a picture process needs to know of `settings` and the model."""
    from worker.process.channel import Configuration

    return Configuration(
        style=mask_style(settings),
        limits=_limits(settings),
        hold_without_faces=settings.no_faces == "hold",
        verify=settings.verify,
        keep_exif=settings.keep_exif,
        pass_settings=detector.settings,
        score_threshold=detector.score_threshold,
        near_score=detector.score_threshold + metrics.NEAR_MARGIN,
        takes=detector.takes,
        detect_seconds=detector.seconds,
        memory_bytes=settings.max_pixels * MEMORY_BYTES_A_PIXEL + 4 * settings.max_bytes,
        runs_for_long=runs_for_long,
        output_bytes=settings.max_pixels * OUTPUT_BYTES_A_PIXEL + settings.max_bytes + (1 << 20),
    )


def build_anonymizer(
    settings: WorkerSettings,
    watch: Watch = unwatched,
    model: "Model | None" = None,
    runs_for_long: bool = False,
) -> "Anonymizer":
    """Return the anonymizer for `settings`, with `model` or else the one that load_model returns.

    It does all the work in this process. Batches, decoding and encoding run under `watch`. If it
    `runs_for_long`, a model on a GPU is warmed up. Raises the errors of load_model.
    """
    model = model or load_model(settings)
    detector = _detector(settings, model, watch, runs_for_long)
    return _anonymizer(settings, model, detector, watch)


def _anonymizer(
    settings: WorkerSettings, model: "Model", detector: "ScaledDetector", watch: Watch
) -> "Anonymizer":
    """Return the anonymizer for `settings`, with `detector` for `model`."""
    from worker.anonymizer import Anonymizer

    allocator.share_arenas()
    threshold = detector.score_threshold
    recipe = _recipe(settings, model, threshold)
    made_with = {"model": model.digest, "engine": model.engine, **_versions()}
    _announce_detector(settings, model, threshold, recipe, made_with)
    return Anonymizer(
        detector=metrics.CountingDetector(detector, threshold),
        style=mask_style(settings),
        limits=_limits(settings),
        hold_without_faces=settings.no_faces == "hold",
        verify=settings.verify,
        keep_exif=settings.keep_exif,
        recipe=recipe,
        made_with=made_with,
        watch=watch,
    )


def _detector(
    settings: WorkerSettings, model: "Model", watch: Watch, runs_for_long: bool
) -> "ScaledDetector":
    """Return the detector: passes over a picture, whose canvases `model` receives in batches."""
    from worker.detection.batching import Batcher
    from worker.detection.detector import ScaledDetector

    batcher = Batcher(
        _watched_predict(settings, model, watch),
        _batch_size(settings, model),
        settings.batch_wait_seconds,
        settings.detect_seconds,
        model.lanes,
    )
    metrics.watch_batcher(batcher)
    pass_settings = settings.pass_settings()
    detector = ScaledDetector(
        batcher.infer,
        pass_settings,
        settings.score_threshold or model.score_threshold,
        _model_input(settings, model),
        settings.detect_seconds * pass_settings.passes,
    )
    # The threads keep the model in memory, also when a program has dropped its anonymizer.
    weakref.finalize(detector, batcher.stop).atexit = False
    if model.on_gpu and runs_for_long:
        from worker.detection.warm_up import warm_up

        warm_up(detector, _batch_size(settings, model))
    return detector


def _watched_predict(settings: WorkerSettings, model: "Model", watch: Watch) -> "Predict":
    """Return the model's `predict`, measured, and run under `watch`."""
    measured = metrics.measured(model.predict)
    # The watchdog must act before the picture that waits for the batch gives up, so that a picture
    # that stalls the model is still in hand when the process ends.
    margin = min(STALL_MARGIN_SECONDS, settings.detect_seconds / 2)

    def predict(batch: "Pixels") -> "Sequence[Detections]":
        with watch("a batch in the detector", settings.detect_seconds + margin):
            return measured(batch)

    return predict


def _batch_size(settings: WorkerSettings, model: "Model") -> int:
    default = GPU_BATCH_SIZE if model.on_gpu else CPU_BATCH_SIZE
    return settings.batch_size or default


def _model_input(settings: WorkerSettings, model: "Model") -> "ModelInput":
    from worker.detection.tiled import ModelInput
    from worker.process.channel import MAX_CANVASES_AT_ONCE

    at_once = min(max(_batch_size(settings, model), model.lanes), MAX_CANVASES_AT_ONCE)
    return ModelInput(model.fixed_size, at_once, has_few_shapes=model.on_gpu)


def _limits(settings: WorkerSettings) -> "Limits":
    from worker.anonymizer import Limits

    return Limits(
        max_bytes=settings.max_bytes,
        max_pixels=settings.max_pixels,
        fetch_seconds=settings.fetch_seconds,
        max_frames=settings.max_frames,
        detection_seconds=settings.max_detection_seconds(),
    )


def mask_style(settings: WorkerSettings) -> "MaskStyle":
    """Return the method and the shape by which `settings` hide faces."""
    from worker.masking.regions import MaskStyle

    return MaskStyle(
        settings.method, settings.region, settings.margin, settings.shape, settings.feather
    )


def _recipe(settings: WorkerSettings, model: "Model", threshold: float) -> str:
    from worker.anonymizer import recipe_digest

    return recipe_digest(
        model=model.digest,
        score_threshold=threshold,
        pass_settings=settings.pass_settings(),
        style=mask_style(settings),
        keep_exif=settings.keep_exif,
        checked=settings.verify != "off",
    )


def _versions() -> dict[str, str]:
    """Return the versions of the RECORDED_PACKAGES that are installed."""
    versions = {}
    for package in RECORDED_PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


def _announce_detector(
    settings: WorkerSettings,
    model: "Model",
    threshold: float,
    recipe: str,
    made_with: Mapping[str, str],
) -> None:
    """Show in the metrics and in the log which model runs, and with which settings."""
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
        scales=list(settings.pass_settings().scales),
        batch_size=_batch_size(settings, model),
        recipe=recipe,
    )


def load_model(settings: WorkerSettings) -> "Model":
    """Return the model of `settings`, tested. The default model is built on first use.

    Raises ModelInvalid if it cannot be loaded or fails its test. Raises the errors of S3 if the
    model is stored there.
    """
    from worker.detection.centerface import known_face

    model = load_untested_model(settings)
    if settings.model is None:
        known_face.check_default(model)
        return model
    known_face.try_own(model, settings.score_threshold or model.score_threshold)
    _warn_of_evaluation(model)
    if settings.model.startswith("s3://") and settings.model_sha256 is None:
        structlog.get_logger("veil").warning(
            "the model is not pinned",
            address=settings.model,
            digest=model.digest,
            effect="whoever can write to the address decides what is hidden: set VEIL_MODEL_SHA256",
        )
    return model


def _warn_of_evaluation(model: "Model") -> None:
    """Log a warning if the model's own evaluation says that the bundled detector is better."""
    from worker.detection.evaluation import stated_evaluation

    evaluation = stated_evaluation(model.folder)
    if evaluation and (drawbacks := evaluation.drawbacks()):
        structlog.get_logger("veil").warning(
            "the model hides faces worse than the bundled detector",
            model=model.name,
            evaluation="; ".join(drawbacks),
            evaluated_threshold=evaluation.threshold,
            effect="train it longer, or unset VEIL_MODEL",
        )


def load_untested_model(settings: WorkerSettings) -> "Model":
    """Return the model of `settings`, loaded but not tested; raises the errors of load_model."""
    from worker.detection import centerface

    if settings.model:
        from tasks.storage.s3 import ObjectStore
        from worker.detection import own_model

        folder = own_model.folder(
            settings.model, lambda: ObjectStore.connect(settings), settings.model_sha256
        )
        return load_folder(settings, folder, name=settings.model)
    return load_folder(
        settings, centerface.default_model(), centerface.DIGEST, centerface.DIGEST_IN_8_BITS
    )


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
            f"{name or folder} is a training run: set VEIL_MODEL to what `veil train export` made"
        )
    if settings.engine == "litert" or (settings.engine == "auto" and _suits_litert(folder)):
        return _load_for_litert(settings, folder, digest_in_8_bits, name)
    from worker.detection.saved_model import SavedModel

    return SavedModel(folder, digest, settings.score_threshold, name)


def _load_for_litert(
    settings: WorkerSettings, folder: Path, digest: str | None, name: str | None
) -> "Model":
    if not find_spec(LITERT_MODULE):
        raise ModelInvalid(
            "VEIL_ENGINE=litert needs LiteRT, which is not installed: pip install ai-edge-litert"
        )
    from worker.detection.centerface.maps import MIN_SCORE
    from worker.detection.detector import WEAK_SCORE_FACTOR
    from worker.detection.litert import QuantizedModel
    from worker.detection.model import stated_threshold

    lanes = min(settings.pictures_in_flight(), processors.available())
    # The network scores many points very low, and comparing these with each other takes most of the
    # time. The detector uses no score below this one.
    threshold = settings.score_threshold or stated_threshold(folder, name or str(folder))
    min_score = max(MIN_SCORE, WEAK_SCORE_FACTOR * threshold)
    return QuantizedModel(folder, digest, lanes, min_score, name)


def _suits_litert(folder: Path) -> bool:
    """Return whether LiteRT is the faster engine for the model in `folder`.

    It is if the folder has a network in 8 bits and this machine has no GPU.
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
