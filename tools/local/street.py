"""A drawn street with cars, whose licence plates the demo hides, and a face on a poster.

No published package has a free photograph of a licence plate, so this picture is drawn. The
characters of the plates are made up.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from tools.local.scenes import ASTRONAUT, photograph

SIZE = (1280, 800)
HORIZON = 330
NAME = "street.jpg"
CREDIT = "Street with cars, drawn for Veil (CC0)"
BLUE = (0, 51, 153)
GLASS, TYRE, LAMP = (38, 46, 54), (24, 24, 26), (168, 24, 22)
HEAD = (80, 0, 380, 300)  # in the portrait
SEED = 11


@dataclass(frozen=True)
class Car:
    """A car from behind: the middle of its wheels' lower edge, its width in pixels, its plate."""

    at: tuple[int, int]
    width: int
    colour: tuple[int, int, int]
    plate: str


CARS = (
    Car((640, 455), 150, (120, 36, 40), "KT 482 M"),
    Car((930, 520), 240, (196, 198, 202), "VB 70 RLE"),
    Car((300, 690), 430, (70, 84, 60), "HN 318 XQ"),
)


def make(folder: Path, cache: Path) -> Path:
    """Write the picture to `folder` and return its path; cache the portrait on the poster."""
    picture = _ground()
    poster = photograph(ASTRONAUT, cache).crop(HEAD)
    picture.paste(poster.resize((150, 150), Image.Resampling.LANCZOS), (1060, 110))
    for car in CARS:
        _park(picture, car)
    path = folder / NAME
    _photographed(picture).save(path, quality=92)
    return path


def _ground() -> Image.Image:
    picture = Image.new("RGB", SIZE, (150, 140, 130))
    draw = ImageDraw.Draw(picture)
    for top in range(20, HORIZON, 26):  # the courses of a brick wall
        for left in range(-40 + (top // 26 % 2) * 30, SIZE[0], 60):
            draw.rectangle((left, top, left + 56, top + 22), fill=(142, 98, 80))
    draw.rectangle((0, HORIZON, *SIZE), fill=(92, 94, 98))
    draw.rectangle((0, HORIZON, SIZE[0], HORIZON + 26), fill=(160, 158, 152))
    for left in range(60, SIZE[0], 260):
        draw.polygon(
            ((left, 745), (left + 130, 745), (left + 118, 760), (left - 14, 760)),
            fill=(214, 214, 208),
        )
    return picture


def _park(picture: Image.Image, car: Car) -> None:
    """Draw `car`, whose height is 0.78 of its width."""
    draw = ImageDraw.Draw(picture)
    wide = car.width
    left, bottom = car.at[0] - wide / 2, car.at[1]

    def box(x1: float, y1: float, x2: float, y2: float) -> tuple[float, float, float, float]:
        """Return a box in pixels; the arguments are shares of the width, from the lower left."""
        return left + x1 * wide, bottom - y1 * wide, left + x2 * wide, bottom - y2 * wide

    dark = tuple(round(0.72 * level) for level in car.colour)
    draw.ellipse(box(-0.04, 0.05, 1.04, -0.05), fill=(58, 60, 63))  # shadow
    for x in (0.06, 0.76):
        draw.rounded_rectangle(box(x, 0.2, x + 0.18, 0), wide // 30, fill=TYRE)
    roof = box(0.2, 0.78, 0.8, 0.44)
    waist = box(0.04, 0.5, 0.96, 0.1)
    draw.polygon(
        ((roof[0], roof[1]), (roof[2], roof[1]), (waist[2], waist[1]), (waist[0], waist[1])),
        fill=car.colour,
    )
    draw.rounded_rectangle(waist, wide // 18, fill=car.colour)
    pane = box(0.24, 0.74, 0.76, 0.53)
    draw.polygon(
        (
            (pane[0], pane[1]),
            (pane[2], pane[1]),
            (pane[2] + 0.1 * wide, pane[3]),
            (pane[0] - 0.1 * wide, pane[3]),
        ),
        fill=GLASS,
    )
    for x in (0.06, 0.8):
        draw.rounded_rectangle(box(x, 0.46, x + 0.14, 0.36), wide // 50, fill=LAMP)
    draw.rounded_rectangle(box(0.03, 0.2, 0.97, 0.09), wide // 30, fill=dark)
    plate = _plate(car.plate, round(0.34 * wide))
    picture.paste(plate, (round(car.at[0] - plate.width / 2), round(bottom - 0.34 * wide)))


def _plate(text: str, width: int) -> Image.Image:
    """Return a plate of the European size, 520 by 110 mm, `width` pixels wide."""
    scale = 4  # drawn larger, then reduced
    size = width * scale, round(width * scale * 110 / 520)
    plate = Image.new("RGB", size, (238, 238, 232))
    draw = ImageDraw.Draw(plate)
    draw.rectangle((0, 0, size[0] * 0.09, size[1]), fill=BLUE)
    font = ImageFont.load_default(size[1] * 0.8)
    draw.text(
        (size[0] * 0.545, size[1] / 2), text, fill=(18, 18, 20), font=font, anchor="mm",
        stroke_width=size[1] // 40, stroke_fill=(18, 18, 20),
    )  # fmt: skip
    border = max(2, size[1] // 22)
    draw.rectangle((0, 0, size[0] - 1, size[1] - 1), outline=(18, 18, 20), width=border)
    return plate.resize((width, round(width * 110 / 520)), Image.Resampling.LANCZOS)


def _photographed(picture: Image.Image) -> Image.Image:
    """Return the picture with light that falls from above, a soft focus and the noise of a sensor.

    Flat areas with sharp edges are unlike all that detectors know.
    """
    noise = np.random.default_rng(SEED).normal(0, 5, (SIZE[1], SIZE[0], 3))
    light = np.linspace(1.1, 0.86, SIZE[1])[:, None, None]
    soft = np.asarray(picture.filter(ImageFilter.GaussianBlur(0.8)), np.float32)
    return Image.fromarray((soft * light + noise).clip(0, 255).astype(np.uint8))
