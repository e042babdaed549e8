"""A process of its own for what is measured: asked by a JSON object a line, it answers by one."""

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
    """Such a process, from the outside. `ready` is what it said when it was."""

    def __init__(self, process: "subprocess.Popen[str]", log: Path) -> None:
        self._process = process
        self._log = log
        self.ready = self._answer()

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, **question: Any) -> dict[str, Any]:
        """Its answer; ServerFailed, with the end of its log, if it ends instead."""
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
    name: str, command: Sequence[str | Path], folder: Path, settings: Mapping[str, str] | None = None
) -> Iterator[Child]:
    """`command`, ready, until the block ends; its log is in `folder`, `settings` are variables of its environment."""
    log = folder / f"{name}.log"
    with (
        log.open("wb") as errors,
        subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,  # whose end ends it, whatever becomes of this process
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, "TMPDIR": str(folder), **(settings or {})},  # onnxruntime leaves a file there
        ) as process,
    ):
        try:
            yield Child(process, log)
        finally:
            process.kill()


def serve(answer: Callable[..., dict[str, Any]], **ready: Any) -> None:
    """In the process: say that it is ready, then answer until nobody asks any more."""
    print(json.dumps(ready), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(**json.loads(line))), flush=True)
