"""Acceptance sampling: the rate of misses in an archive, from a sample that people reviewed."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tasks.bulk.boxes import iou
from tasks.records.samples import Mark, Sample, SampledPicture
from worker.printing import counted
from worker.sampling.intervals import (
    CONFIDENCE,
    Rate,
    exact_rate,
    pictures_needed,
    rate,
    rate_in_clusters,
)
from worker.sampling.sizes import FACE_SIZE_NAMES, face_size

# A mark with this intersection over union with a hidden face is the same face.
SAME_FACE_IOU = 0.3
DIGITS = 2  # of a small percentage
SMALLEST_SHARE = 1e-9  # no sample is large enough to show less
# A lower end below this share of the estimate says no more than that there is a miss.
LEAST_LOW = 0.01
ROUNDING_ERROR = 1e-6  # of a float, as a share of the last digit that is shown
WANTED_RATES = (0.05, 0.02, 0.01, 0.005, 0.001)  # for which a report says the size of the sample

ALL = "100.0 %"

Box = Sequence[float]


@dataclass(frozen=True)
class Finding:
    """A reviewed picture: the faces that were hidden, and those that are still recognisable.

    `others_xyxy` are the boxes of other objects that the reviewer marked, by their label.
    """

    picture: SampledPicture
    exposed_xyxy: list[list[int]]
    by: str
    others_xyxy: Mapping[str, list[list[int]]] = field(default_factory=dict)

    @property
    def faces(self) -> list[Box]:
        """All faces of the picture: the exposed ones, and the hidden ones that are no exposed."""
        exposed: list[Box] = list(self.exposed_xyxy)
        hidden = [
            box
            for box in self.picture.boxes_xyxy
            if all(iou(box, other) < SAME_FACE_IOU for other in exposed)
        ]
        return exposed + hidden

    @property
    def others(self) -> list[tuple[str, Box]]:
        """All other objects of the picture with their labels: hidden ones, and marked ones."""
        hidden = zip(self.picture.other_labels, self.picture.others_xyxy, strict=False)
        marked = [(label, box) for label, its in self.others_xyxy.items() for box in its]
        return [*hidden, *marked]


@dataclass(frozen=True)
class Acceptance:
    """The result of a sample: rates with their intervals, and the pictures with a miss.

    `skipped` pictures were replaced or deleted before they were reviewed, and count nowhere.
    `needed` says for some rates how many pictures without a miss show that fewer have one.
    """

    sample: Sample
    reviewed: int
    pictures: Rate
    faces: Rate
    by_size: dict[str, Rate]
    by_route: dict[str, tuple[Rate, Rate]]
    needed: dict[float, int | None]
    misses: list[Finding]
    skipped: int = 0

    @property
    def is_complete(self) -> bool:
        """True if every picture was reviewed that could be, and at least one."""
        return self.reviewed > 0 and not self.unreviewed

    @property
    def is_census(self) -> bool:
        """True if every picture of the archive was drawn and reviewed: the rates are exact."""
        return 0 < self.reviewed == self.sample.count

    @property
    def unreviewed(self) -> int:
        """The number of pictures that can still be reviewed."""
        return len(self.sample.pictures) - self.reviewed - self.skipped

    @property
    def statement(self) -> str:
        """The result in one sentence."""
        if not self.reviewed:
            return "No picture has been reviewed."
        found = self.pictures.found
        misses = f"{counted(found, 'picture')} with a miss" if found else "No miss"
        result = f"{misses} in {counted(self.reviewed, 'picture')}"
        if self.is_census:
            return f"{result}, which are all of the archive."
        if percent_up(self.pictures.upper_bound) == ALL:
            return f"{result}: too few without one to say how many of all pictures have one."
        return (
            f"{result}: fewer than {percent_up(self.pictures.upper_bound)} of all pictures have an "
            f"exposed face, at {CONFIDENCE * 100:.0f} % (one-sided)."
        )

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return {
            "name": self.sample.name,
            "addresses": self.sample.addresses,
            "seed": self.sample.seed,
            "archive": self.sample.count,
            "drawn": len(self.sample.pictures),
            "reviewed": self.reviewed,
            "skipped": self.skipped,
            "complete": self.is_complete,
            "census": self.is_census,
            "confidence": CONFIDENCE,
            "statement": self.statement,
            "pictures": asdict(self.pictures),
            "faces": asdict(self.faces),
            "faces_by_size": {size: asdict(one) for size, one in self.by_size.items()},
            "by_route": {
                route: {"pictures": asdict(pictures), "faces": asdict(faces)}
                for route, (pictures, faces) in self.by_route.items()
            },
            "pictures_needed": {str(share): number for share, number in self.needed.items()},
            "misses": [
                {
                    "output": finding.picture.output,
                    "source": finding.picture.source,
                    "exposed_xyxy": finding.exposed_xyxy,
                    "by": finding.by,
                }
                for finding in self.misses
            ],
        }


def accept(sample: Sample, marks: Mapping[int, Mark]) -> Acceptance:
    """Return what `marks`, by the number of the picture, say about the archive of `sample`."""
    findings = []
    skipped = 0
    for number, picture in enumerate(sample.pictures):
        mark = marks.get(number)
        if mark is None:
            continue
        if mark.is_gone:
            skipped += 1
        else:
            findings.append(Finding(picture, mark.exposed_xyxy, mark.by, mark.others_xyxy))
    is_census = 0 < len(findings) == sample.count
    routes = sorted({finding.picture.route for finding in findings})
    by_route = {}
    for route in routes:
        own = [finding for finding in findings if finding.picture.route == route]
        by_route[route] = (_picture_rate(own, is_census), _face_rate(own, is_census))
    return Acceptance(
        sample=sample,
        reviewed=len(findings),
        pictures=_picture_rate(findings, is_census),
        faces=_face_rate(findings, is_census),
        by_size={size: _face_rate(findings, is_census, size) for size in FACE_SIZE_NAMES},
        by_route=by_route,
        needed={share: pictures_needed(share) for share in WANTED_RATES},
        misses=[finding for finding in findings if finding.exposed_xyxy],
        skipped=skipped,
    )


def percent(share: float) -> str:
    """Return a share with as many digits as matter."""
    return _percent(share, round)


def percent_up(share: float) -> str:
    """Return a share as `percent` does, rounded up: the upper end of an interval must hold."""
    return _percent(share, lambda number: math.ceil(number - ROUNDING_ERROR))


def percent_down(share: float) -> str:
    """Return a share as `percent` does, rounded down, for the lower end of an interval."""
    return _percent(share, lambda number: math.floor(number + ROUNDING_ERROR))


def low_end(rate: Rate) -> str:
    """Return the lower end of an interval. It is not 0 where something was found."""
    if rate.estimate and rate.low < rate.estimate * LEAST_LOW:
        return "> 0 %"
    return percent_down(rate.low)


def says_nothing(rate: Rate) -> bool:
    """Return whether the interval is that of an unknown rate: from almost 0 % to 100 %."""
    return low_end(rate) in ("0 %", "> 0 %") and percent_up(rate.high) == ALL


def _percent(share: float, whole: Callable[[float], int]) -> str:
    if share >= 0.00995:
        return f"{whole(share * 1000) / 10:.1f} %"
    if share < SMALLEST_SHARE:
        return "0 %"
    digits = DIGITS - 1 - math.floor(math.log10(share * 100))
    text = f"{whole(share * 100 * 10**digits) / 10**digits:.{digits}f}"
    return text.rstrip("0").rstrip(".") + " %"


def _picture_rate(findings: Sequence[Finding], is_census: bool) -> Rate:
    rate_of = exact_rate if is_census else rate
    return rate_of(sum(bool(finding.exposed_xyxy) for finding in findings), len(findings))


def _face_rate(findings: Sequence[Finding], is_census: bool, size: str | None = None) -> Rate:
    """Return the rate of exposed faces, or of those of one size."""

    def count(boxes: Sequence[Box]) -> int:
        return sum(size is None or face_size(box) == size for box in boxes)

    exposed = [count(finding.exposed_xyxy) for finding in findings]
    faces = [count(finding.faces) for finding in findings]
    return exact_rate(sum(exposed), sum(faces)) if is_census else rate_in_clusters(exposed, faces)
