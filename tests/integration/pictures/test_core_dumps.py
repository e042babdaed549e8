"""A crash of a process that holds clear pictures or credentials leaves no core dump."""

import os
import resource
import signal
import subprocess
import sys
import time

import pytest

from tools.local.servers import HOST, free_port

PR_GET_DUMPABLE = 3  # <linux/prctl.h>


def _allow_cores():
    """Allow core dumps, as far as this machine permits it."""
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    if os.geteuid() == 0:
        hard = resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))


def crash(command, folder, is_ready, environment=None):
    """Start `command`, crash it once it is ready, and return whether its memory was dumped."""
    folder.mkdir(exist_ok=True)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=folder,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=_allow_cores,
        )
    try:
        deadline = time.monotonic() + 90
        while not is_ready(process.pid, (folder / "log").read_text(errors="replace")):
            assert time.monotonic() < deadline, (folder / "log").read_text(errors="replace")
            assert process.poll() is None, (folder / "log").read_text(errors="replace")
            time.sleep(0.05)
        process.send_signal(signal.SIGSEGV)
        _, status = os.waitpid(process.pid, 0)
        process.returncode = status
    finally:
        if process.returncode is None:
            process.kill()
            process.wait()
    assert os.WTERMSIG(status) == signal.SIGSEGV
    left = [path for path in folder.iterdir() if path.name.startswith("core")]
    for path in left:
        path.unlink()
    return os.WCOREDUMP(status) or bool(left)


@pytest.fixture(autouse=True)
def dumping(tmp_path):
    """Skip the test unless this machine dumps the memory of a process that does not prevent it."""
    command = [sys.executable, "-c", "import time; print('ready', flush=True); time.sleep(60)"]
    if not crash(command, tmp_path / "control", lambda _, log: "ready" in log):
        pytest.skip("this machine dumps no memory")


@pytest.fixture
def pictures(tmp_path, portrait):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(200):
        (folder / f"{number}.jpg").write_bytes(portrait)
    return folder


def test_veil_anonymize(programs, pictures, tmp_path):
    folder = tmp_path / "run"
    command = [programs / "veil", "anonymize", pictures, "--output", folder / "out"]

    def is_at_work(pid, log):
        return (folder / "out").is_dir() and any((folder / "out").iterdir())

    assert not crash(command, folder, is_at_work)


@pytest.mark.parametrize("way", ["veil", "celery", "prefork"])
def test_a_worker(way, programs, unattended, worker_settings, tmp_path):
    commands = {
        "veil": [programs / "veil", "worker"],
        "celery": [programs / "celery", "-A", "tasks.app", "worker"],
        "prefork": [
            programs / "celery",
            "-A",
            "tasks.app",
            "worker",
            "--pool=prefork",
            "--concurrency=1",
        ],
    }
    ready = '"worker ready"' if way != "prefork" else "detector ready"
    assert not crash(
        commands[way], tmp_path / "run", lambda _, log: ready in log, worker_settings(unattended)
    )


@pytest.mark.parametrize(
    ("arguments", "token", "event"),
    [
        (["--http", f"{HOST}:{free_port()}"], "t" * 32, "watching"),
        (["--poll", "60"], "", "watching"),
        (["--sqs"], "", "away"),
    ],
)
def test_the_trigger(arguments, token, event, programs, unattended, worker_settings, tmp_path):
    if arguments == ["--sqs"]:
        arguments = ["--sqs", f"http://{HOST}:{free_port()}/1/queue"]
    environment = {**worker_settings(unattended), "VEIL_WEBHOOK_TOKEN": token}
    command = [programs / "veil", "watch", *arguments]
    assert not crash(command, tmp_path / "run", lambda _, log: f'"{event}"' in log, environment)


def test_flower(programs, unattended, worker_settings, tmp_path):
    command = [
        programs / "celery",
        "-A",
        "tasks.app",
        "flower",
        f"--address={HOST}",
        f"--port={free_port()}",
    ]
    environment = {**worker_settings(unattended), "FLOWER_BASIC_AUTH": "veil:any"}
    assert not crash(command, tmp_path / "run", lambda _, log: "Visit me at" in log, environment)


def test_what_is_prevented_holds_for_children_and_for_systems_that_pipe_dumps_to_a_program():
    program = (
        "import ctypes, os, resource\n"
        "from tasks import core_dumps\n"
        "core_dumps.prevent()\n"
        "core_dumps.prevent()\n"
        "if child := os.fork(): os.waitpid(child, 0)\n"
        f"else: print(ctypes.CDLL(None).prctl({PR_GET_DUMPABLE}), "
        "resource.getrlimit(resource.RLIMIT_CORE))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert done.stdout.startswith("0 (0, ")


def test_a_program_that_only_puts_pictures_on_the_queue_keeps_what_it_chose():
    program = (
        "import ctypes\n"
        "from tasks import anonymize_image\n"
        "anonymize_image.name\n"
        f"print(ctypes.CDLL(None).prctl({PR_GET_DUMPABLE}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "1"
