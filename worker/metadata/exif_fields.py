"""The EXIF fields that an output may keep on request.

They say when and how a picture was taken, never where, by whom or with which device.
"""

import difflib
from typing import Literal

Kind = Literal["date", "offset", "whole", "ratio"]

# Tags and types of Exif 2.32, tables 7 and 8. No field holds free text, and none is in the
# standard's list of fields that identify a person or a device.
KEEPABLE: dict[str, tuple[int, Kind]] = {
    "DateTimeOriginal": (0x9003, "date"),
    "OffsetTimeOriginal": (0x9011, "offset"),
    "ExposureTime": (0x829A, "ratio"),
    "FNumber": (0x829D, "ratio"),
    "ExposureProgram": (0x8822, "whole"),
    "PhotographicSensitivity": (0x8827, "whole"),
    "ShutterSpeedValue": (0x9201, "ratio"),
    "ApertureValue": (0x9202, "ratio"),
    "ExposureBiasValue": (0x9204, "ratio"),
    "MeteringMode": (0x9207, "whole"),
    "LightSource": (0x9208, "whole"),
    "Flash": (0x9209, "whole"),
    "FocalLength": (0x920A, "ratio"),
    "ExposureMode": (0xA402, "whole"),
    "WhiteBalance": (0xA403, "whole"),
    "FocalLengthIn35mmFilm": (0xA405, "whole"),
    "SceneCaptureType": (0xA406, "whole"),
}
ALIASES = {"ISOSpeedRatings": "PhotographicSensitivity"}  # the name before Exif 2.3


def known_name(name: str) -> str:
    """Return the name in Exif 2.32 of the field `name`, which may be in any case.

    Raises ValueError, with a suggestion, for a field that outputs may not keep.
    """
    names = {known.lower(): ALIASES.get(known, known) for known in (*KEEPABLE, *ALIASES)}
    if name.lower() in names:
        return names[name.lower()]
    close = difflib.get_close_matches(name.lower(), names, 1)
    hint = f"did you mean {names[close[0]]}?" if close else f"choose from {', '.join(KEEPABLE)}"
    raise ValueError(f"{name} is not a field that may be kept: {hint}")
