"""The supervisor of several workers on one machine: ``veil worker --workers N``."""

import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from tasks.backoff import ceiling
from tasks.early_stop import STOPPED
from tasks.errors import SettingsInvalid
from tasks.settings import split_address, split_commas
from worker.commands.exit_codes import ExitCode
from worker.process import sandbox
from worker.settings import WorkerSettings

# The folder in which NVIDIA's driver has an entry for each GPU of the machine.
GPUS = Path("/proc/driver/nvidia/gpus")
VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"
LAST_PORT = 65535
CHECK_SECONDS = 0.1  # between two looks at the workers
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0  # before a restart
STEADY_SECONDS = 60.0  # a worker that has run for so long is restarted without a longer pause
# The exit codes of workers that were told to stop: a signal ends Python while it starts.
STOPPED_CLEANLY = (
    ExitCode.OK,
    ExitCode.TERMINATED,
    ExitCode.INTERRUPTED,
    -signal.SIGTERM,
    -signal.SIGINT,
)

log = structlog.get_logger("veil")


def gpus(environment: Mapping[str, str], folder: Path = GPUS) -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if VISIBLE_GPUS in environment:
        return list(split_commas(environment[VISIBLE_GPUS]))
    try:
        return [str(number) for number, _ in enumerate(folder.iterdir())]
    except OSError:
        return []


def environments(
    settings: WorkerSettings, count: int, devices: Sequence[str]
) -> list[dict[str, str]]:
    """Return the variables of each of `count` workers that differ from the supervisor's.

    The workers share the processors and the `devices`, and each has a port of its own for metrics.
    Raises SettingsInvalid if there are too few ports.
    """
    result = []
    for number in range(count):
        own = {}
        if settings.processes == "auto":
            own["VEIL_PROCESSES"] = str(max(1, settings.picture_processes() // count))
        if settings.metrics is not None:
            host, port = split_address(settings.metrics)
            host = f"[{host}]" if ":" in host else host
            if port + number > LAST_PORT:
                raise SettingsInvalid(
                    f"VEIL_METRICS: {count} workers need the ports {port} to {port + count - 1}, "
                    f"and the last one is {LAST_PORT}: begin with a lower port"
                )
            own["VEIL_METRICS"] = f"{host}:{port + number}"
        if devices:
            own[VISIBLE_GPUS] = devices[number % len(devices)]
        result.append(own)
    return result


def names(name: str | None, count: int) -> list[str]:
    """Return the names of `count` workers: `name`, or ``NAME-1`` and so on for several.

    Without a `name` it is a new one: two workers of one name on a machine would count as one.
    Containers on the host's network have their process IDs in common, so those make no name.
    """
    name = name or f"worker-{secrets.token_hex(3)}"
    return [name] if count == 1 else [f"{name}-{number}" for number in range(1, count + 1)]


def node_name(name: str) -> str:
    """Return the name of a worker in Flower and in the log."""
    return f"{name}@{socket.gethostname()}"


@dataclass
class _Worker:
    """One worker. `next_start` is the time of its start (time.monotonic()) while it is ended."""

    name: str
    environment: Mapping[str, str]
    process: "subprocess.Popen[bytes] | None" = None
    started: float = 0.0
    next_start: float = 0.0
    failures: int = 0


class Supervisor:
    """Runs workers until it is told to stop, and restarts those that end."""

    def __init__(
        self,
        command: Sequence[str],
        names: Sequence[str],
        environments: Sequence[Mapping[str, str]],
        first_pause: float = FIRST_PAUSE_SECONDS,
    ) -> None:
        """Run `command` with ``--name`` for each of `names`, in the environment of the same row."""
        self._command = command
        self._workers = [
            _Worker(name, environment)
            for name, environment in zip(names, environments, strict=True)
        ]
        self._first_pause = first_pause
        self._is_stopping = False

    def run(self) -> ExitCode:
        """Return the exit code once all workers have ended.

        SIGTERM, SIGINT and SIGQUIT are passed on to the workers. A worker that can't use its
        settings ends all of them.
        """
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, self._pass_on)
        code = ExitCode.OK
        while not self._is_stopping or any(worker.process for worker in self._workers):
            for worker in self._workers:
                code = max(code, self._look_after(worker))
            time.sleep(CHECK_SECONDS)
        if code == ExitCode.OK:
            log.info(STOPPED, workers=len(self._workers))
        return code

    def _look_after(self, worker: _Worker) -> ExitCode:
        """Start `worker` if it is due; return how it ended, if it need not be started again."""
        if worker.process is None:
            if not self._is_stopping and time.monotonic() >= worker.next_start:
                self._try_to_start(worker)
            return ExitCode.OK
        code = worker.process.poll()
        if code is None:
            return ExitCode.OK
        worker.process = None
        if self._is_stopping:
            return ExitCode.ok_if(code in STOPPED_CLEANLY)
        if code == ExitCode.UNUSABLE:
            self._pass_on(signal.SIGTERM, None)
            return ExitCode.UNUSABLE
        log.warning(
            "worker ended",
            worker=node_name(worker.name),
            exit_code=code,
            restart_seconds=self._schedule(worker),
        )
        return ExitCode.OK

    def _try_to_start(self, worker: _Worker) -> None:
        """Start `worker`, or schedule another try: the others would end with this process."""
        try:
            self._start(worker)
        except (OSError, subprocess.SubprocessError) as error:
            log.warning(
                "worker not started",
                worker=node_name(worker.name),
                reason=str(error),
                restart_seconds=self._schedule(worker),
            )

    def _start(self, worker: _Worker) -> None:
        worker.started = time.monotonic()
        worker.process = subprocess.Popen(
            [*self._command, "--workers", "1", "--name", worker.name],
            env={**os.environ, **worker.environment},
            preexec_fn=partial(sandbox.end_with, os.getpid()),
            # A terminal sends Ctrl-C to its whole process group, and workers would get it twice.
            process_group=0,
        )
        if self._is_stopping:  # The signal came while the process was started.
            worker.process.send_signal(signal.SIGTERM)

    def _schedule(self, worker: _Worker) -> float:
        """Let `worker` start again after a pause, and return the pause in seconds."""
        if time.monotonic() - worker.started > STEADY_SECONDS:
            worker.failures = 0
        pause = ceiling(worker.failures, self._first_pause, LONGEST_PAUSE_SECONDS)
        worker.failures += 1
        worker.next_start = time.monotonic() + pause
        return pause

    def _pass_on(self, number: int, _frame: Any) -> None:
        self._is_stopping = True
        for worker in self._workers:
            if worker.process is not None:
                worker.process.send_signal(number)
