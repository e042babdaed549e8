"""The pictures of a chaos run: small, distinct portraits as JPEG, PNG and WebP."""

import io
import random
from pathlib import Path

from PIL import Image, ImageEnhance, ImageOps

from tools.local import scenes

SIDE = 220
KINDS = (("jpg", "JPEG"), ("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP"))
DISTINCT = 100  # different contents at most; the calm run processes each of them once


def make(folder: Path, cache: Path, count: int, seed: int) -> list[tuple[str, bytes]]:
    """Return suffix and content of `count` pictures, made of the portraits in `cache`."""
    paths = {path.name: path for path in scenes.make(folder, cache)}
    with Image.open(paths["astronaut.png"]) as image:
        portrait = image.convert("RGB")
    chance = random.Random(seed)
    return [_picture(portrait, *KINDS[number % len(KINDS)], chance) for number in range(count)]


def _picture(
    portrait: Image.Image, suffix: str, kind: str, chance: random.Random
) -> tuple[str, bytes]:
    left, top = chance.randrange(100, 140), chance.randrange(0, 20)
    image = portrait.crop((left, top, left + SIDE, top + SIDE))
    if chance.random() < 0.5:
        image = ImageOps.mirror(image)
    image = ImageEnhance.Brightness(image).enhance(chance.uniform(0.8, 1.15))
    target = io.BytesIO()
    image.save(target, kind, quality=chance.randrange(85, 95))
    return suffix, target.getvalue()
