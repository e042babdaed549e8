"""A decoded picture: its frames, and the views of them that the detector gets."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np
from PIL import Image

from worker.images.display import Display
from worker.images.formats import CONTENT_TYPES
from worker.images.motion import motion_of, without_motion
from worker.images.turning import UPRIGHT
from worker.pixels import Array, Pixels, reduced

BLACK: dict[str, tuple[int, ...]] = {
    "L": (0,),
    "LA": (0, 255),
    "RGB": (0, 0, 0),
    "RGBA": (0, 0, 0, 255),
    "CMYK": (0, 0, 0, 255),
    "I;16": (0,),
    "RGB;16": (0, 0, 0),
    "RGBA;16": (0, 0, 0, 65535),
}
WITH_ALPHA = ("LA", "RGBA", "RGBA;16")
RANGE_SAMPLES = 250_000  # about this many values decide the range of a picture
# A picture that uses a small part of the range of values is stretched, and stretched again if
# nearly all of it uses a small part of that. Each row has the share of the pixels that may be
# below the range, and above it, and the share of the values that is small. Of 1,443 annotated
# photographs none uses less than 0.55 of the values, and none less than 0.25 without its darkest
# and its brightest twentieth.
NARROW = ((0.005, 0.375), (0.05, 0.125))
# A picture is dark if so large a share of its pixels has no channel above this level: so are nearly
# all pictures of the night, and fewer than 1 in 100 annotated photographs. Its noise hides faces
# from the detector, so a view is brightened by a power and smoothed over so many pixels.
DARK_SHARE, DARK_LEVEL = 0.9, 96
BRIGHTENING_POWER, SMOOTHING_SIGMA = 0.5, 1.2
# Rain, fog and stray light brighten what is dark: hardly a pixel then has a channel below this
# level, at most this share of them. Of annotated photographs 1 to 5 in 100 are so. A view of them
# is filtered by a median over STREAK_SIDE pixels, which removes streaks of rain, and stretched.
HAZE_LEVEL, HAZE_SHARE, STREAK_SIDE = 32, 0.01, 3
# The detail of a picture is that within 3 pixels as a share of that within 21, at SHARPNESS_SIDE
# pixels. Below the first share it is blurred; above the second it consists of noise. Of annotated
# photographs a tenth at most is below, and hardly one above. A view of them is smoothed over
# CLEARING_SIGMA pixels at that size. Pictures whose longer side is less than MIN_JUDGED_SIDE are
# enlarged for detection, which smooths them, too. Flat ones, whose detail within 21 pixels is less
# than MIN_DETAIL levels on average, show no face.
MIN_JUDGED_SIDE, MIN_DETAIL = 256, 1.0
SHARPNESS_SIDE, FINE, COARSE = 1024, (3, 3), (21, 21)
BLURRED_SHARE, NOISE_SHARE, CLEARING_SIGMA = 0.12, 0.55, 2.0
STRIP_ROWS = 256  # rows blended with a background at a time, to save memory
WHITE_BACKGROUND, BLACK_BACKGROUND = 255, 0


@dataclass(frozen=True)
class Frame:
    """One frame or page, upright.

    `pixels` is uint8 [h, w] (L), [h, w, 2] (LA), [h, w, 3] (RGB), [h, w, 4] (RGBA, CMYK), or uint16
    [h, w] (I;16), [h, w, 3] (RGB;16), [h, w, 4] (RGBA;16). `display` brings its colours to display
    values for the detector, if they are described unusually. `inks_are_ambiguous` says that the
    file does not state whether a high value of CMYK stands for much ink or for little.
    """

    pixels: Array
    mode: str
    display: Display | None = None
    inks_are_ambiguous: bool = False

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])

    @property
    def black(self) -> tuple[int, ...]:
        """Return the value of an opaque black pixel, one number a channel."""
        return BLACK[self.mode]

    @property
    def colours(self) -> Array:
        """Return the pixels without their transparency."""
        return self.pixels[..., :-1] if self.mode in WITH_ALPHA else self.pixels

    def views(self) -> Iterator[Pixels]:
        """Yield the views in which faces are detected, each uint8 RGB [h, w, 3].

        A frame with transparency has three views: its bare colours, which a tool can reveal, on
        white, and on black. A frame of 16 bits has two: as most viewers show it, and stretched to
        the range of values that it uses. With transparency its bare colours are the stretched ones.
        A dark view is also yielded brightened, one with haze without it, one that motion blurs
        without this blur, and one that is blurred otherwise or noisy smoothed. If every view uses a
        small part of the range only, all are also yielded stretched. If `display` brings the
        colours to other values, all of this is done with the stored values too, because many
        viewers ignore what describes colours. A frame whose inks are ambiguous has two views.
        """
        narrow = []
        for view, alpha in self._unstretched_views():
            narrow.append(list(_narrow_ranges(view, alpha)))
            yield view
            if not narrow[-1]:
                yield from _relit(view, alpha)
            yield from _cleared(view)
        if all(narrow):
            for (view, _), ranges in zip(self._unstretched_views(), narrow, strict=True):
                for used in ranges:
                    if used.size:
                        yield _stretched(view, used)
        if self.display is not None:
            yield from replace(self, display=None).views()

    def on_white(self) -> Pixels:
        """Return the frame as people see it, uint8 RGB [h, w, 3], with transparency on white."""
        views = list(self._unstretched_views())
        first, alpha = views[0]
        return first if alpha is None else views[-2][0]  # The last two are on white, on black.

    def _unstretched_views(self) -> Iterator[tuple[Pixels, Array | None]]:
        """Yield each view with the alpha that hides pixels of it, or None.

        Hidden pixels do not count for the range of a view.
        """
        if self.mode == "CMYK":
            yield _of_inks(self.pixels), None
            if self.inks_are_ambiguous:
                yield _of_inks(255 - self.pixels), None
            return
        is_deep = self.pixels.dtype == np.uint16
        colours = self.pixels
        alpha: Array | None = None
        if self.mode in WITH_ALPHA:
            colours = self.pixels[..., :-1]
            is_opaque = self.pixels[..., -1].min() == np.iinfo(self.pixels.dtype).max
            alpha = None if is_opaque else self.pixels[..., -1]
        if not is_deep or alpha is None:
            yield _rgb(self._shown(colours)), alpha
        if is_deep and self.display is None:
            for used in _ranges_in_use(colours, alpha):
                yield _rgb(_stretched(colours, used)), alpha
        if alpha is not None:
            for background in (WHITE_BACKGROUND, BLACK_BACKGROUND):
                yield _blended(background, self._shown(colours), _eight_bits(alpha)), None

    def _shown(self, colours: Array) -> Array:
        """Return `colours` as a viewer shows them, uint8."""
        return _eight_bits(colours) if self.display is None else self.display.shown(colours)


@dataclass(frozen=True)
class Picture:
    """One decoded file.

    `encoding` holds the options with which Pillow writes the same kind of file again. `reassembled`
    is the file without its metadata, or None if a frame without faces must be encoded again too:
    see worker.images.jpeg. Its pixels are turned by `orientation`, a value of EXIF. `notes` say
    what was wrong with the file without changing a pixel.
    """

    frames: tuple[Frame, ...]
    format: str
    encoding: dict[str, Any] = field(default_factory=dict)
    reassembled: bytes | None = None
    notes: tuple[str, ...] = ()
    orientation: int = UPRIGHT

    @property
    def width(self) -> int:
        return self.frames[0].width

    @property
    def height(self) -> int:
        return self.frames[0].height

    @property
    def content_type(self) -> str:
        return CONTENT_TYPES[self.format]


def _of_inks(inks: Array) -> Pixels:
    """Return uint8 CMYK [h, w, 4] as [h, w, 3]."""
    return np.asarray(Image.fromarray(inks, "CMYK").convert("RGB"))


def _rgb(colours: Array) -> Pixels:
    """Return uint8 [h, w], [h, w, 1] or [h, w, 3] as [h, w, 3]."""
    planes = colours if colours.ndim == 3 else colours[..., None]
    return np.ascontiguousarray(np.broadcast_to(planes, (*planes.shape[:2], 3)))


def _eight_bits(values: Array) -> Array:
    """Return the upper 8 bits of uint16 `values`, or uint8 `values` themselves."""
    return (values >> 8).astype(np.uint8) if values.dtype == np.uint16 else values


@dataclass(frozen=True)
class Range:
    """The values that a picture uses: `size` values from `low` up, which has one for each channel.

    The channels start at different values but have the same contrast, so that the noise of an empty
    channel is not amplified.
    """

    low: Array
    size: int


def _narrow_ranges(view: Pixels, alpha: Array | None) -> Iterator[Range]:
    """Yield the ranges that `view` uses and that are small; a flat picture has one of size 0."""
    available = 256
    for (_, small), used in zip(NARROW, _ranges(view, alpha), strict=True):
        if used.size < small * available:
            yield used
            available = used.size


def _ranges_in_use(colours: Array, alpha: Array | None) -> Iterator[Range]:
    """Yield the range of 16-bit `colours`, and that of nearly all pixels if it is much smaller."""
    whole, middle = _ranges(colours, alpha)
    yield whole
    if 0 < middle.size < NARROW[-1][1] * whole.size:
        yield middle


def _ranges(colours: Array, alpha: Array | None) -> list[Range]:
    """Return the range of `colours` for each row of NARROW, without pixels that `alpha` hides."""
    planes = colours if colours.ndim == 3 else colours[..., None]
    step = max(1, round((planes.size / RANGE_SAMPLES) ** 0.5))
    sample = planes[::step, ::step].reshape(-1, planes.shape[2])
    if alpha is not None:
        sample = sample[alpha[::step, ::step].ravel() > 0]
    values = np.iinfo(colours.dtype).max + 1
    histograms = [np.bincount(channel, minlength=values) for channel in sample.T]
    cumulative = np.stack(histograms).cumsum(axis=1)
    ranges = []
    for tail, _ in NARROW:
        low = (cumulative <= tail * len(sample)).sum(axis=1).clip(0, values - 1)
        high = (cumulative < (1 - tail) * len(sample)).sum(axis=1)
        ranges.append(Range(low, max(0, int((high - low).max()))))
    return ranges


def _stretched(colours: Array, used: Range) -> Array:
    """Return `colours` as uint8, with the lowest values of `used` as 0 and the highest as 255."""
    planes = colours if colours.ndim == 3 else colours[..., None]
    result = np.empty(planes.shape, np.uint8)
    values = np.arange(np.iinfo(colours.dtype).max + 1)
    for channel, low in enumerate(used.low):
        table = ((values - low) * (255 / max(used.size, 1))).clip(0, 255).astype(np.uint8)
        result[..., channel] = table[planes[..., channel]]
    return result


def _relit(view: Pixels, alpha: Array | None) -> Iterator[Pixels]:
    """Yield `view` brightened if it is dark, and without its haze if it has any."""
    step = max(1, round((view.size / RANGE_SAMPLES) ** 0.5))
    red, green, blue = cv2.split(np.ascontiguousarray(view[::step, ::step]))
    brightest = cv2.max(cv2.max(red, green), blue)
    darkest = cv2.min(cv2.min(red, green), blue)
    if np.count_nonzero(brightest < DARK_LEVEL) > DARK_SHARE * brightest.size:
        yield _brightened(view)
    if np.count_nonzero(darkest < HAZE_LEVEL) <= HAZE_SHARE * darkest.size:
        yield _without_haze(view, alpha)


def _without_haze(view: Pixels, alpha: Array | None) -> Pixels:
    """Return `view` without streaks, stretched; pixels that `alpha` hides do not count."""
    clear = np.asarray(cv2.medianBlur(view, STREAK_SIDE), np.uint8)
    return _stretched(clear, _ranges(clear, alpha)[0])


def _brightened(view: Pixels) -> Pixels:
    """Return `view` brightened and smoothed."""
    levels = 255 * (np.arange(256) / 255) ** BRIGHTENING_POWER
    bright = levels.round().astype(np.uint8)[view]
    return np.asarray(cv2.GaussianBlur(bright, (0, 0), SMOOTHING_SIGMA), np.uint8)


def _cleared(view: Pixels) -> Iterator[Pixels]:
    """Yield `view` without its blur or noise, if it has any."""
    gray = reduced(cv2.cvtColor(view, cv2.COLOR_RGB2GRAY).astype(np.uint8), SHARPNESS_SIDE)
    if motion := motion_of(gray):
        yield without_motion(view, motion)
    elif _is_unclear(gray):
        yield _smoothed(view)


def _is_unclear(gray: Pixels) -> bool:
    """Return whether a picture is blurred or noisy; `gray` [h, w] is that at SHARPNESS_SIDE."""
    if max(gray.shape) < MIN_JUDGED_SIDE:
        return False
    fine, coarse = (cv2.mean(cv2.absdiff(gray, cv2.blur(gray, size)))[0] for size in (FINE, COARSE))
    return coarse >= MIN_DETAIL and not BLURRED_SHARE <= fine / coarse <= NOISE_SHARE


def _smoothed(view: Pixels) -> Pixels:
    """Return `view` smoothed over CLEARING_SIGMA pixels, more if it is large."""
    sigma = CLEARING_SIGMA * max(1.0, max(view.shape) / SHARPNESS_SIDE)
    return np.asarray(cv2.GaussianBlur(view, (0, 0), sigma), np.uint8)


def _blended(background: int, colours: Array, alpha: Array) -> Pixels:
    """Return uint8 `colours` blended by `alpha` [h, w] with a background of one gray level."""
    result = np.empty((*alpha.shape, 3), np.uint8)
    for top in range(0, len(alpha), STRIP_ROWS):
        rows = slice(top, top + STRIP_ROWS)
        opacity = alpha[rows, :, None].astype(np.uint16)
        planes = colours[rows] if colours.ndim == 3 else colours[rows, :, None]
        result[rows] = (planes * opacity + background * (255 - opacity) + 127) // 255
    return result
