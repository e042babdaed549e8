"""Composition root: settings to detector to pipeline."""

import os
from typing import TYPE_CHECKING, Any

import structlog
from celery.signals import worker_ready

from tasks.s3 import ObjectStore
from tasks.settings import refuse_unknown
from worker import logs
from worker.settings import WorkerSettings

if TYPE_CHECKING:
    from worker.masking import MaskStyle
    from worker.pipeline import Pipeline
    from worker.saved_model import SavedModel

BATCH_ON_GPU = 8
BATCH_ON_CPU = 1


def worker_pipeline() -> "Pipeline":
    """The pipeline of a queue worker, configured by the environment (entry point of the group ``veil``)."""
    refuse_unknown(os.environ, WorkerSettings)
    settings = WorkerSettings.load()
    logs.configure(settings.log_format)
    worker_ready.connect(_log_ready, weak=False)
    return build_pipeline(settings, ObjectStore.connect(settings, connections=settings.concurrency + 2))


def load_model(settings: WorkerSettings) -> "SavedModel":
    """The model that `settings` name, by default the bundled one, built on first use; ModelInvalid if that fails."""
    from worker import models
    from worker.saved_model import SavedModel

    if folder := settings.model_path():
        return SavedModel(folder)
    return SavedModel(models.default_model(), models.DIGEST)


def _log_ready(sender: Any, **_: Any) -> None:
    structlog.get_logger("veil").info("worker ready", worker=sender.hostname)


def mask_style(settings: WorkerSettings) -> "MaskStyle":
    """How `settings` say that faces are hidden."""
    from worker.masking import MaskStyle

    return MaskStyle(settings.method, settings.region, settings.margin, settings.shape, settings.feather)


def build_pipeline(settings: WorkerSettings, store: ObjectStore | None) -> "Pipeline":
    """The pipeline for `settings`, its model loaded and warmed; ModelInvalid if that fails.

    `store` is None where only local files are anonymized.
    """
    from worker.batching import Batcher
    from worker.detector import ScaledDetector
    from worker.pipeline import Limits, Pipeline, recipe_digest

    model = load_model(settings)
    threshold = settings.score_threshold or model.score_threshold
    batch_size = settings.batch_size or (BATCH_ON_GPU if model.on_gpu else BATCH_ON_CPU)
    batcher = Batcher(model.predict, batch_size, settings.batch_wait_seconds, settings.detect_seconds)
    style = mask_style(settings)
    look = settings.look()
    recipe = recipe_digest(model=model.digest, score_threshold=threshold, look=look, style=style)
    structlog.get_logger("veil").info(
        "detector ready",
        device=model.device,
        model=model.digest[:16],
        score_threshold=threshold,
        preset=settings.preset,
        scales=list(look.scales),
        batch_size=batch_size,
        recipe=recipe,
    )
    return Pipeline(
        store=store,
        detector=ScaledDetector(batcher.infer, look, threshold, model.fixed_size),
        style=style,
        limits=Limits(settings.max_bytes, settings.max_pixels, settings.fetch_seconds),
        hold_without_faces=settings.no_faces == "hold",
        route_table=settings.parsed_routes(),
        recipe=recipe,
    )
