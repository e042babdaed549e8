"""``make demo``: upload pictures to a local store, and download them anonymized."""

import argparse
import json
import os
import shlex
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

from tasks.bulk.comparison import read_receipts
from tasks.bulk.places import Places
from tasks.errors import VeilError
from tasks.messages import FACE
from tasks.records import dead_letters
from tasks.routes import Routes
from tasks.settings import PREFIX
from tasks.storage import receipts
from tasks.storage.receipts import Receipt
from tasks.storage.s3 import ObjectStore
from tools.demo import contact_sheet
from tools.local import scenes, street
from tools.local.servers import (
    S3,
    Flower,
    Redis,
    Server,
    ServerFailed,
    Webhook,
    redis_program,
    start_flower,
    start_redis,
    start_s3,
)
from worker.commands.waiting import Endings
from worker.detection.centerface.default import default_folder
from worker.local_files import PICTURE_SUFFIXES
from worker.object_counts import counted_objects
from worker.printing import counted

FOLDER = Path(".demo")
RUNNING = FOLDER / "running.json"
RAW, CLEAN = "raw", "clean"
ROUTE = f"s3://{RAW}=s3://{CLEAN}"
PLACES = Places.find(f"s3://{RAW}", None, Routes.parse(ROUTE))
READY_SECONDS = 120
PATIENCE_SECONDS = 180  # without a new outcome of any picture
PROGRAMS = Path(sys.executable).parent

console = Console(stderr=True, highlight=False, soft_wrap=True)


@dataclass
class Services:
    """The services of a run, and the environment variables with which `veil` reaches them."""

    servers: list[Server]
    redis: Redis
    s3: S3
    environment: dict[str, str]
    flower: Flower


def main() -> int:
    parser = argparse.ArgumentParser(prog="demo", description=__doc__)
    parser.add_argument("command", nargs="?", choices=("run", "stop"), default="run")
    if parser.parse_args().command == "stop":
        return stop_kept()
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)
    try:
        return run(os.environ.get("IMAGES", ""), _is_set("KEEP"))
    except (ServerFailed, VeilError) as error:
        console.print(f"demo: {error}", style="red", markup=False)
        return 1
    except KeyboardInterrupt:
        console.print("demo: interrupted, everything is stopped")
        return 130


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _is_set(name: str) -> bool:
    """Return whether the variable `name` of `make` is set, and not 0."""
    return os.environ.get(name, "") not in ("", "0")


def run(images: str, keep: bool) -> int:
    """Run the demo, and return 0 only if each picture has an output or was held."""
    if RUNNING.exists():
        raise ServerFailed(
            "services of an earlier KEEP=1 are running: stop them with `make demo-stop`"
        )
    _refuse_routes()
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    if model := os.environ.get("VEIL_MODEL"):
        _say("Detector", model)
        _check([PROGRAMS / "veil", "model", "info"])
    else:
        is_built = default_folder().is_dir()
        _say("Detector", "CenterFace" if is_built else "building it on first use, a minute at most")
        _check([PROGRAMS / "veil", "model", "build"])
    pictures = _pictures(images)
    if _is_set("PLATES"):
        _check([PROGRAMS / "veil", "settings", "--check"], VEIL_PLATES="true")
    with started(keep) as services:
        summary = _deliver(services, pictures, keep)
        if keep:
            _keep(services)
    _report(summary, images)
    return 1 if summary["failed"] else 0


def _refuse_routes() -> None:
    """Raise ServerFailed if the environment names other routes than that of the demo."""
    for name in ("VEIL_ROUTES", "VEIL_ROUTES_FILE"):
        if os.environ.get(name, "") not in ("", ROUTE):
            raise ServerFailed(
                f"{name} is set, but the demo's store has only the buckets of its own route, "
                f"{ROUTE}: run `make demo {name}=`, or see docs/running.md for a service with "
                "routes of your own"
            )


def _say(what: str, text: str) -> None:
    console.print(f"[bold]{what:<10}[/bold] {text}")


def _check(command: list[Any], **variables: str) -> None:
    """Run `command`. If it fails, end with its exit code: it has printed why."""
    environment = {**os.environ, **variables}
    done = subprocess.run(
        [str(part) for part in command], check=False, stdout=subprocess.DEVNULL, env=environment
    )
    if done.returncode:
        sys.exit(done.returncode)


def _pictures(images: str) -> dict[str, Path]:
    """Return the paths of the pictures by key."""
    if not images:
        made = scenes.make(FOLDER / "raw", _cache())
        if _is_set("PLATES"):
            made.append(street.make(FOLDER / "raw", _cache()))
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
            raise ServerFailed(
                f"{key!r} in {images} can't be a key of the demo's S3 store: rename it"
            )
        found[key] = path
    if not found:
        raise ServerFailed(f"IMAGES={images} has no pictures in it")
    return found


def _cache() -> Path:
    import platformdirs

    return platformdirs.user_cache_path("veil") / "samples"


@contextmanager
def started(keep: bool) -> Iterator[Services]:
    """Start Redis, S3, the trigger, a worker and Flower on free ports.

    They are stopped at the end of the block, except with `keep` after a success.
    """
    with ExitStack() as stopping, _uninterrupted_end():
        servers: list[Server] = []

        def add(server: Server) -> None:
            servers.append(server)
            stopping.callback(server.stop)

        queue = Path(redis_program()).name
        _say(
            "Services",
            f"starting {queue}, S3 (SeaweedFS), the trigger, a worker and Flower on loopback ports",
        )
        folder = FOLDER.resolve() / "services"
        redis = start_redis(folder / "redis", keep)
        add(redis.server)
        webhook = Webhook()
        s3 = start_s3(folder / "s3", (RAW, CLEAN), keep, webhook)
        add(s3.server)
        environment = {
            **_own_settings(),
            **redis.environment(),
            **s3.environment(),
            "VEIL_ROUTES": ROUTE,
        }
        if model := os.environ.get("VEIL_MODEL"):
            environment["VEIL_MODEL"] = str(Path(model).expanduser().resolve())
        if _is_set("PLATES"):
            environment["VEIL_PLATES"] = "true"
        # The store posts an event once, so the trigger holds it for as long as the store waits.
        watch: list[str | Path] = [
            PROGRAMS / "veil",
            "watch",
            "--http",
            webhook.address,
            "--hold",
            "280",
        ]
        trigger = Server(
            "trigger", watch, folder / "trigger.log", {**environment, **webhook.environment()}, keep
        )
        add(trigger)
        trigger.start()
        supervisor = Path(__file__).resolve().parents[1] / "local" / "supervisor.py"
        worker = Server(
            "worker",
            [sys.executable, supervisor, PROGRAMS / "veil", "worker"],
            folder / "worker.log",
            environment,
            keep,
        )
        add(worker)
        worker.start()
        flower = start_flower(folder / "flower", environment, keep)
        add(flower.server)
        _wait_for(trigger, '"watching"')
        _wait_for(worker, '"worker ready"')
        yield Services(servers, redis, s3, environment, flower)
        if keep:
            stopping.pop_all()


def _own_settings() -> dict[str, str]:
    """Return the settings of Veil in the environment of the demo."""
    return {name: value for name, value in os.environ.items() if name.startswith(PREFIX)}


@contextmanager
def _uninterrupted_end() -> Iterator[None]:
    """Ignore Ctrl-C from the end of the block, so that it does not interrupt the cleaning up."""
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _wait_for(server: Server, line: str) -> None:
    """Wait for `line` in the log of `server`."""
    deadline = time.monotonic() + READY_SECONDS
    while line not in server.log.read_text(errors="replace"):
        server.check_alive()
        if time.monotonic() > deadline:
            raise ServerFailed(
                f"the {server.name} was not ready within {READY_SECONDS} s (see {server.log})"
            )
        time.sleep(0.1)


def _deliver(services: Services, pictures: dict[str, Path], keep: bool) -> dict[str, Any]:
    """Upload the pictures, wait, download the outputs, and return the summary.

    The summary has Flower's address only if the services are kept.
    """
    client = services.s3.client()
    _say(
        "Upload",
        f"{counted(len(pictures), 'picture')} to s3://{RAW}, and the store tells the trigger",
    )
    started_at = time.monotonic()
    _each(pictures.items(), lambda item: client.upload_file(str(item[1]), RAW, item[0]))
    _say("Queue", "one message a picture; the worker fetches, anonymizes and stores")
    made, failed = _wait_for_pictures(services, client, set(pictures))
    seconds = time.monotonic() - started_at
    delivered = {key: receipt for key, receipt in made.items() if receipt.status == "anonymized"}
    held = {key: receipt for key, receipt in made.items() if receipt.status == "held"}
    for key, receipt in sorted(held.items()):
        console.print(f"s3://{RAW}/{key}: held, {receipt.reason}", style="yellow", markup=False)
    for key in sorted(set(pictures) - made.keys()):
        reason = failed.get(key, "nothing came of it in time")
        console.print(f"s3://{RAW}/{key}: {reason}", style="red", markup=False)
    outputs = {key: FOLDER / "clean" / key for key in pictures if key in delivered}
    for path in outputs.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    _each(outputs.items(), lambda item: client.download_file(CLEAN, item[0], str(item[1])))
    pairs = [
        contact_sheet.Pair(
            key,
            counted_objects(delivered[key].labels),
            pictures[key],
            path,
            [face["box_xyxy"] for face in delivered[key].faces],
        )
        for key, path in outputs.items()
    ]
    sheet = FOLDER / "contact-sheet.jpg"
    shown = contact_sheet.make(pairs, sheet)
    if shown < len(pairs):
        _say("Sheet", f"{shown} of {len(pairs)} pictures, evenly spread")
    labels = [label for receipt in delivered.values() for label in receipt.labels]
    summary = {
        "pictures": len(pictures),
        "anonymized": len(delivered),
        "held": len(held),
        "failed": len(pictures) - len(made),
        "faces": labels.count(FACE),
        "found": counted_objects(labels),
        "seconds": round(seconds, 2),
        "pictures_per_second": round(len(delivered) / seconds, 2),
        "outputs": str(FOLDER / "clean"),
        "contact_sheet": str(sheet),
        "flower": services.flower.address if keep else None,
    }
    (FOLDER / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return summary


def _wait_for_pictures(
    services: Services, client: Any, wanted: set[str]
) -> tuple[dict[str, Receipt], dict[str, str]]:
    """Wait for all pictures; return their receipts and the errors of the failed ones, by key.

    Pictures are missing in both if there is no new outcome for PATIENCE_SECONDS.
    """
    store = ObjectStore(client)
    made: dict[str, Receipt] = {}
    failed: dict[str, str] = {}
    last_news = time.monotonic()
    while wanted - made.keys() - failed.keys() and time.monotonic() - last_news < PATIENCE_SECONDS:
        time.sleep(0.2)
        for server in services.servers:
            server.check_alive()
        before = len(made) + len(failed)
        outputs = _keys(client, "")
        named = [
            receipts.parse(name.removeprefix(receipts.FOLDER))
            for name in _keys(client, receipts.FOLDER)
        ]
        for key in (wanted - made.keys()) & {*outputs, *(found.key for found in named if found)}:
            for _, receipt in read_receipts(store, PLACES, key):
                # A receipt is written before its output.
                if receipt.status == "held" or key in outputs:
                    made[key] = receipt
        for letter in dead_letters.LETTERS.entries(services.redis.client()):
            failed[letter.source.removeprefix(f"s3://{RAW}/")] = f"{letter.error}: {letter.message}"
        if len(made) + len(failed) > before:
            last_news = time.monotonic()
    return made, failed


def _keys(client: Any, prefix: str) -> set[str]:
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=CLEAN, Prefix=prefix)
    return {item["Key"] for page in pages for item in page.get("Contents", ())}


def _each(items: Any, action: Callable[[Any], Any]) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(action, items))


def _keep(services: Services) -> None:
    kept = {
        "pids": {server.name: (server.pid, _started(server.pid)) for server in services.servers}
    }
    RUNNING.write_text(json.dumps(kept))
    environment = FOLDER / "environment.sh"
    environment.touch(mode=0o600)
    environment.write_text(
        "".join(
            f"export {name}={shlex.quote(value)}\n" for name, value in services.environment.items()
        )
    )
    _say("Flower", f"{services.flower.address}  user veil, password {services.flower.password}")
    _say("S3", f"{services.s3.endpoint}  (addresses and keys: `. {environment}`)")
    _say(
        "Upload", f"whatever is put into s3://{RAW} anonymizes itself to s3://{CLEAN}: for example"
    )
    _say("", f"aws --endpoint-url {services.s3.endpoint} s3 cp PICTURE s3://{RAW}/")
    _say("Stop", "make demo-stop")


def _report(summary: dict[str, Any], images: str) -> None:
    _say(
        "Done",
        f"{counted(summary['pictures'], 'picture')}: {_endings(summary)}; "
        f"{summary['found']}, "
        f"{summary['seconds']} s, {summary['pictures_per_second']} pictures/s",
    )
    _say(
        "Look",
        f"{summary['contact_sheet']}  (before with boxes | after); files in {summary['outputs']}",
    )
    if not images:
        for line in (*scenes.CREDITS, *([street.CREDIT] if _is_set("PLATES") else [])):
            _say("Credit", line)
    if not RUNNING.exists():
        _say("Flower", "ran during the demo; KEEP=1 leaves it and the other services running")
    if summary["failed"]:  # The last line, because make adds its own about the exit code.
        count = counted(summary["failed"], "picture")
        _say("Failed", f"{count}, named above; the services worked. make reports it as Error 1.")


def _endings(summary: dict[str, Any]) -> Endings:
    outcomes = {"anonymized": summary["anonymized"], "held": summary["held"]}
    return Endings({**outcomes, "dead": summary["failed"]})


def stop_kept() -> int:
    """Stop the services that KEEP=1 left.

    The start time of a process tells whether another one has its id by now.
    """
    if not RUNNING.exists():
        console.print("demo: nothing is running")
        return 0
    kept = json.loads(RUNNING.read_text())
    pids = [
        pid
        for pid, started in reversed(kept["pids"].values())
        if started and _started(pid) == started
    ]
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 30
    while (
        running := [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    ) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in running:
        os.kill(pid, signal.SIGKILL)
    RUNNING.unlink()
    console.print(f"demo: stopped {len(pids)} services")
    return 0


def _started(pid: int) -> int | None:
    """Return the start time of the process in ticks since boot; None if it does not exist.

    Other properties, like the working folder, are hidden for processes that leave no core dumps.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[19])


if __name__ == "__main__":
    sys.exit(main())
