"""The benchmarks: their figures and their pictures."""

import io
import json
import os

import numpy as np
import pytest
from PIL import Image

from tools.benchmarks import peer
from tools.benchmarks.harness import machine, pictures
from tools.benchmarks.soak import _summary
from tools.benchmarks.stages import _hidden


@pytest.fixture
def photographs(monkeypatch):
    """Return four pictures of one colour each as photographs."""
    shades = [Image.new("RGB", (400, 300), (shade, shade, shade)) for shade in (0, 80, 160, 240)]
    monkeypatch.setattr(
        pictures, "photographs", lambda count: (shades[i % 4] for i in range(count))
    )


def test_what_stages_take_beyond_the_detector_is_not_hidden():
    seconds = {"fetch": 0.1, "detect": 1.0, "encode": 0.3}

    assert _hidden(seconds, elapsed=1.0, detector=1.0) == 1.0
    assert _hidden(seconds, elapsed=1.1, detector=1.0) == pytest.approx(0.75)
    assert _hidden(seconds, elapsed=1.4, detector=1.0) == pytest.approx(0.0)
    assert _hidden(seconds, elapsed=0.9, detector=1.0) == 1.0
    assert _hidden(seconds, elapsed=3.0, detector=1.0) == 0.0


@pytest.mark.parametrize("megapixels", [0.1, 1.0, 12.0])
def test_pictures_have_the_size_and_the_proportions_that_are_asked_for(photographs, megapixels):
    (image,) = pictures.of_size(1, megapixels)

    assert image.width * image.height == pytest.approx(megapixels * 1e6, rel=0.01)
    assert image.width / image.height == pytest.approx(4 / 3, rel=0.01)


def test_a_smaller_photograph_keeps_its_pixels_and_is_mirrored_beyond_its_edges(monkeypatch):
    small = np.random.default_rng(1).integers(0, 256, (300, 400, 3), np.uint8)
    monkeypatch.setattr(pictures, "photographs", lambda count: iter([Image.fromarray(small)]))

    (image,) = pictures.of_size(1, 0.24)

    pixels = np.asarray(image)
    assert np.array_equal(pixels[:300, :400], small)
    assert np.array_equal(pixels[300:, :400], small[::-1][: len(pixels) - 300])


def test_large_pictures_are_tiled_from_four_different_ones(photographs):
    (image,) = pictures.of_size(1, 12.0)

    width, height = image.size
    corners = [
        image.getpixel(at)[0]
        for at in ((0, 0), (width - 1, 0), (0, height - 1), (width - 1, height - 1))
    ]
    assert corners == [0, 80, 160, 240]


@pytest.mark.parametrize("form", list(pictures.OPTIONS))
def test_pictures_are_of_the_format_that_is_asked_for(form):
    content = pictures.encoded(Image.new("RGB", (64, 64), (200, 120, 40)), form)

    with Image.open(io.BytesIO(content)) as image:
        assert image.format == form


def test_the_machine_is_described_without_secrets(monkeypatch):
    monkeypatch.setenv("VEIL_REDIS_PASSWORD", "hidden-password")
    monkeypatch.setenv("VEIL_REDIS_URL", "redis://:hidden-password@127.0.0.1:6379/0")
    monkeypatch.setenv("VEIL_WEBHOOK_TOKEN", "hidden-token" * 3)
    monkeypatch.setenv("VEIL_CONCURRENCY", "3")

    described = machine.described()

    assert described["cpu"]
    assert described["cores"] >= 1
    assert described["versions"]["celery"]
    assert described["settings"]["concurrency"] == 3
    assert "hidden" not in str(described)


def test_what_a_process_uses_is_read():
    assert machine.cpu_seconds(os.getpid()) > 0
    assert machine.resident_bytes(os.getpid()) > 10 << 20


def test_faces_are_where_they_are_in_pictures_that_are_enlarged_and_tiled(tmp_path, monkeypatch):
    monkeypatch.setattr(peer, "LARGE", ((2, 1), (4, 4)))
    crowd = tmp_path / "crowd"
    (crowd / "images").mkdir(parents=True)
    items = []
    for number in range(5):
        image = Image.new("RGB", (400, 300))
        image.paste((255, 255, 255), (100, 60, 180, 120))  # a face
        image.save(crowd / "images" / f"{number}.png")
        items.append(
            {
                "file": f"images/{number}.png",
                "faces": [[100, 60, 180, 120]],
                "ignore": [[0, 0, 10, 10]],
            }
        )
    (crowd / "annotations.json").write_text(json.dumps({"images": items}))

    large = peer.enlarged(crowd, tmp_path / "large")

    one, four = json.loads((large / "annotations.json").read_text())["images"]
    assert [len(item["faces"]) for item in (one, four)] == [1, 4]
    assert [len(item["ignore"]) for item in (one, four)] == [1, 4]
    for item, megapixels in ((one, 2), (four, 4)):
        with Image.open(large / item["file"]) as image:
            assert image.width * image.height == pytest.approx(megapixels * 1e6, rel=0.01)
            gray = image.convert("L")
        for x1, y1, x2, y2 in item["faces"]:
            assert (
                gray.crop(
                    (round(x1) + 8, round(y1) + 8, round(x2) - 8, round(y2) - 8)
                ).getextrema()[0]
                > 200
            )
            for x, y in ((x1 - 8, y1 - 8), (x2 + 8, y2 + 8)):
                assert gray.getpixel((round(x), round(y))) < 50


def test_the_last_quarter_of_a_soak_is_compared_with_the_second():
    mib = [100, 100, 200, 200, 210, 210, 220, 220]

    summary = _summary([(float(at), 3 * at, size << 20) for at, size in enumerate(mib)])

    assert summary["quarters_mib"] == [100, 200, 210, 220]
    assert summary["last_to_second_quarter"] == 1.1
    assert (summary["pictures"], summary["rss_mib"]) == (21, 220)
