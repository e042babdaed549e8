"""The detector alone, in a process of its own: pictures that are decoded already, asked for by a worker's threads.

It is configured by the environment, as a worker is.
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
    """Seconds on the clock, and of all processors."""

    seconds: float
    cpu_seconds: float


@dataclass(frozen=True)
class Alone:
    """The other end of such a process."""

    process: child.Child

    def detect(self, paths: Sequence[Path]) -> Spent:
        """What detection alone takes of the pictures in `paths`; decoding them is not counted."""
        return Spent(**self.process.ask(paths=[str(path) for path in paths]))


@contextmanager
def started(folder: Path, settings: Mapping[str, str] | None = None, module: str = __name__) -> Iterator[Alone]:
    """The detector, loaded and warm, until the block ends; its log is in `folder`. `settings` are variables."""
    with child.started("detector", [sys.executable, "-m", module, "alone"], folder, settings) as process:
        yield Alone(process)


def main() -> None:
    from worker.bootstrap import build_anonymizer

    settings = WorkerSettings.load()
    logs.configure("json")
    anonymizer = build_anonymizer(settings)
    decoded: dict[str, images.Picture] = {}
    pool = ThreadPoolExecutor(settings.concurrency)

    def detect(paths: list[str]) -> dict[str, Any]:
        for path in set(decoded) - set(paths):
            del decoded[path]
        for path in set(paths) - set(decoded):
            decoded[path] = images.decode(Path(path).read_bytes(), settings.max_pixels)
        started, cpu = time.perf_counter(), time.process_time()
        list(pool.map(anonymizer.look, [decoded[path] for path in paths]))
        return {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}

    child.serve(detect)


if __name__ == "__main__":
    main()
