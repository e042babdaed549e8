"""The report of an acceptance sample as a page."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from worker import pages
from worker.local_files import write_atomically
from worker.printing import UNKNOWN
from worker.sampling.acceptance import Acceptance, low_end, percent, percent_up
from worker.sampling.intervals import CONFIDENCE, Rate

OWNER_ONLY = 0o600  # Addresses of pictures with a miss are nobody else's business.


def write(path: Path, result: Acceptance) -> None:
    """Write the report to `path`, for its owner alone. Raise OutputFailed."""
    write_atomically(path, page(result), OWNER_ONLY)


def page(result: Acceptance) -> bytes:
    """Return the report as HTML. It has no pixels."""
    rows: Mapping[str, Callable[[Rate], str]] = {
        "low": low_end,
        "high": lambda rate: percent_up(rate.high),
        "bound": lambda rate: percent_up(rate.upper_bound),
    }
    if result.is_census:
        rows = dict.fromkeys(rows, lambda _: UNKNOWN)
    return pages.self_contained(
        "sample_report.html",
        (),
        result=result,
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        percent=percent,
        **rows,
        confidence=f"{CONFIDENCE * 100:.0f} %",
    )
