"""The sheet of a preview: one HTML file that needs nothing else."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tasks.messages import FACE
from worker import pages
from worker.local_files import write_atomically
from worker.object_counts import counted_objects
from worker.preview.capacity import BUSY_SHARE
from worker.preview.summary import SCORE_BINS, Preview
from worker.printing import counted
from worker.sampling.sizes import FACE_SIZE_NAMES

OWNER_ONLY = 0o600  # The sheet may hold clear pictures.
BYTE_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
# The chart of scores, in units of its drawing.
CHART_LEFT, CHART_WIDTH, CHART_BOTTOM, CHART_HEIGHT = 24, 392, 152, 130


@dataclass(frozen=True)
class Bar:
    """A bar of the chart: the share of one variant in one bin."""

    series: int
    x: float
    y: float
    width: float
    height: float
    title: str


@dataclass(frozen=True)
class Histogram:
    """The scores of the faces, a bar for each variant and bin."""

    bars: list[Bar]
    highest: int
    description: str


def write(path: Path, preview: Preview) -> None:
    """Write the sheet of `preview` to `path`, for its owner alone. Raise OutputFailed."""
    write_atomically(path, page(preview), OWNER_ONLY)


def page(preview: Preview) -> bytes:
    """Return the sheet as HTML. It shows sources if the pictures have them."""
    whole = next((variant.whole for variant in preview.variants if variant.whole), None)
    return pages.self_contained(
        "preview.html",
        ("preview.js",),
        preview=preview,
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        shows_originals=any(one.before for one in preview.pictures),
        has_requests="://" in preview.place,
        cores=whole.cores if whole else 0,
        busy=round(BUSY_SHARE * 100),
        sizes=FACE_SIZE_NAMES,
        histogram=_histogram(preview),
        failures=_failures(preview),
        labels=sorted({label for v in preview.variants for label in v.labels} - {FACE}),
        found=counted_objects,
        plain=FACE,
        uri=pages.data_uri,
        size_text=size_text,
        amount=amount,
    )


def size_text(size: float) -> str:
    """Return a number of bytes for people."""
    for unit, name in BYTE_UNITS:
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size:.0f} bytes"


def amount(number: float) -> str:
    """Return hours or dollars with as many digits as matter."""
    if number >= 100:
        return f"{number:,.0f}"
    return f"{number:.2f}" if number >= 0.01 or number == 0 else "below 0.01"


def _failures(preview: Preview) -> list[tuple[str, str, str, str]]:
    """Return the address, the variant, the error and the message of each failure, once."""
    rows = []
    for one in preview.pictures:
        reasons: dict[tuple[str, str], list[str]] = {}
        for variant, attempt in zip(preview.variants, one.attempts, strict=True):
            if attempt.status == "failed":
                reason = (attempt.error or "", attempt.message or "")
                reasons.setdefault(reason, []).append(variant.name)
        for (error, message), names in reasons.items():
            tried = "all" if len(names) == len(preview.variants) else ", ".join(names)
            rows.append((one.picture.address, tried, error, message))
    return rows


def _histogram(preview: Preview) -> Histogram:
    highest = max(max(variant.scores) for variant in preview.variants)
    bin_width = CHART_WIDTH / SCORE_BINS
    width = (bin_width - 4) / len(preview.variants)
    bars = []
    for series, variant in enumerate(preview.variants):
        for number, count in enumerate(variant.scores):
            height = CHART_HEIGHT * count / max(highest, 1)
            x = CHART_LEFT + number * bin_width + 2 + series * width
            scores = f"{number / SCORE_BINS:.1f} to {(number + 1) / SCORE_BINS:.1f}"
            title = f"{variant.name}: {counted(count, 'face')} with a score of {scores}"
            y = CHART_BOTTOM - height
            bars.append(Bar(series % 5, round(x, 1), round(y, 1), width, round(height, 1), title))
    parts = [
        f"{variant.name}: {counted(sum(variant.scores), 'face')}" for variant in preview.variants
    ]
    return Histogram(bars, highest, "Histogram of scores from 0 to 1. " + "; ".join(parts))
