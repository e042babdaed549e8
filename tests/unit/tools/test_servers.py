"""Local servers and sample pictures: several processes start and fill them at once."""

import io
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from PIL import Image

from tools.local.scenes import photograph
from worker.detection.centerface.wheels import WheelFile

WRITERS = 8
TAKE_ALL = """
from tools.local import servers

servers.PORTS = range(21_000, 21_040)
try:
    for _ in range(600):
        print(servers.free_port(), flush=True)
except servers.ServerFailed:
    pass
print("none", flush=True)
input()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ports are reserved on Linux")
def test_no_port_is_given_to_two_processes(repository):
    children = [
        subprocess.Popen(
            [sys.executable, "-c", TAKE_ALL],
            cwd=repository,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    try:
        ports = []
        for child in children:
            while (line := child.stdout.readline().strip()) != "none":
                assert line, "the process ended early"
                ports.append(line)
    finally:
        for child in children:
            child.communicate("\n", timeout=60)

    assert ports
    assert len(ports) == len(set(ports))


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
