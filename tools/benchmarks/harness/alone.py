"""The detector alone: a process that detects faces in decoded pictures, threaded as a worker.

The environment configures it like a worker.
"""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.benchmarks.harness import child
from worker import images, logs
from worker.settings import WorkerSettings


@dataclass(frozen=True)
class Spent:
    """Seconds of time, and of all processors."""

    seconds: float
    cpu_seconds: float


@dataclass(frozen=True)
class Alone:
    """A client of such a process."""

    process: child.Child

    def detect(self, paths: Sequence[Path]) -> Spent:
        """Return the time of detection in the pictures in `paths`, without decoding them."""
        return Spent(**self.process.ask(paths=[str(path) for path in paths]))


@contextmanager
def started(
    folder: Path, settings: Mapping[str, str] | None = None, module: str = __name__
) -> Iterator[Alone]:
    """Start the process with `settings` as variables, its log in `folder`, until the block ends."""
    with child.started(
        "detector", [sys.executable, "-m", module, "alone"], folder, settings
    ) as process:
        yield Alone(process)


def main() -> None:
    from worker.bootstrap import build_anonymizer

    settings = WorkerSettings.load()
    logs.configure("json")
    anonymizer = build_anonymizer(settings)
    decoded: dict[str, images.Picture] = {}
    pool = ThreadPoolExecutor(settings.pictures_in_flight())

    def detect(paths: list[str]) -> dict[str, Any]:
        for path in set(decoded) - set(paths):
            del decoded[path]
        for path in set(paths) - set(decoded):
            decoded[path] = images.decode(Path(path).read_bytes(), settings.max_pixels)
        started, cpu = time.perf_counter(), time.process_time()
        list(pool.map(anonymizer.detect_frames, [decoded[path] for path in paths]))
        return {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}

    child.serve(detect)


if __name__ == "__main__":
    main()
