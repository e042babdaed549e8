"""The detector alone, in a process of its own: pictures that are decoded already, asked for by a worker's threads.

It is configured by the environment, as a worker is. Each line on standard input is a JSON list of files; the
answer is a line with the seconds, and the processor's, that detection took of all of them.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from demo.servers import ServerFailed
from worker import images, logs
from worker.settings import WorkerSettings


@dataclass(frozen=True)
class Spent:
    """Seconds on the clock, and of all processors."""

    seconds: float
    cpu_seconds: float


class Alone:
    """The other end of such a process."""

    def __init__(self, process: "subprocess.Popen[str]", log: Path) -> None:
        self._process = process
        self._log = log
        self._answer()

    def detect(self, paths: Sequence[Path]) -> Spent:
        """What detection alone takes of the pictures in `paths`; decoding them is not counted."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([str(path) for path in paths]) + "\n")
        self._process.stdin.flush()
        return Spent(**json.loads(self._answer()))

    def _answer(self) -> str:
        assert self._process.stdout is not None
        answer = self._process.stdout.readline()
        if not answer:
            lines = self._log.read_text(errors="replace").strip().splitlines()[-3:]
            raise ServerFailed(f"the detector ended: {' / '.join(lines)} (see {self._log})")
        return answer


@contextmanager
def started(folder: Path, settings: Mapping[str, str] | None = None) -> Iterator[Alone]:
    """The detector, loaded and warm, until the block ends; its log is in `folder`. `settings` are variables."""
    log = folder / "alone.log"
    with (
        log.open("wb") as errors,
        subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,  # whose end ends it, whatever becomes of this process
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, **(settings or {})},
        ) as process,
    ):
        try:
            yield Alone(process, log)
        finally:
            process.kill()


def main() -> None:
    from worker.bootstrap import build_pipeline

    settings = WorkerSettings.load()
    logs.configure("json")
    pipeline = build_pipeline(settings, None)
    decoded: dict[str, images.Picture] = {}
    with ThreadPoolExecutor(settings.concurrency) as pool:
        print("ready", flush=True)
        for line in sys.stdin:
            paths = json.loads(line)
            if missing := set(paths) - set(decoded):
                decoded = {path: picture for path, picture in decoded.items() if path in paths}
                for path in missing:
                    decoded[path] = images.decode(Path(path).read_bytes(), settings.max_pixels)
            started, cpu = time.perf_counter(), time.process_time()
            list(pool.map(pipeline.look, [decoded[path] for path in paths]))
            spent = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}
            print(json.dumps(spent), flush=True)


if __name__ == "__main__":
    main()
