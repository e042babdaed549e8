"""``make demo``: pictures through the real queue, the real store and the real detector, end to end."""

import argparse
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from demo import contact_sheet, scenes
from demo.servers import HOST, S3, Server, ServerFailed, free_port, redis_program, start_redis, start_s3
from tasks.errors import VeilError
from worker.local import PICTURE_SUFFIXES

FOLDER = Path(".demo")
RUNNING = FOLDER / "running.json"
READY_SECONDS = 120
FLOWER_COLUMNS = "args,state,result,exception,runtime,received,uuid"  # the name is always the same
PROGRAMS = Path(sys.executable).parent

console = Console(stderr=True, highlight=False)


@dataclass
class Stack:
    """The services of one run, and the environment in which `veil` finds them."""

    servers: list[Server]
    s3: S3
    environment: dict[str, str]
    flower: str
    flower_password: str


def main() -> int:
    parser = argparse.ArgumentParser(prog="demo", description=__doc__)
    parser.add_argument("command", nargs="?", choices=("run", "stop"), default="run")
    if parser.parse_args().command == "stop":
        return stop_kept()
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)
    try:
        return run(os.environ.get("IMAGES", ""), os.environ.get("KEEP", "") not in ("", "0"))
    except (ServerFailed, VeilError) as error:
        console.print(f"demo: {error}", style="red", markup=False)
        return 1
    except KeyboardInterrupt:
        console.print("demo: interrupted, everything is stopped")
        return 130


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def run(images: str, keep: bool) -> int:
    """The whole demo; 0 only if every picture came through."""
    if RUNNING.exists():
        raise ServerFailed("services of an earlier KEEP=1 are running: stop them with `make demo-stop`")
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    _say("Detector", "building it on first use, a minute at most")
    _check([PROGRAMS / "veil", "model", "build"])
    pictures = _pictures(images)
    with started(keep) as stack:
        summary = _deliver(stack, pictures)
        if keep:
            _keep(stack)
    _report(summary, images)
    return 0 if summary["failed"] == 0 and summary["anonymized"] == len(pictures) else 1


def _say(what: str, text: str) -> None:
    console.print(f"[bold]{what:<10}[/bold] {text}", soft_wrap=True)


def _check(command: list[Any]) -> None:
    done = subprocess.run([str(part) for part in command], check=False, stdout=subprocess.DEVNULL)
    if done.returncode:
        raise ServerFailed(f"{Path(command[0]).name} {command[1]} failed with {done.returncode}")


def _pictures(images: str) -> dict[str, Path]:
    """The pictures to send, by key."""
    if not images:
        made = scenes.make(FOLDER / "raw", _cache())
        return {path.name: path for path in made}
    root = Path(images).expanduser()
    if not root.is_dir():
        raise ServerFailed(f"IMAGES={images} is not a folder")
    found = {}
    for path in sorted(root.rglob("*")):
        key = path.relative_to(root).as_posix()
        if not path.is_file() or any(part.startswith(".") for part in key.split("/")):
            continue
        if path.suffix and path.suffix.lower() not in PICTURE_SUFFIXES:
            console.print(f"{key}: left out, not named like a picture", markup=False)
            continue
        if not key.isprintable() or "\\" in key:
            raise ServerFailed(f"{key!r} in {images} can't be a key of the demo's S3 store: rename it")
        found[key] = path
    if not found:
        raise ServerFailed(f"IMAGES={images} has no pictures in it")
    return found


def _cache() -> Path:
    import platformdirs

    return platformdirs.user_cache_path("veil") / "samples"


@contextmanager
def started(keep: bool) -> Iterator[Stack]:
    """Redis, S3, a worker and Flower on free ports; stopped at the end, in any case but a successful KEEP=1."""
    with ExitStack() as stopping, _uninterrupted_end():
        servers: list[Server] = []

        def add(server: Server) -> None:
            servers.append(server)
            stopping.callback(server.stop)

        queue = Path(redis_program()).name
        _say("Services", f"starting {queue}, S3 (SeaweedFS), a worker and Flower on loopback ports")
        folder = FOLDER.resolve() / "services"
        redis = start_redis(folder / "redis", keep)
        add(redis.server)
        s3 = start_s3(folder / "s3", ("raw", "clean"), keep)
        add(s3.server)
        environment = {**redis.environment(), **s3.environment(), "VEIL_ROUTES": "s3://raw=s3://clean"}
        if model := os.environ.get("VEIL_MODEL"):
            environment["VEIL_MODEL"] = str(Path(model).resolve())
        supervisor = Path(__file__).resolve().with_name("supervisor.py")
        worker = Server(
            "worker",
            [sys.executable, supervisor, PROGRAMS / "veil", "worker"],
            folder / "worker.log",
            environment,
            keep,
        )
        add(worker)
        worker.start()
        port, password = free_port(), secrets.token_urlsafe(12)
        flower = Server(
            "flower",
            [PROGRAMS / "celery", "-A", "tasks.app", "flower", f"--address={HOST}", f"--port={port}"],
            folder / "flower.log",
            {
                **environment,
                "FLOWER_BASIC_AUTH": f"veil:{password}",
                "FLOWER_PERSISTENT": "False",
                "FLOWER_TASKS_COLUMNS": FLOWER_COLUMNS,
            },
            keep,
        )
        add(flower)
        flower.start()
        _wait_for_worker(worker)
        yield Stack(servers, s3, environment, f"http://{HOST}:{port}", password)
        if keep:
            stopping.pop_all()


@contextmanager
def _uninterrupted_end() -> Iterator[None]:
    """From the end of the block on, a second Ctrl-C must not interrupt the stopping of what it started."""
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _wait_for_worker(worker: Server) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while '"worker ready"' not in worker.log.read_text(errors="replace"):
        worker.check_alive()
        if time.monotonic() > deadline:
            raise ServerFailed(f"the worker was not ready within {READY_SECONDS} s (see {worker.log})")
        time.sleep(0.1)


def _deliver(stack: Stack, pictures: dict[str, Path]) -> dict[str, Any]:
    """Upload, enqueue, wait, download; the summary."""
    client = stack.s3.client()
    _say("Upload", f"{len(pictures)} pictures to s3://raw")
    _each(pictures.items(), lambda item: client.upload_file(str(item[1]), "raw", item[0]))
    _say("Queue", "one message a picture; the worker fetches, anonymizes and stores")
    started_at = time.monotonic()
    command = [PROGRAMS / "veil", "enqueue", "--prefix", "s3://raw", "--wait", "--timeout", "180", "--json"]
    with subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.PIPE, text=True, env={**os.environ, **stack.environment}
    ) as enqueue:
        assert enqueue.stdout is not None
        results = [json.loads(line) for line in enqueue.stdout]
    seconds = time.monotonic() - started_at
    delivered = {result["source"].removeprefix("s3://raw/"): result for result in results if result.get("destination")}
    failed = [result for result in results if not result.get("destination")]
    for result in failed:
        reason = f"{result.get('error', result['status'])}: {result.get('message', '')}"
        console.print(f"{result['source']}: {reason}", style="red", markup=False)
    outputs = {key: FOLDER / "clean" / key for key in pictures if key in delivered}
    for path in outputs.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    _each(outputs.items(), lambda item: client.download_file("clean", item[0], str(item[1])))
    pairs = [
        contact_sheet.Pair(key, pictures[key], path, delivered[key]["boxes_xyxy"]) for key, path in outputs.items()
    ]
    sheet = FOLDER / "contact-sheet.jpg"
    contact_sheet.make(pairs, sheet)
    summary = {
        "pictures": len(pictures),
        "anonymized": len(delivered),
        "failed": len(pictures) - len(delivered),
        "faces": sum(result["faces"] for result in delivered.values()),
        "seconds": round(seconds, 2),
        "pictures_per_second": round(len(delivered) / seconds, 2),
        "outputs": str(FOLDER / "clean"),
        "contact_sheet": str(sheet),
        "flower": stack.flower,
    }
    (FOLDER / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return summary


def _each(items: Any, action: Callable[[Any], Any]) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(action, items))


def _keep(stack: Stack) -> None:
    kept = {"pids": {server.name: server.pid for server in stack.servers}, "folder": str(FOLDER.resolve())}
    RUNNING.write_text(json.dumps(kept))
    environment = FOLDER / "environment.sh"
    environment.touch(mode=0o600)
    environment.write_text("".join(f"export {name}='{value}'\n" for name, value in stack.environment.items()))
    _say("Flower", f"{stack.flower}  user veil, password {stack.flower_password}")
    _say("S3", f"{stack.s3.endpoint}  (addresses and keys: `. {environment}`)")
    _say("Stop", "make demo-stop")


def _report(summary: dict[str, Any], images: str) -> None:
    _say(
        "Done",
        f"{summary['anonymized']} of {summary['pictures']} pictures, {summary['faces']} faces, "
        f"{summary['seconds']} s, {summary['pictures_per_second']} pictures/s",
    )
    _say("Look", f"{summary['contact_sheet']}  (before with boxes | after); files in {summary['outputs']}")
    if not images:
        for line in scenes.CREDITS:
            _say("Credit", line)
    if not RUNNING.exists():
        _say("Flower", "ran during the demo; KEEP=1 leaves it and the other services running")


def stop_kept() -> int:
    """End the services that KEEP=1 left, by id; a process that took over an id since is left alone."""
    if not RUNNING.exists():
        console.print("demo: nothing is running")
        return 0
    kept = json.loads(RUNNING.read_text())
    pids = [pid for pid in reversed(kept["pids"].values()) if _is_ours(pid, kept["folder"])]
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 30
    while (left := [pid for pid in pids if Path(f"/proc/{pid}").exists()]) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    RUNNING.unlink()
    console.print(f"demo: stopped {len(pids)} services")
    return 0


def _is_ours(pid: int, folder: str) -> bool:
    try:
        return str(Path(f"/proc/{pid}/cwd").readlink()).startswith(folder)
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())
