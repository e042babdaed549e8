"""Bring pixels to display values for the detector, where their colours are described unusually.

ITU-T H.273 (code points); ITU-R BT.2100 (PQ, HLG); PNG, third edition (gAMA); ICC.1:2022. Outputs
keep the stored values, and the description with them.
"""

import io
import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from worker.images.colour_profile import COLOUR_SPACE, COLOUR_SPACES
from worker.pixels import Array, Pixels

# TransferCharacteristics of H.273.
LINEAR, PQ, HLG = 8, 16, 18
PEAK_NITS = 1000.0  # the brightness of an HDR display
WHITE_NITS = 203.0  # the brightness of white paper in HDR (BT.2408)
# Gammas of gAMA and of profiles nearer to sRGB's than this are left alone: faces look the same.
USUAL_GAMMA, GAMMA_TOLERANCE = 2.2, 0.8
# The largest difference between the colours of a usual profile and sRGB's, for grays and skin.
MAX_USUAL_DIFFERENCE = 40
GRAYS = tuple((level, level, level) for level in range(0, 256, 15))
SKIN = ((224, 172, 138), (255, 219, 172), (198, 134, 66), (141, 85, 36), (92, 57, 36))
LEVELS = 1 << 16


@dataclass(frozen=True)
class Display:
    """The way from stored values to display values of sRGB.

    `table` maps 16-bit values of each channel to 8 bits. `profile` is an ICC profile for values of
    8 bits. Each may be None.
    """

    table: Array | None = None
    profile: bytes | None = None

    def shown(self, colours: Array) -> Array:
        """Return `colours`, uint8 or uint16 of any number of channels, as uint8."""
        if colours.dtype == np.uint16:
            table = self.table
            return (colours >> 8).astype(np.uint8) if table is None else table[colours]
        if self.profile is not None and colours.ndim == 3 and colours.shape[2] == 3:
            return _transformed(colours, self.profile)
        return colours if self.table is None else self.table[::257][colours]


def of(
    transfer: int | None = None, profile: bytes | None = None, gamma: float | None = None
) -> Display | None:
    """Return the way to display values, or None where the stored values are such values.

    `transfer` is a transfer characteristic, which counts before `profile`, an ICC profile. `gamma`
    is that of PNG's gAMA: the exponent of encoding.
    """
    if transfer in (LINEAR, PQ, HLG):
        return Display(_table(transfer))
    if profile is not None:
        is_gray = profile[COLOUR_SPACE] == COLOUR_SPACES["L"]
        return _of_gray_profile(profile) if is_gray else _of_profile(profile)
    if gamma and abs(1 / gamma - USUAL_GAMMA) > GAMMA_TOLERANCE:
        return Display(_encoded(np.linspace(0, 1, LEVELS) ** (1 / gamma)))
    return None


@lru_cache(maxsize=4)
def _table(transfer: int) -> Array:
    """Return the table of a transfer characteristic."""
    signal = np.linspace(0, 1, LEVELS)
    if transfer == LINEAR:
        return _encoded(signal)
    return _encoded(_tone_mapped(_pq_nits(signal) if transfer == PQ else _hlg_nits(signal)))


def _pq_nits(signal: Array) -> Array:
    """Return the luminance of a PQ `signal` (BT.2100, table 4)."""
    m1, m2, c1, c2, c3 = 0.1593017578125, 78.84375, 0.8359375, 18.8515625, 18.6875
    power = signal ** (1 / m2)
    nits: Array = 10_000 * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)
    return nits


def _hlg_nits(signal: Array) -> Array:
    """Return the luminance of an HLG `signal` on a display of PEAK_NITS (BT.2100, table 5)."""
    a, b, c, system_gamma = 0.17883277, 0.28466892, 0.55991073, 1.2
    scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    nits: Array = PEAK_NITS * scene**system_gamma
    return nits


def _tone_mapped(nits: Array) -> Array:
    """Return `nits` from 0 to 1, with the brightest compressed (extended Reinhard)."""
    level, white = nits / WHITE_NITS, PEAK_NITS / WHITE_NITS
    mapped: Array = (level * (1 + level / white**2) / (1 + level)).clip(0, 1)
    return mapped


def _encoded(light: Array) -> Array:
    """Return linear `light` from 0 to 1 as values of sRGB, uint8 (IEC 61966-2-1)."""
    curve = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return (curve.clip(0, 1) * 255).round().astype(np.uint8)


def _of_profile(profile: bytes) -> Display | None:
    """Return the way that an RGB `profile` describes, or None for a usual one."""
    table = None
    gamma = _gamma(profile)
    if gamma and abs(gamma - USUAL_GAMMA) > GAMMA_TOLERANCE:
        table = _encoded(np.linspace(0, 1, LEVELS) ** gamma)
    probe = np.array([[*GRAYS, *SKIN]], np.uint8)
    try:
        seen = _transformed(probe, profile)
    except (ImageCms.PyCMSError, OSError):
        return None
    difference = np.abs(seen.astype(int) - probe).max()
    is_usual = difference <= MAX_USUAL_DIFFERENCE
    if is_usual and table is None:
        return None
    return Display(table, None if is_usual else profile)


def _of_gray_profile(profile: bytes) -> Display | None:
    """Return the way that a gray `profile` describes, or None for a usual one."""
    levels = np.arange(256, dtype=np.uint8)
    try:
        transform = _transform(profile, "L")
        seen: Any = ImageCms.applyTransform(Image.fromarray(levels[None]), transform)
    except (ImageCms.PyCMSError, OSError):
        return None
    shown = np.asarray(seen)[0, :, 1]
    if np.abs(shown.astype(int) - levels).max() <= MAX_USUAL_DIFFERENCE:
        return None
    return Display(np.repeat(shown, LEVELS // len(levels)))


def _gamma(profile: bytes) -> float | None:
    """Return the gamma of a profile whose green channel has one, or None."""
    count = int.from_bytes(profile[128:132])
    for number in range(count):
        name, at, _ = struct.unpack_from(">4sII", profile, 132 + 12 * number)
        if name != b"gTRC":
            continue
        if profile[at : at + 4] == b"curv":
            values = int.from_bytes(profile[at + 8 : at + 12])
            if values == 0:
                return 1.0
            return int.from_bytes(profile[at + 12 : at + 14]) / 256 if values == 1 else None
        if profile[at : at + 4] == b"para" and profile[at + 8 : at + 10] == b"\0\0":
            return int.from_bytes(profile[at + 12 : at + 16]) / 65536
    return None


def _transformed(colours: Array, profile: bytes) -> Pixels:
    """Return uint8 RGB `colours` [h, w, 3] in sRGB."""
    result: Any = Image.fromarray(np.ascontiguousarray(colours))
    ImageCms.applyTransform(result, _transform(profile, "RGB"), inPlace=True)
    return np.asarray(result)


@lru_cache(maxsize=4)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform:
    """Return the transform of pixels of `mode` in the colours of `profile` to RGB in sRGB."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    target = ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(source, target, mode, "RGB")
