"""The photographs of the benchmarks: distinct pictures of a given size and format."""

import io
import math
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import platformdirs
from PIL import Image

from tools.benchmarks.exposure import sources
from tools.local import scenes

OPTIONS: dict[str, dict[str, object]] = {
    "JPEG": {"quality": 90},
    "PNG": {},
    "WEBP": {"quality": 90},
    "TIFF": {"compression": "tiff_adobe_deflate"},
    "GIF": {},
    "BMP": {},
    "AVIF": {"quality": 80, "speed": 8},
    "JPEG2000": {"quality_mode": "rates", "quality_layers": [12]},
}
SUFFIXES = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "TIFF": "tif", "JPEG2000": "jp2"}
TILED_FROM = 4.0  # megapixels; larger pictures are tiles of four, as one photograph would be smooth


def origin() -> str:
    """Return the origin of the photographs: the annotated set `crowd` if it exists, or samples."""
    return "crowd" if (sources()[0] / "crowd" / "images").is_dir() else "samples"


def photographs(count: int) -> Iterator[Image.Image]:
    """Yield `count` photographs of about 1 MP with several faces each; repeat them if needed."""
    if origin() == "crowd":
        for path in islice(cycle(sorted((sources()[0] / "crowd" / "images").iterdir())), count):
            with Image.open(path) as image:
                yield image.convert("RGB")
        return
    yield from _of_the_gallery(count)


def _of_the_gallery(count: int) -> Iterator[Image.Image]:
    """Yield slightly shifted parts of a wall of portraits."""
    folder = platformdirs.user_cache_path("veil") / "samples"
    paths = {path.name: path for path in scenes.make(folder / "walls", folder)}
    with Image.open(paths["gallery.jpg"]) as gallery:
        for i in range(count):
            left, top = i % 50, i // 50 % 38
            yield gallery.crop((left, top, gallery.width - 50 + left, gallery.height - 38 + top))


def of_size(count: int, megapixels: float) -> Iterator[Image.Image]:
    """Yield `count` photographs of this size; large ones are tiles of four."""
    if megapixels < TILED_FROM:
        yield from (_continued(image, megapixels) for image in photographs(count))
        return
    four: list[Image.Image] = []
    for image in photographs(4 * count):
        four.append(_resized(image, megapixels / 4))
        if len(four) == 4:
            yield tiled(four)
            four = []


def tiled(four: list[Image.Image]) -> Image.Image:
    """Return one picture of four, each in the size of the first."""
    width, height = four[0].size
    whole = Image.new("RGB", (2 * width, 2 * height))
    for i, image in enumerate(four):
        whole.paste(image.resize((width, height)), (i % 2 * width, i // 2 * height))
    return whole


def encoded(image: Image.Image, form: str) -> bytes:
    target = io.BytesIO()
    image.save(target, form, **OPTIONS[form])
    return target.getvalue()


def written(folder: Path, count: int, megapixels: float, form: str) -> list[Path]:
    """Write `count` pictures to `folder`, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, image in enumerate(of_size(count, megapixels)):
        paths.append(folder / f"{number:04}.{SUFFIXES.get(form, form.lower())}")
        paths[-1].write_bytes(encoded(image, form))
    return paths


def _continued(image: Image.Image, megapixels: float) -> Image.Image:
    """Return `image` reduced, or with its right and lower parts mirrored beyond its edges.

    Enlarged, it would be smooth, and Veil detects faces in another view of a blurred picture.
    """
    factor = math.sqrt(megapixels * 1e6 / (image.width * image.height))
    if factor <= 1:
        return _resized(image, megapixels)
    width, height = round(image.width * factor), round(image.height * factor)
    beyond = (0, height - image.height), (0, width - image.width), (0, 0)
    return Image.fromarray(np.pad(np.asarray(image), beyond, "symmetric"))


def _resized(image: Image.Image, megapixels: float) -> Image.Image:
    factor = math.sqrt(megapixels * 1e6 / (image.width * image.height))
    size = round(image.width * factor), round(image.height * factor)
    return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)
