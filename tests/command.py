"""A `veil` command for the tests, forked from a process that has its modules loaded.

Most of the time of a short command is the import of modules. Tests of the installed script start
`programs / "veil"` themselves.
"""

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

COMMAND_SECONDS = 240

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["tests.preloaded"])


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
