"""Processes for measurements that answer one JSON object per line with another."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tools.local.servers import ServerFailed


class Child:
    """A client of such a process. `ready` is its first object."""

    def __init__(self, process: "subprocess.Popen[str]", log: Path) -> None:
        self._process = process
        self._log = log
        self.ready = self._answer()

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, **question: Any) -> dict[str, Any]:
        """Return the answer; raise ServerFailed, with the end of the log, if the process ends."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            lines = self._log.read_text(errors="replace").strip().splitlines()[-3:]
            raise ServerFailed(f"{self._log.stem} ended: {' / '.join(lines)} (see {self._log})")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def started(
    name: str,
    command: Sequence[str | Path],
    folder: Path,
    settings: Mapping[str, str] | None = None,
) -> Iterator[Child]:
    """Run `command` until the block ends, with `settings` as variables and its log in `folder`."""
    log = folder / f"{name}.log"
    # ONNX Runtime leaves a file in TMPDIR.
    environment = {**os.environ, "TMPDIR": str(folder), **(settings or {})}
    with (
        log.open("wb") as errors,
        subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,  # closes with this process, which ends the child
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
        ) as process,
    ):
        try:
            yield Child(process, log)
        finally:
            process.kill()


def serve(answer: Callable[..., dict[str, Any]], **ready: Any) -> None:
    """Print the object `ready`, then answer the lines of standard input until it closes."""
    print(json.dumps(ready), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(**json.loads(line))), flush=True)
