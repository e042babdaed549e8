"""Motion blur: its length and direction, and the picture as it would be without it.

A camera or an object that moves evenly during the exposure smears each point over a line. The
spectrum of the picture is then divided by zeros into stripes, whose distance tells the length of
the line and whose direction is across it. The logarithm of the spectrum, transformed back (the
cepstrum), has a minimum at the end of the line.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy import fft  # not loaded with numpy, and the sandbox allows no import later
from numpy.typing import NDArray

from worker.pixels import Floats, Pixels, reduced

# The sides, in pixels, of the gray picture in which motion is searched, and of the blocks of it
# whose spectra are averaged, so that what the picture shows cancels out.
SEARCHED_SIDE, BLOCK_SIDE = 1024, 256
# Blocks whose standard deviation is less than this, in levels, show nothing.
MIN_CONTRAST = 4.0
# Motion weakens the gradients along it: their mean square is at most this share of that across in
# 19 of 20 pictures that a test blurs over 9 to 21 pixels, and in three of ten others. The spectra
# of the rest are not computed, because that takes longer.
MAX_GRADIENT_RATIO = 0.68
# The lengths of motion, in pixels of the searched picture, that are looked for. Those of less are
# no hindrance, and the minimum of those of more is that of the picture's own pattern.
MIN_LENGTH, MAX_LENGTH = 5, 40
# The least depth of the cepstrum's minimum, as a multiple of the standard deviation around it. It
# is about 7 in the pictures of the test, and less than this in each of 858 others.
MIN_DEPTH = 3.5
# The power of noise as a share of that of the signal, which bounds the amplification, and the
# standard deviation of the smoothing that follows, in pixels: what noise remains hides faces more
# than blur does.
NOISE_POWER, SMOOTHING_SIGMA = 0.005, 1.5
# The longest side of a picture from which motion is removed; larger ones are reduced before, and
# the result is enlarged again. Its edges are mirrored over EDGE pixels at least.
SHARPENED_SIDE, EDGE = 2048, 32


@dataclass(frozen=True)
class Motion:
    """The line over which a picture is smeared.

    `length` is a share of the longer side of the picture. `angle` is in radians, from the x axis to
    the y axis.
    """

    length: float
    angle: float


def motion_of(gray: Pixels) -> Motion | None:
    """Return the motion that blurs the picture `gray` [h, w]; None if there is none.

    A picture that is shorter or narrower than BLOCK_SIDE is not judged.
    """
    gray = reduced(gray, SEARCHED_SIDE)
    if min(gray.shape) < BLOCK_SIDE or _gradient_ratio(gray) > MAX_GRADIENT_RATIO:
        return None
    cepstrum = _cepstrum(gray)
    return None if cepstrum is None else _motion_in(cepstrum, max(gray.shape))


def without_motion(view: Pixels, motion: Motion) -> Pixels:
    """Return `view`, uint8 RGB [h, w, 3], with the blur of `motion` removed by a Wiener filter.

    Its colours stay blurred, because shapes are in its brightness.
    """
    height, width = view.shape[:2]
    luma, *colours = cv2.split(cv2.cvtColor(reduced(view, SHARPENED_SIDE), cv2.COLOR_RGB2YCrCb))
    sharp = _filtered(luma.astype(np.float32), motion)
    luma = sharp.round().clip(0, 255).astype(np.uint8)
    result = cv2.cvtColor(cv2.merge([luma, *colours]), cv2.COLOR_YCrCb2RGB)
    if result.shape != view.shape:
        result = cv2.resize(result, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(result, np.uint8)


def _gradient_ratio(gray: Pixels) -> float:
    """Return the least mean square of the gradients in a direction, as a share of the greatest.

    Every second row decides.
    """
    right, left = gray[1:-1:2, 2:], gray[1:-1:2, :-2]
    below, above = gray[2::2, 1:-1], gray[:-2:2, 1:-1]
    dx = cv2.subtract(right, left, dtype=cv2.CV_32F).ravel()
    dy = cv2.subtract(below, above, dtype=cv2.CV_32F).ravel()
    xx, xy, yy = float(dx @ dx), float(dx @ dy), float(dy @ dy)
    spread = math.hypot(xx - yy, 2 * xy)
    return (xx + yy - spread) / max(xx + yy + spread, 1)


def _blocks(gray: Pixels) -> Iterator[Floats]:
    """Yield blocks that cover `gray`, float32 [b, b], without their means; not the flat ones."""
    height, width = gray.shape
    for top in _starts(height):
        for left in _starts(width):
            block = gray[top : top + BLOCK_SIDE, left : left + BLOCK_SIDE]
            mean, deviation = cv2.meanStdDev(block)
            if deviation[0, 0] >= MIN_CONTRAST:
                yield np.asarray(cv2.subtract(block, mean, dtype=cv2.CV_32F), np.float32)


def _starts(length: int) -> list[int]:
    """Return where blocks start that cover `length` pixels, evenly spaced."""
    count = math.ceil(length / BLOCK_SIDE)
    return [int(start) for start in np.linspace(0, length - BLOCK_SIDE, count)]


def _cepstrum(gray: Pixels) -> Floats | None:
    """Return the mean cepstrum of the blocks of `gray`, float32 [b, b], with its origin amid it.

    Return None if all of them are flat.
    """
    profile = np.hanning(BLOCK_SIDE).astype(np.float32)
    window = np.outer(profile, profile)
    spectra = (np.abs(fft.rfft2(block * window)) for block in _blocks(gray))
    logarithms = [np.log(spectrum + 1) for spectrum in spectra]
    if not logarithms:
        return None
    cepstrum = fft.irfft2(np.mean(logarithms, axis=0), (BLOCK_SIDE, BLOCK_SIDE))
    return np.asarray(cv2.GaussianBlur(fft.fftshift(cepstrum).astype(np.float32), (0, 0), 1))


def _motion_in(cepstrum: Floats, side: int) -> Motion | None:
    """Return the motion in a picture with a longer side of `side` pixels; None if none shows."""
    # The half of the cepstrum above its origin repeats the one below.
    origin = BLOCK_SIDE // 2
    near = slice(origin - MAX_LENGTH, origin + MAX_LENGTH + 1)
    x, y = np.meshgrid(np.arange(-MAX_LENGTH, MAX_LENGTH + 1), np.arange(MAX_LENGTH + 1))
    distance = np.hypot(x, y)
    around = (distance >= MIN_LENGTH) & (distance <= MAX_LENGTH)
    values = cepstrum[origin:, near][: MAX_LENGTH + 1][around]
    lowest = int(values.argmin())
    median = np.partition(values, len(values) // 2)[len(values) // 2]
    if median - values[lowest] < MIN_DEPTH * values.std():
        return None
    angle = math.atan2(y[around][lowest], x[around][lowest])
    return Motion(float(distance[around][lowest]) / side, angle)


def _filtered(plane: Floats, motion: Motion) -> Floats:
    """Return `plane`, float32 [h, w], without the blur of `motion`."""
    height, width = plane.shape
    length = motion.length * max(height, width)
    edge = EDGE + round(length)
    padded_height, padded_width = (cv2.getOptimalDFTSize(n + 2 * edge) for n in (height, width))
    padded = cv2.copyMakeBorder(
        plane,
        edge,
        padded_height - height - edge,
        edge,
        padded_width - width - edge,
        cv2.BORDER_REFLECT,
    )
    spectrum = fft.rfft2(padded)
    spectrum *= _wiener(padded_height, padded_width, length, motion.angle)
    sharp = fft.irfft2(spectrum, padded.shape)
    return np.asarray(sharp[edge : edge + height, edge : edge + width], np.float32)


def _wiener(height: int, width: int, length: float, angle: float) -> NDArray[np.float32]:
    """Return the transfer function that inverts a blur over `length` pixels, [h, w // 2 + 1].

    It also smooths over SMOOTHING_SIGMA pixels.
    """
    across, down = fft.rfftfreq(width)[None], fft.fftfreq(height)[:, None]
    blur = np.sinc(length * (across * math.cos(angle) + down * math.sin(angle)))
    smoothing = np.exp(-2 * (math.pi * SMOOTHING_SIGMA) ** 2 * (across**2 + down**2))
    return np.asarray(smoothing * blur / (blur**2 + NOISE_POWER), np.float32)
