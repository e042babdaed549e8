"""The density of a picture's pixels, which decides its size in print."""

import math
from typing import Any

MIN_DOTS = 1.0  # an inch: what Pillow says of a TIFF without a density
MAX_DOTS = 65_000.0  # an inch; JPEG has 16 bits for it


def of(image: Any) -> tuple[float, float] | None:
    """Return the dots an inch across and down that the file of Pillow's `image` states, or None."""
    stated = image.info.get("dpi")
    if not isinstance(stated, tuple) or len(stated) != 2:
        return None
    try:
        across, down = (float(dots) for dots in stated)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    is_sound = all(math.isfinite(dots) and MIN_DOTS < dots < MAX_DOTS for dots in (across, down))
    return (across, down) if is_sound else None
