"""The report of an acceptance sample as a page."""

from datetime import UTC, datetime
from pathlib import Path

from worker import pages
from worker.local_files import write_atomically
from worker.sampling.acceptance import Acceptance, percent, percent_down, percent_up
from worker.sampling.intervals import CONFIDENCE

OWNER_ONLY = 0o600  # Addresses of pictures with a miss are nobody else's business.


def write(path: Path, result: Acceptance) -> None:
    """Write the report to `path`, for its owner alone. Raise OutputFailed."""
    write_atomically(path, page(result), OWNER_ONLY)


def page(result: Acceptance) -> bytes:
    """Return the report as HTML. It has no pixels."""
    return pages.self_contained(
        "sample_report.html",
        (),
        result=result,
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        percent=percent,
        percent_down=percent_down,
        percent_up=percent_up,
        confidence=f"{CONFIDENCE * 100:.0f} %",
    )
