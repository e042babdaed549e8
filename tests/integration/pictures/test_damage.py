"""Hundreds of damaged pictures: no crash, named refusals, and outputs that other programs read."""

import io
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

COUNT = 300
SECONDS = 120
# Veil neither reads nor writes the parts of a TIFF that these warnings are about.
NO_MATTER = re.compile("Unknown field with tag|tags are not sorted")

# This program runs in a process of its own, which shows a crash in a decoder. It reads files from a
# folder, writes their outputs to another, and prints a line for each.
WORKER = """
import json, sys
from pathlib import Path

import numpy as np

from tasks.errors import VeilError
from worker.detection.faces import Detections
from worker.masking.regions import MaskStyle
from worker.anonymizer import Anonymizer, Limits, Stopwatch


class Finds:
    def detect(self, picture):
        height, width = picture.shape[:2]
        box = [width / 4, height / 4, width / 2, height / 2]
        return Detections(np.array([box], np.float32), np.array([0.9], np.float32))


anonymizer = Anonymizer(
    detector=Finds(), style=MaskStyle("surround", 1.0, 0.1), limits=Limits(10**7, 10**6, 5)
)
for path in sorted(Path(sys.argv[1]).iterdir()):
    error, notes = None, ()
    try:
        result = anonymizer.anonymize(path.read_bytes(), Stopwatch())
        notes = result.notes
        (Path(sys.argv[2]) / path.name).write_bytes(result.content)
    except VeilError as caught:
        error = type(caught).__name__
    print(json.dumps({"name": path.name, "error": error, "notes": notes}), flush=True)
"""


def written(images, form, **options):
    target = io.BytesIO()
    more = {"save_all": True, "append_images": images[1:]} if len(images) > 1 else {}
    images[0].save(target, form, **more, **options)
    return target.getvalue()


def pictures():
    """Return one small picture of each kind, by suffix and number."""
    chance = np.random.default_rng(7)
    y, x = np.mgrid[:48, :64]
    pixels = np.stack([x * 4, y * 5, (x + y) * 2], -1) + chance.integers(0, 12, (48, 64, 3))
    colour = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    clear = colour.copy()
    clear.putalpha(Image.fromarray((x * 4).astype(np.uint8)))
    film = [colour, colour.rotate(90), colour.rotate(180)]
    exif = Image.Exif()
    exif[0x0112] = 6
    return [
        ("jpg", written([colour], "JPEG", quality=90, exif=exif)),
        ("jpg", written([colour], "JPEG", progressive=True)),
        ("jpg", written([colour.convert("CMYK")], "JPEG")),
        ("jpg", written([colour.convert("L")], "JPEG", restart_marker_rows=1)),
        ("png", written([colour], "PNG")),
        ("png", written([clear], "PNG")),
        ("png", written([colour.quantize(64)], "PNG")),
        ("png", written([Image.fromarray((x * 900 + y).astype(np.uint16))], "PNG")),
        ("png", written(film, "PNG", duration=100)),
        ("webp", written([colour], "WEBP")),
        ("webp", written([clear], "WEBP", lossless=True)),
        ("webp", written(film, "WEBP", duration=100)),
        ("gif", written([colour.quantize(64)], "GIF")),
        ("gif", written(film, "GIF", duration=100)),
        ("tif", written([colour], "TIFF")),
        ("tif", written([colour], "TIFF", compression="tiff_lzw")),
        ("tif", written([clear, colour], "TIFF", compression="tiff_adobe_deflate")),
        ("tif", written([colour], "TIFF", compression="jpeg")),
        ("bmp", written([colour], "BMP")),
        ("avif", written([colour], "AVIF")),
        ("jp2", written([colour], "JPEG2000")),
    ]


def mutated(content, others, chance):
    """Return `content` with wrong bits, lost bytes, a zeroed end, or the head of another file."""
    damaged = bytearray(content)
    kind = chance.integers(6)
    at = int(chance.integers(1, len(damaged)))
    if kind == 0:
        for place in chance.integers(0, len(damaged), chance.integers(1, 9)):
            damaged[place] ^= 1 << int(chance.integers(8))
    elif kind == 1:
        for place in chance.integers(0, min(len(damaged), 120), chance.integers(1, 4)):
            damaged[place] = int(chance.integers(256))
    elif kind == 2:
        del damaged[at:]
    elif kind == 3:
        damaged[at:] = bytes(len(damaged) - at)
    elif kind == 4:
        del damaged[at : at + int(chance.integers(1, 64))]
    else:
        head = others[int(chance.integers(len(others)))][1]
        size = int(chance.integers(4, 64))
        damaged[:size] = head[:size]
    return bytes(damaged)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """The path, the error's name or None, and the output's path of each damaged file.

    A file with a note stands for its output.
    """
    root = tmp_path_factory.mktemp("damage")
    source, output = root / "in", root / "out"
    source.mkdir()
    output.mkdir()
    chance, kinds = np.random.default_rng(20261124), pictures()
    for number in range(COUNT):
        suffix, content = kinds[number % len(kinds)]
        (source / f"{number:03}.{suffix}").write_bytes(mutated(content, kinds, chance))
    done = subprocess.run(
        [sys.executable, "-c", WORKER, source, output],
        check=False,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == COUNT
    # Another program warns of a file whose fault changes no pixel, and reads its output.
    noted = {output / line["name"] for line in lines if line["notes"]}
    assert len(noted) <= COUNT // 50
    found = []
    for line in lines:
        written_to = output / line["name"]
        read = written_to if written_to in noted else source / line["name"]
        found.append((read, line["error"], written_to))
    return found


def test_every_damaged_picture_is_an_output_or_a_refusal_by_name(outcomes):
    names = {error for _, error, _ in outcomes}
    assert names <= {None, "UnreadableImage", "UnsupportedImage", "ImageTooLarge"}
    assert all(output.exists() == (error is None) for _, error, output in outcomes)
    refused = sum(error is not None for _, error, _ in outcomes)
    assert COUNT // 2 < refused < COUNT


def test_every_output_decodes_whole(outcomes):
    for _, error, output in outcomes:
        if error is None:
            with Image.open(output) as image:
                for number in range(getattr(image, "n_frames", 1)):
                    image.seek(number)
                    image.load()


def test_what_passed_decodes_cleanly_in_another_program(outcomes, system_program):
    convert = system_program("convert")
    version = subprocess.run([convert, "-version"], check=False, capture_output=True, text=True)
    if not version.stdout.startswith("Version: ImageMagick"):
        pytest.skip(
            "ImageMagick, the independent decoder of this test, is not installed: "
            "make system-packages"
        )
    complaints = {}
    for source, error, _ in outcomes:
        # Debian's ImageMagick does not always read AVIF.
        if error is None and source.suffix != ".avif":
            done = subprocess.run(
                [convert, "-regard-warnings", source, "rgba:-"],
                check=False,
                capture_output=True,
                timeout=SECONDS,
            )
            lines = done.stderr.decode("utf-8", "replace").splitlines()
            if done.returncode and not all(NO_MATTER.search(line) for line in lines):
                complaints[source.name] = lines
    assert complaints == {}
