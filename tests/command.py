"""A `veil` command for the tests, forked from a process that has its modules loaded.

Most of the time of a short command is the import of modules. Tests of the installed script start
`programs / "veil"` themselves, with `start_command` if they interrupt it.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

COMMAND_SECONDS = 240

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["tests.preloaded"])


def start_command(command: Sequence[object], **options: Any) -> "subprocess.Popen[Any]":
    """Start `command`, which Ctrl-C ends; `options` are those of Popen.

    A shell lets what it starts in the background ignore SIGINT, and children inherit that.
    """
    return subprocess.Popen([str(part) for part in command], preexec_fn=_obey_ctrl_c, **options)


def _obey_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run(
    arguments: list[str], environment: dict[str, str], cwd: Path | None, folder: Path
) -> "subprocess.CompletedProcess[str]":
    """Run ``veil`` with `arguments` and return the ended process.

    `folder` takes what the command prints. A command that runs too long is ended.
    """
    outputs = folder / "stdout", folder / "stderr"
    process = _server.Process(target=_main, args=(arguments, environment, cwd, outputs))
    process.start()
    process.join(COMMAND_SECONDS)
    if process.exitcode is None:
        process.kill()
        raise subprocess.TimeoutExpired(arguments, COMMAND_SECONDS)
    code = process.exitcode
    process.close()
    return subprocess.CompletedProcess(arguments, code, *(path.read_text() for path in outputs))


def _main(
    arguments: list[str], environment: dict[str, str], cwd: Path | None, outputs: tuple[Path, Path]
) -> None:
    for descriptor, path in enumerate((Path(os.devnull), *outputs)):
        with path.open("ab" if descriptor else "rb", buffering=0) as file:
            os.dup2(file.fileno(), descriptor)
    if cwd is not None:
        os.chdir(cwd)
    os.environ.clear()
    os.environ.update({name: os.fspath(value) for name, value in environment.items()})
    sys.argv = [str(Path(sys.executable).parent / "veil"), *arguments]
    from worker.cli import main

    main()
