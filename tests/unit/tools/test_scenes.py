"""Sample pictures: several threads fill their cache at once."""

import io
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from PIL import Image

from tools.local.scenes import photograph
from worker.detection.centerface.wheels import WheelFile

WRITERS = 8


@dataclass(frozen=True)
class Fetched(WheelFile):
    """A file that no writer writes until all have fetched it."""

    content: bytes = b""
    all_have_it: threading.Barrier | None = None

    def fetch(self) -> bytes:
        self.all_have_it.wait(60)
        return self.content


def test_an_empty_cache_is_filled_by_several_at_once(tmp_path):
    picture = io.BytesIO()
    Image.effect_noise((600, 600), 80).save(picture, "PNG")
    barrier = threading.Barrier(WRITERS)
    source = Fetched("any==1", "a.png", "0" * 64, picture.getvalue(), barrier)

    with ThreadPoolExecutor(WRITERS) as pool:
        made = [pool.submit(photograph, source, tmp_path / "cache") for _ in range(WRITERS)]
        sizes = [image.result().size for image in made]

    assert sizes == [(600, 600)] * WRITERS
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["0" * 16 + "-a.png"]
