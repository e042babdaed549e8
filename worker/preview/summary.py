"""The figures of a preview: what each variant found, what failed, and what the whole would take."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tasks.messages import FACE
from worker.object_counts import counted_objects
from worker.preview.capacity import Capacity, Prices, capacity
from worker.preview.sources import SourcePicture, size_class
from worker.preview.trial import Attempt, TriedPicture
from worker.preview.variants import Variant
from worker.sampling.drawing import StratifiedSample, Stratum
from worker.sampling.sizes import FACE_SIZE_NAMES, face_size

SCORE_BINS = 10


@dataclass(frozen=True)
class VariantSummary:
    """The figures of one variant over all drawn pictures.

    `seconds_a_picture` is the mean over the whole place, in which each stratum counts by its
    pictures; None if every picture failed. `errors` counts the failures by their error, `labels`
    all objects by their label. `faces_by_size` and `scores` are of faces alone.
    """

    name: str
    pictures: int
    with_faces: int
    with_objects: int
    faces: int
    labels: dict[str, int]
    found_by_check: int
    held: int
    failed: int
    faces_by_size: dict[str, int]
    scores: list[int]
    errors: dict[str, int]
    reasons: dict[str, int]
    stage_seconds: dict[str, float]
    seconds_a_picture: float | None
    whole: Capacity | None

    @property
    def found(self) -> str:
        """The objects that were found, for people."""
        return counted_objects(list(Counter(self.labels).elements()))


@dataclass(frozen=True)
class Preview:
    """A preview: the place, how the sample was drawn, the pictures, and the figures."""

    place: str
    seed: int
    count: int
    size_bytes: int
    strata: list[dict[str, Any]]
    prices: Prices
    variants: list[VariantSummary]
    pictures: list[TriedPicture] = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return all figures as JSON values, without pixels."""
        return {
            "place": self.place,
            "seed": self.seed,
            "pictures": self.count,
            "bytes": self.size_bytes,
            "sampled": len(self.pictures),
            "strata": self.strata,
            "prices": vars(self.prices),
            "variants": [_variant_json(variant) for variant in self.variants],
            "sample": [_picture_json(one, self.variants) for one in self.pictures],
        }


def summarize(
    place: str,
    seed: int,
    sample: StratifiedSample[SourcePicture],
    strata: Sequence[Stratum[SourcePicture]],
    variants: Sequence[Variant],
    tried: list[TriedPicture],
    cores: int,
    prices: Prices,
    has_requests: bool,
) -> Preview:
    """Return the preview of a sample whose pictures were `tried`, with the model for the whole."""
    by_address = {one.picture.address: one for one in tried}

    def whole(number: int) -> tuple[float | None, Capacity | None]:
        seconds, output_share = _means(strata, by_address, number)
        if seconds is None:
            return None, None
        output_bytes = output_share * sample.size_bytes
        taken = capacity(sample.count, seconds, output_bytes, cores, prices, has_requests)
        return seconds, taken

    summaries = []
    for number, variant in enumerate(variants):
        attempts = [one.attempts[number] for one in tried]
        summaries.append(_summary(variant.name, attempts, *whole(number)))
    return Preview(
        place=place,
        seed=seed,
        count=sample.count,
        size_bytes=sample.size_bytes,
        strata=[_stratum_json(sample, key) for key in sample.strata],
        prices=prices,
        variants=summaries,
        pictures=tried,
    )


def _summary(
    name: str, attempts: Sequence[Attempt], seconds: float | None, whole: Capacity | None
) -> VariantSummary:
    done = [attempt for attempt in attempts if attempt.status != "failed"]
    sizes = Counter(face_size(box) for attempt in done for box in attempt.face_boxes)
    labels = Counter(label for attempt in done for label in attempt.labels)
    bins = [0] * SCORE_BINS
    stages: Counter[str] = Counter()
    for attempt in done:
        stages.update(attempt.seconds)
        for score in attempt.face_scores:
            bins[min(int(score * SCORE_BINS), SCORE_BINS - 1)] += 1
    return VariantSummary(
        name=name,
        pictures=len(attempts),
        with_faces=sum(bool(attempt.face_boxes) for attempt in done),
        with_objects=sum(bool(attempt.boxes_xyxy) for attempt in done),
        faces=labels[FACE],
        labels=dict(labels),
        found_by_check=sum(attempt.found_by_check for attempt in done),
        held=sum(attempt.status == "held" for attempt in done),
        failed=len(attempts) - len(done),
        faces_by_size={size: sizes[size] for size in FACE_SIZE_NAMES},
        scores=bins,
        errors=dict(Counter(attempt.error for attempt in attempts if attempt.error)),
        reasons=dict(Counter(attempt.reason for attempt in done if attempt.reason)),
        stage_seconds={stage: total / len(done) for stage, total in stages.items()},
        seconds_a_picture=seconds,
        whole=whole,
    )


def _means(
    strata: Sequence[Stratum[SourcePicture]], tried: dict[str, TriedPicture], number: int
) -> tuple[float | None, float]:
    """Return the seconds a picture, and the bytes of the outputs as a share of the sources'.

    Each stratum of which a picture succeeded counts by the number of its pictures.
    """
    seconds = pictures = 0.0
    bytes_in = bytes_out = 0.0
    for stratum in strata:
        outcomes = [tried[picture.address].attempts[number] for picture in stratum.drawn]
        done = [outcome for outcome in outcomes if outcome.status != "failed"]
        if not done:
            continue
        mean = sum(outcome.total_seconds for outcome in done) / len(done)
        seconds += stratum.count * mean
        pictures += stratum.count
        sources = sum(
            picture.size
            for picture, outcome in zip(stratum.drawn, outcomes, strict=True)
            if outcome.output_bytes
        )
        if sources:
            made = sum(outcome.output_bytes for outcome in done)
            bytes_in += stratum.size_bytes
            bytes_out += stratum.size_bytes * made / sources
    share = bytes_out / bytes_in if bytes_in else 0.0
    return (seconds / pictures if pictures else None), share


def _stratum_json(sample: StratifiedSample[SourcePicture], key: Any) -> dict[str, Any]:
    stratum = sample.strata[key]
    prefix, size = key
    return {
        "prefix": prefix,
        "size": size,
        "pictures": stratum.count,
        "bytes": stratum.size_bytes,
        "sampled": len(stratum.drawn),
    }


def _variant_json(variant: VariantSummary) -> dict[str, Any]:
    fields = dict(vars(variant))
    if variant.whole is not None:
        fields["whole"] = {**vars(variant.whole), "dollars": variant.whole.dollars}
    return fields


def _picture_json(one: TriedPicture, variants: Sequence[VariantSummary]) -> dict[str, Any]:
    attempts = {}
    for variant, attempt in zip(variants, one.attempts, strict=True):
        fields = {name: value for name, value in vars(attempt).items() if name != "after"}
        attempts[variant.name] = fields
    return {
        "source": one.picture.address,
        "bytes": one.picture.size,
        "size": size_class(one.picture.size),
        "variants": attempts,
    }
