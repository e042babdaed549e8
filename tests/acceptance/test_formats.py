"""Every file of a collection of formats and oddities, as a user runs it: a correct output, or a
refusal by name.
"""

import io
import json
import os
import re
import shutil
import struct
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps, ImageSequence

from tests.metadata import leaks
from tools.benchmarks import memory
from worker import images, likeness
from worker.detection.faces import Sightings
from worker.images import signatures
from worker.images.formats import FORMATS
from worker.images.heif import heic
from worker.masking.regions import MaskStyle, Part

# What Pillow warns of in these files is not an error, here as in a worker.
pytestmark = pytest.mark.filterwarnings("ignore")

SECONDS = 240
MANY = 10**9
MODEL_BYTES = 1_600 << 20  # TensorFlow, the model and what it works on
PIXEL_BYTES = (
    13  # what a picture needs at most, for each of its pixels that counts against the limit
)
# What a picture needs besides: copies of its file, and what libraries load for the first picture.
FILE_COPIES, LIBRARY_BYTES = 2, 16 << 20
REFUSALS = {"EmptyObject", "UnreadableImage", "UnsupportedImage", "ImageTooLarge"}
# Of the project files: those that every reader agrees are damaged, cut short, of no picture, or not
# handled.
LEAST_OUTPUTS = 140
EYES = slice(2, 5)  # eighths of a face's height between which the eyes are


@pytest.fixture(scope="module")
def collection(data):
    folder = data("formats")
    return folder / "images", json.loads((folder / "annotations.json").read_text())["images"]


@pytest.fixture(scope="module")
def with_thumbnail(portrait, tmp_path_factory):
    """A portrait whose EXIF holds it once more, small, and says where it was taken."""
    small = io.BytesIO()
    with Image.open(io.BytesIO(portrait)) as image:
        image.resize((110, 110)).save(small, "JPEG", quality=80)
        # An empty directory, and one that names the thumbnail behind it (Exif 2.32, 4.5.8).
        entries = struct.pack("<HHIHH", 0x0103, 3, 1, 6, 0) + struct.pack("<HHII", 0x0201, 4, 1, 56)
        entries += struct.pack("<HHII", 0x0202, 4, 1, len(small.getvalue()))
        block = b"II*\0" + struct.pack("<IHIH", 8, 0, 14, 3) + entries + bytes(4) + small.getvalue()
        path = tmp_path_factory.mktemp("portrait") / "portrait with thumbnail.jpg"
        image.save(path, "JPEG", exif=b"Exif\0\0" + block)
    assert path.read_bytes().count(b"\xff\xd8\xff") == 2
    return path


@pytest.fixture(scope="module")
def run(collection, with_thumbnail, programs, tmp_path_factory, clean_environment):
    """The outcome of each file by its name, the folder of outputs, and the run's largest resident
    set in bytes.
    """
    folder, _ = collection
    output = tmp_path_factory.mktemp("formats") / "output"
    lines = output.with_name("lines")
    with lines.open("w") as target:
        command = [
            programs / "veil",
            "anonymize",
            folder,
            with_thumbnail,
            "--output",
            output,
            "--json",
        ]
        # The faces are large, so two passes find them.
        environment = {**os.environ, "VEIL_PRESET": "fast"}
        process = subprocess.Popen(
            command, env=environment, stdout=target, stderr=subprocess.DEVNULL
        )
        resident = 0
        while process.poll() is None:
            resident = max(resident, peak(process.pid))
            time.sleep(0.05)
    assert process.returncode == 1  # some failed, each by name
    outcomes = [json.loads(line) for line in lines.read_text().splitlines()]
    return {Path(one["source"]).name: one for one in outcomes}, output, resident


def peak(pid):
    """The most memory that a process has had, in bytes. Its ru_maxrss would begin with that of this
    one.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except ProcessLookupError:
        return 0
    # The status of a process that has ended has no such line.
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


@pytest.mark.timeout(2 * SECONDS)
def test_every_file_is_an_output_or_a_refusal_by_name(run, collection):
    outcomes, output, _ = run
    _, records = collection
    assert len(outcomes) == len(records) + 1
    files = {path.relative_to(output).as_posix() for path in output.rglob("*")}
    assert files == {name for name, one in outcomes.items() if one["status"] == "anonymized"}
    assert len(files) >= LEAST_OUTPUTS
    refused = {
        name: one["error"] for name, one in outcomes.items() if one["status"] != "anonymized"
    }
    assert set(refused.values()) <= REFUSALS, refused


def test_what_is_meant_to_be_read_is_read_and_what_is_damaged_is_not(run, collection):
    outcomes, _, _ = run
    wrong = {}
    for record in collection[1]:
        name, expected = record["file"].removeprefix("images/"), record.get("expect", "")
        status = outcomes[name]["status"]
        if (expected == "decode") != (status == "anonymized") and not expected.startswith("see"):
            wrong[name] = (expected, status, outcomes[name]["message"])
    assert wrong == {}


def test_a_thumbnail_that_shows_the_face_is_gone(run, with_thumbnail):
    outcomes, output, _ = run
    content = (output / with_thumbnail.name).read_bytes()
    assert outcomes[with_thumbnail.name]["faces"] == 1
    assert content.count(b"\xff\xd8\xff") == 1
    assert b"Exif" not in content


@dataclass(frozen=True)
class Compared:
    """The facts of a source and of its output, and whether the guard takes them for unlike."""

    name: str
    source: tuple
    output: tuple
    is_alarm: bool


@pytest.fixture(scope="module")
def compared(run, collection):
    """Each source with its output. Decoding them takes long, so they are decoded once."""
    outcomes, output, _ = run
    return [
        compare(collection[0] / name, output / name, one["boxes_xyxy"])
        for name, one in outcomes.items()
        if one["status"] == "anonymized" and (collection[0] / name).exists()
    ]


def compare(source, output, boxes_xyxy):
    contents = source.read_bytes(), output.read_bytes()
    before, after = (images.decode(content, MANY) for content in contents)
    is_alarm = not is_huge(source) and not is_known(contents, before, after, boxes_xyxy)
    return Compared(source.name, facts(before), facts(after), is_alarm)


def facts(picture):
    # Frames that look alike are joined, and last as long as before.
    milliseconds = round(sum(picture.encoding.get("duration", [])), 3)
    depth = picture.frames[0].pixels.dtype
    return picture.format, picture.width, picture.height, depth, milliseconds


def is_known(contents, before, after, boxes_xyxy):
    """Return whether the guard before a source is deleted takes the output for one of it."""
    boxes = np.array(boxes_xyxy, np.float32).reshape(-1, 4)
    part = Part(Sightings.of(boxes), MaskStyle(feather=0.05))
    hidden = likeness.hidden_by([part], (), before, 480)
    seen = zip(contents, (before, after), strict=True)
    confirmed = all(likeness.is_confirmed(*each) for each in seen)
    return confirmed and likeness.is_alike(before, after, hidden)


def test_outputs_are_of_the_same_kind_size_and_number_of_frames(compared):
    for one in compared:
        assert one.output == one.source, one.name


def test_no_output_is_taken_for_one_that_does_not_show_its_source(compared):
    """The guard before a source is deleted has no false alarm, with what the real model found."""
    assert [one.name for one in compared if one.is_alarm] == []


def is_huge(path):
    """Return whether a comparison of this picture alone takes as long as that of all others."""
    content = path.read_bytes()
    if signatures.name_of(content) == signatures.HEIF:  # which Pillow does not open
        return max(heic.size(content)) > 5000
    with Image.open(path) as image:
        return max(image.size) > 5000


def test_every_format_of_the_readmes_table_is_among_the_outputs(run):
    outcomes, output, _ = run
    found = set()
    for name, one in outcomes.items():
        if one["status"] == "anonymized":
            with Image.open(output / name) as image:
                found.add(image.format)
    assert found >= {form.name for form in FORMATS}


def shown(path):
    """Each frame of a picture as a viewer shows it, upright, RGB on black."""
    with Image.open(path) as image:
        for frame in ImageSequence.Iterator(image):
            upright = ImageOps.exif_transpose(frame)
            if upright.mode.startswith("I;16"):
                yield np.repeat((np.asarray(upright) >> 8).astype(int)[..., None], 3, axis=2)
            else:
                black = Image.new("RGBA", upright.size, "black")
                pixels = Image.alpha_composite(black, upright.convert("RGBA")).convert("RGB")
                yield np.asarray(pixels).astype(int)


def exposed(before, after, faces):
    """The faces whose eyes are as they were; in a transparent part there are none."""
    found = []
    for x1, y1, x2, y2 in faces:
        height = (y2 - y1) / 8
        eyes = np.s_[int(y1 + EYES.start * height) : int(y1 + EYES.stop * height), x1 + 4 : x2 - 4]
        if before[eyes].any() and np.abs(after[eyes] - before[eyes]).mean() <= 8:
            found.append((x1, y1, x2, y2))
    return found


def test_every_face_of_every_frame_is_hidden_and_the_rest_is_as_it_was(run, collection):
    outcomes, output, _ = run
    looked_at = 0
    for record in collection[1]:
        name = record["file"].removeprefix("images/")
        if (
            outcomes[name]["status"] != "anonymized"
            or len(record["faces"]) == 0
            or record["width"] > 5000
        ):
            continue
        looked_at += 1
        before, after = list(shown(collection[0] / name)), list(shown(output / name))
        assert len(after) == len(before), name
        for one, other in zip(before, after, strict=True):
            assert not exposed(one, other, record["faces"]), name
            below = np.s_[max(y2 for *_, y2 in record["faces"]) + 60 :]
            assert np.abs(other[below] - one[below]).mean() < 8, name
    assert looked_at >= 40


def test_no_output_holds_metadata(run):
    if shutil.which("exiftool") is None:
        pytest.skip("exiftool, the independent reader of this test, is not on this machine")
    _, output, _ = run
    found = leaks(sorted(path for path in output.rglob("*") if path.is_file()))
    assert len(found) >= LEAST_OUTPUTS
    assert {path: tags for path, tags in found.items() if tags} == {}


def test_memory_stays_under_the_stated_bound(run, collection):
    # Pictures are worked on side by side, and one of them is nearly as large as the limit allows.
    _, _, resident = run
    largest = sorted(
        record["width"] * record["height"]
        for record in collection[1]
        if record.get("expect") == "decode"
    )
    assert resident < MODEL_BYTES + PIXEL_BYTES * sum(largest[-4:])


@pytest.mark.parametrize("kind", memory.KINDS, ids=[kind.name for kind in memory.KINDS])
def test_the_largest_picture_of_each_kind_with_a_face_that_fills_it_needs_no_more_than_is_stated(
    tmp_path, kind
):
    pixels = 6_000_000  # 16 times fewer than the default allows; the need grows with them
    path = tmp_path / "picture"
    memory.write(kind, path, pixels, MANY)
    allowed = PIXEL_BYTES * pixels + FILE_COPIES * path.stat().st_size + LIBRARY_BYTES
    assert memory.needed(path, pixels)["needed_mib"] << 20 < allowed
