"""The composition root: settings become a model, an anonymizer and a pipeline.

The modules of the detector take seconds to import, so functions import them when they need them.
Wrong settings are refused before that.
"""

import os
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import structlog
from celery.signals import task_postrun, task_prerun, worker_ready
from redis.exceptions import RedisError

from tasks.errors import ModelInvalid
from tasks.messages import FACE
from tasks.redis import durability
from tasks.redis.clients import impatient_client
from tasks.settings import Settings, refuse_unknown
from tasks.telemetry import error_reports, tracing
from worker import logs, metrics, searches
from worker.models import load_models
from worker.process import allocator, processors
from worker.process.watch import Watch, unwatched
from worker.process.watchdog import Watchdog
from worker.searches import LoadedModel
from worker.settings import PICTURE_SECONDS, PROCESS_WAIT_SECONDS, SLOWEST_VIEWS, WorkerSettings

if TYPE_CHECKING:
    from tasks.app import App
    from tasks.delivery import work
    from tasks.storage.s3 import ObjectStore
    from worker.anonymizer import Anonymizer, FileAnonymizer, Limits
    from worker.detection.batching import Batcher, Predict
    from worker.detection.faces import Detections
    from worker.detection.labelled import LabelledDetector, Search
    from worker.detection.model import Model
    from worker.detection.tiled import Infer, ModelInput
    from worker.masking.regions import MaskStyle
    from worker.pixels import Pixels
    from worker.process.channel import Configuration, Handling
    from worker.process.pool import PicturePool
    from worker.treatments import Treatments

GPU_BATCH_SIZE = 8
CPU_BATCH_SIZE = 1
# A batch has stalled when it exceeds the time limit of a pass by this much.
STALL_MARGIN_SECONDS = 10
NOTIFICATION_SECONDS = 5.0  # for Redis to answer the sender of notifications
EXTRA_CONNECTIONS = 2  # connections to S3 beyond one for each picture in hand
# The addresses that a picture process may use for each pixel of the largest picture, and the bytes
# that an output may have for each. docs/performance.md has the memory that pictures need.
MEMORY_BYTES_A_PIXEL, OUTPUT_BYTES_A_PIXEL = 20, 4
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


def worker_pipeline(app: "App", on_stall: Callable[[str], None], name: str) -> "work.Pipeline":
    """Return the pipeline of the queue worker `name`, configured by the environment.

    This is the entry point `pipeline` of the group ``veil``. The watchdog calls `on_stall` with
    the stalled work before it ends the process.
    """
    refuse_unknown(os.environ, WorkerSettings)
    settings = WorkerSettings.load_for_outputs()
    logs.configure(settings.log_format, settings.redis_server(), name)
    tracing.configure("veil-worker")
    error_reports.configure("worker")
    from tasks.delivery.transport import Transport
    from tasks.storage.s3 import ObjectStore
    from tasks.telemetry.metrics import WORKER, initialize_routes, serve  # of queue workers alone

    initialize_routes(route.name for route in settings.parsed_routes() if route.name is not None)
    serve(settings, app, WORKER)
    metrics.watch_worker(Transport.leases)
    worker_ready.connect(_announce_recipe, weak=False)
    worker_ready.connect(_watch_store, weak=False)
    worker_ready.connect(_warn_of_redis, weak=False)
    _warn_of_memory(processors.memory())
    watchdog = Watchdog(on_stall=on_stall)
    _watch_pictures(watchdog)
    store = ObjectStore.connect(settings, settings.pictures_in_flight() + EXTRA_CONNECTIONS)
    pipeline = build_pipeline(settings, store, watchdog.watch)
    watchdog.start()
    start_notifications(settings, app)
    return pipeline


def start_notifications(settings: Settings, app: "App") -> None:
    """Send the notifications in the outbox until the process ends, if there is a target."""
    if settings.notify is None:
        return
    from tasks.notifications import targets
    from tasks.notifications.outbox import Outbox
    from tasks.notifications.sender import Sender

    target = targets.connect(settings.notify, settings.notify_secrets())
    redis = impatient_client(app, NOTIFICATION_SECONDS)
    Sender(Outbox(redis), target, settings.notify_hours).start()


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
        pipeline = app.work.pipeline
        publishing.announce_recipe(
            app.backend.client, pipeline.recipe, pipeline.labels, pipeline.recipes
        )
    except RedisError as error:
        structlog.get_logger("veil").warning("recipe not announced", error=type(error).__name__)
    structlog.get_logger("veil").info("worker ready")


def _warn_of_redis(sender: Any, **_: Any) -> None:
    """Log a warning if Redis may lose messages. `sender` is Celery's consumer."""
    try:
        risks = durability.risks(sender.app.backend.client)
    except RedisError:
        return  # An outage has lines of its own.
    if risks:
        structlog.get_logger("veil").warning(
            "redis may lose messages", settings="; ".join(risks), effect="see docs/running.md"
        )


def _warn_of_memory(available: int) -> None:
    """Log a warning if `available` bytes of memory are too few for a worker."""
    if available < processors.MINIMUM_MEMORY:
        structlog.get_logger("veil").warning(
            "little memory",
            message=f"this worker may use {available:,} bytes, and needs at least "
            f"{processors.MINIMUM_MEMORY:,}: raise the limit of its container, else pictures end "
            "its processes",
        )


def _watch_store(sender: Any, **_: Any) -> None:
    """Show outages of the store in the metrics, and test all routes once.

    `sender` is Celery's consumer. The test has a thread of its own, because a store that hangs must
    not delay the work on other routes.
    """
    breaker = sender.app.work.circuit_breaker
    metrics.watch_circuit_breaker(breaker)
    threading.Thread(target=breaker.check, name="routes", daemon=True).start()


def build_pipeline(
    settings: WorkerSettings, store: "ObjectStore", watch: Watch = unwatched
) -> "work.Pipeline":
    """Return the pipeline over the objects in `store`.

    Raises the errors of build_file_anonymizers. build_anonymizer explains `watch`.
    """
    from worker.pipeline import Pipeline, RoutedPipeline

    allocator.return_memory()
    routes = settings.parsed_routes()
    # Routes without settings of their own share one pipeline.
    with_own = [route for route in routes if route.settings]
    different = [settings, *map(settings.of_route, with_own)]
    anonymizers = build_file_anonymizers(different, watch)
    pipelines = [
        Pipeline(
            store=store,
            anonymizer=anonymizer,
            routes=routes,
            keys=settings.receipt_keys(),
            uploads=one.uploads(),
        )
        for one, anonymizer in zip(different, anonymizers, strict=True)
    ]
    if not with_own:
        return pipelines[0]
    by_route = dict(zip(with_own, pipelines[1:], strict=True))
    return RoutedPipeline(pipelines[0], by_route)


def build_file_anonymizer(
    settings: WorkerSettings, watch: Watch = unwatched, pictures: int | None = None
) -> "FileAnonymizer":
    """Return the anonymizer for `settings` whose pictures have processes of their own.

    `pictures` is their number, for a command that a person can end: no more processes are started,
    and a picture may take any time. With VEIL_PROCESSES=0 the anonymizer is that of
    build_anonymizer, which also explains `watch`. Raises the errors of load_model, and
    PictureProcessLost.
    """
    (anonymizer,) = build_file_anonymizers([settings], watch, pictures)
    return anonymizer


def build_file_anonymizers(
    different: Sequence[WorkerSettings], watch: Watch = unwatched, pictures: int | None = None
) -> "Sequence[FileAnonymizer]":
    """Return an anonymizer for each of `different` settings, which share models and processes.

    The first are those of the worker, and the others are those of routes. build_file_anonymizer
    explains the arguments, and raises the same errors.
    """
    settings = different[0]
    count = settings.picture_processes()
    runs_for_long = pictures is None
    pool = None if count == 0 else _pool(count, pictures)
    models = load_models(settings)  # while a picture process starts
    infer = _infer(settings, models, watch)
    wanted = _labels_to_hide(settings, models)  # on all routes: no route has rules or models
    detectors = [_detector(one, models, infer, wanted) for one in different]
    if runs_for_long:
        _warm_up(settings, models, detectors)
    built = [
        _anonymizer(one, models, detector, watch, is_of_route=number > 0)
        for number, (one, detector) in enumerate(zip(different, detectors, strict=True))
    ]
    if pool is None:
        return built
    from worker.isolated import IsolatedAnonymizer

    handlings = [
        _handling(one, detector, local.limits)
        for one, detector, local in zip(different, detectors, built, strict=True)
    ]
    inputs = [_model_input(settings, one.model) for one in models]
    labels = built[0].treatments.labels
    pool.configure(_configuration(settings, inputs, labels, handlings, runs_for_long))
    seconds = settings.anonymizer_seconds() if runs_for_long else float("inf")
    own_handlings = handlings if len(handlings) > 1 else [None]
    return [
        IsolatedAnonymizer(local, pool, infer, seconds, handling)
        for local, handling in zip(built, own_handlings, strict=True)
    ]


def _pool(count: int, pictures: int | None) -> "PicturePool":
    """Return a pool of `count` picture processes, or less for few `pictures`."""
    from worker.process.pool import PicturePool

    if pictures is None:
        pool = PicturePool(count, wait_seconds=PROCESS_WAIT_SECONDS)
    else:
        pool = PicturePool(max(1, min(count, pictures)))
    metrics.watch_pool(pool)
    return pool


def build_viewer(settings: WorkerSettings, processes: int) -> "FileAnonymizer":
    """Return an anonymizer that only makes views, in at most `processes` picture processes.

    It has no model, so it is there within a second, and it fails on everything else. Raises
    PictureProcessLost.
    """
    from worker.anonymizer import Anonymizer
    from worker.detection.labelled import LabelledDetector, Search
    from worker.detection.tiled import ANY_SIZE
    from worker.isolated import IsolatedAnonymizer
    from worker.process.pool import PicturePool

    def refuse(_canvases: "Sequence[Pixels]") -> "list[Detections]":
        raise ModelInvalid("this process only shows pictures, and has no model")

    search = Search(FACE, 0, settings.pass_settings(), 0.5, 0.5, ANY_SIZE, seconds=1, classes={})
    detector = LabelledDetector([search], [refuse], 1, lambda *_: None)
    limits = _limits(settings, detector.seconds)
    local = Anonymizer(detector=detector, style=mask_style(settings), limits=limits)
    count = min(settings.picture_processes(), processes)
    if not count:
        return local
    pool = PicturePool(count, wait_seconds=PROCESS_WAIT_SECONDS)
    handling = _handling(settings, detector, limits)
    pool.configure(_configuration(settings, [ANY_SIZE], (FACE,), [handling], runs_for_long=True))
    return IsolatedAnonymizer(local, pool, detector.infer, settings.anonymizer_seconds())


def _handling(
    settings: WorkerSettings, detector: "LabelledDetector", limits: "Limits"
) -> "Handling":
    """Return what a picture process needs to know of `settings`, which may be those of a route."""
    from worker.process.channel import Handling

    return Handling(
        style=mask_style(settings),
        limits=limits,
        hold_without_faces=settings.no_faces == "hold",
        verify=settings.verify,
        keep=settings.kept_metadata(),
        searches=tuple(detector.searches),
        detect_seconds=detector.seconds,
    )


def _configuration(
    settings: WorkerSettings,
    inputs: "Sequence[ModelInput]",
    labels: tuple[str, ...],
    handlings: "Sequence[Handling]",
    runs_for_long: bool,
) -> "Configuration":
    """Return what a picture process needs to know of `settings` and the models.

    The worker waits as long for a picture as the slowest of `handlings` may take.
    """
    from worker.process.channel import Configuration

    longest = max(one.limits.detection_seconds for one in handlings)
    limits = replace(handlings[0].limits, detection_seconds=longest)
    return Configuration(
        **vars(replace(handlings[0], limits=limits)),
        labels=labels,
        rules=searches.rules_of_treatment(settings),
        inputs=tuple(inputs),
        memory_bytes=settings.max_pixels * MEMORY_BYTES_A_PIXEL + 4 * settings.max_bytes,
        runs_for_long=runs_for_long,
        output_bytes=settings.max_pixels * OUTPUT_BYTES_A_PIXEL + settings.max_bytes + (1 << 20),
    )


def build_anonymizer(
    settings: WorkerSettings,
    watch: Watch = unwatched,
    models: Sequence[LoadedModel] | None = None,
) -> "Anonymizer":
    """Return the anonymizer for `settings`, with `models` or else those of load_models.

    It does all the work in this process. Batches, decoding and encoding run under `watch`. Raises
    the errors of load_models.
    """
    models = models or load_models(settings)
    labels = _labels_to_hide(settings, models)
    detector = _detector(settings, models, _infer(settings, models, watch), labels)
    return _anonymizer(settings, models, detector, watch)


def _anonymizer(
    settings: WorkerSettings,
    models: Sequence[LoadedModel],
    detector: "LabelledDetector",
    watch: Watch,
    is_of_route: bool = False,
) -> "Anonymizer":
    """Return the anonymizer for `settings`, with `detector` for `models`.

    The metrics and the log show the one that is of no route.
    """
    from tasks.telemetry.metrics import initialize_labels
    from worker.anonymizer import Anonymizer
    from worker.residual_check import least_score
    from worker.treatments import Treatments

    allocator.share_arenas()
    labels = tuple(dict.fromkeys(search.label for search in detector.searches))
    rules = searches.rules_of_treatment(settings)
    treatments = Treatments(mask_style(settings), labels, rules)
    recipe = _recipe(settings, models, detector, treatments)
    made_with = {**_digests(models), **_versions()}
    initialize_labels(labels)
    if not is_of_route:
        _announce_detector(settings, models, detector, recipe, made_with)
    return Anonymizer(
        detector=detector,
        style=mask_style(settings),
        limits=_limits(settings, detector.seconds),
        hold_without_faces=settings.no_faces == "hold",
        verify=settings.verify,
        keep=settings.kept_metadata(),
        recipe=recipe,
        made_with=made_with,
        watch=watch,
        labels=labels,
        rules=rules,
        least_check_score=least_score(detector.searches),
    )


class _Batchers:
    """The batchers of all models. They stop when nothing uses this object any more."""

    def __init__(self, batchers: "Sequence[Batcher]") -> None:
        self._batchers = batchers
        for batcher in batchers:
            # The threads keep the model in memory, also when a program has dropped its anonymizer.
            weakref.finalize(self, batcher.stop).atexit = False

    def infer(self, model: int, canvases: "Sequence[Pixels]") -> "Sequence[Detections]":
        """Return the detections of `model` in each of `canvases`."""
        return self._batchers[model].infer(canvases)


def _infer(settings: WorkerSettings, models: Sequence[LoadedModel], watch: Watch) -> "list[Infer]":
    """Return a function for each model, which runs it on canvases in batches."""
    from worker.detection.batching import Batcher

    batchers = [
        Batcher(
            _watched_predict(settings, one.model, watch),
            _batch_size(settings, one.model),
            settings.batch_wait_seconds,
            settings.detect_seconds,
            one.model.lanes,
        )
        for one in models
    ]
    metrics.watch_batchers(batchers)
    shared = _Batchers(batchers)
    return [partial(shared.infer, number) for number in range(len(models))]


def _labels_to_hide(settings: WorkerSettings, models: Sequence[LoadedModel]) -> tuple[str, ...]:
    """Return the labels that `models` search for, and log it if faces are not among them."""
    labels = searches.labels_to_hide(settings, models)
    warn_of_faces(labels)
    return labels


def warn_of_faces(labels: Sequence[str]) -> None:
    """Log a warning if faces are not among the `labels` that are searched for."""
    if FACE not in labels:
        structlog.get_logger("veil").warning(
            "faces are not searched for", labels=", ".join(labels), effect="faces stay visible"
        )


def _detector(
    settings: WorkerSettings,
    models: Sequence[LoadedModel],
    infer: "Sequence[Infer]",
    labels: Iterable[str],
) -> "LabelledDetector":
    """Return the detector: searches for `labels`, whose canvases `infer` gives to `models`."""
    from worker.detection.labelled import LabelledDetector

    inputs = [_model_input(settings, one.model) for one in models]
    planned = searches.searches_of(settings, models, inputs, labels)
    seconds = searches.seconds_of(settings, planned)
    return LabelledDetector(planned, infer, seconds, metrics.count_search)


def _warm_up(
    settings: WorkerSettings,
    models: Sequence[LoadedModel],
    detectors: "Sequence[LabelledDetector]",
) -> None:
    """Give the models on a GPU the batches of usual pictures, once for equal searches."""
    from worker.detection.warm_up import warm_up

    done: list[Search] = []
    for detector in detectors:
        for search in detector.searches:
            model = models[search.model].model
            if model.on_gpu and search not in done:
                infer = detector.infer[search.model]
                warm_up(detector.scaled(search, infer), _batch_size(settings, model))
                done.append(search)


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
    from worker.detection.tiled import MAX_CANVASES_AT_ONCE, ModelInput

    largest = min(max(_batch_size(settings, model), model.lanes), MAX_CANVASES_AT_ONCE)
    return ModelInput(
        model.fixed_size,
        at_once=MAX_CANVASES_AT_ONCE,
        largest_at_once=largest,
        has_few_shapes=model.on_gpu,
    )


def _limits(settings: WorkerSettings, view_seconds: float) -> "Limits":
    """Return the limits of a picture; detection in a view may take `view_seconds`."""
    from worker.anonymizer import Limits

    return Limits(
        max_bytes=settings.max_bytes,
        max_pixels=settings.max_pixels,
        fetch_seconds=settings.fetch_seconds,
        max_frames=settings.max_frames,
        detection_seconds=view_seconds * SLOWEST_VIEWS,
    )


def mask_style(settings: WorkerSettings) -> "MaskStyle":
    """Return the method and the shape by which `settings` hide faces without a rule."""
    from worker.masking.regions import MaskStyle

    return MaskStyle(
        settings.method, settings.region, settings.margin, settings.shape, settings.feather
    )


def _recipe(
    settings: WorkerSettings,
    models: Sequence[LoadedModel],
    detector: "LabelledDetector",
    treatments: "Treatments",
) -> str:
    from worker.anonymizer import recipe_digest

    first = detector.searches[0]
    return recipe_digest(
        model=models[first.model].model.digest,
        score_threshold=first.score_threshold,
        pass_settings=first.settings,
        style=treatments.of(first.label).style,
        keep=settings.kept_metadata(),
        checked=settings.verify != "off",
        labels=searches.recipe_of_labels(detector.searches, models, treatments),
    )


def _digests(models: Sequence[LoadedModel]) -> dict[str, str]:
    """Return the digest and the engine of each model, for receipts."""
    found = {}
    for number, one in enumerate(models, 1):
        suffix = "" if number == 1 else f" {number}"
        found[f"model{suffix}"] = one.model.digest
        found[f"engine{suffix}"] = one.model.engine
    return found


def _versions() -> dict[str, str]:
    """Return the versions of the RECORDED_PACKAGES that are installed."""
    versions = {}
    for package in RECORDED_PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


def _announce_detector(
    settings: WorkerSettings,
    models: Sequence[LoadedModel],
    detector: "LabelledDetector",
    recipe: str,
    made_with: Mapping[str, str],
) -> None:
    """Show in the metrics and in the log which models run, and with which settings."""
    digests = "+".join(one.model.digest[:16] for one in models)
    version = made_with.get("veil", "")
    metrics.BUILD.info({"version": version, "recipe": recipe, "model": digests})
    for search in detector.searches:
        model = models[search.model].model
        structlog.get_logger("veil").info(
            "detector ready",
            label=search.label,
            engine=model.engine,
            device=model.device,
            model=model.digest[:16],
            score_threshold=search.score_threshold,
            preset=searches.rule_of(settings, search.label).preset or settings.preset,
            scales=list(search.settings.scales),
            batch_size=_batch_size(settings, model),
            recipe=recipe,
        )
