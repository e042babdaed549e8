"""``make chaos``: send pictures through the real stack while parts of it are killed or fail.

The environment variables JOBS, KILLS (of workers), CHILD_KILLS (of their picture processes),
REDIS_KILLS and SEED configure it. The result is
one JSON object on standard output. The exit code is 1 if a picture was lost, published twice,
published with a visible face, or differs from its output in a run without faults.
"""

import json
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import platformdirs
from rich.console import Console

from tasks.addresses import ObjectUri
from tasks.app import create_app
from tasks.publishing import Publisher, Wanted
from tasks.records import dead_letters
from tasks.settings import Settings
from tasks.storage import receipts
from tools.chaos import pictures, verdict
from tools.chaos.faults import Faulty
from tools.chaos.supervised import Supervised
from tools.local.processes import children
from tools.local.servers import S3, Redis, Server, ServerFailed, start_redis, start_s3

FOLDER = Path(".chaos")
PROGRAMS = Path(sys.executable).parent
RAW, CALM, CLEAN = "raw", "calm", "clean"
WORKERS = 3
SPARED = 1  # workers that stay alive while the others start, which takes seconds of a processor
REGION = 0.7  # the default of VEIL_REGION
MAX_KILL_DELAY_SECONDS = 1.0  # from publishing a part of the jobs to the next kill
MAX_REDIS_ABSENCE_SECONDS = 2.0  # from the kill of Redis to its restart
READY = '"worker ready"'
FAULTS = {
    "latency": 0.04,
    "500": 0.01,
    "503": 0.02,
    "reset before": 0.01,
    "reset after": 0.01,
    "truncated": 0.01,
}
CHECK_SECONDS = 0.2  # between two checks of a condition
FAILURES = ("lost", "doubled", "mismatched", "clear", "unfinished")  # figures that must be 0

console = Console(stderr=True, highlight=False)


@dataclass(frozen=True)
class Plan:
    """The size of a run.

    A part of the jobs is published just before each kill, so that the workers are busy.
    """

    jobs: int
    kills: int
    redis_kills: int
    seed: int
    child_kills: int = 0

    @property
    def limit_seconds(self) -> float:
        kills = 20.0 * self.kills + 30.0 * self.redis_kills + 10.0 * self.child_kills
        return 180 + 2.0 * self.jobs + kills

    def targets(self) -> list[str]:
        """Return the targets of the kills, in random order."""
        targets = ["worker"] * self.kills + ["redis"] * self.redis_kills
        targets += ["child"] * self.child_kills
        random.Random(self.seed).shuffle(targets)
        return targets

    def parts(self, keys: list[str]) -> list[list[str]]:
        """Return `keys` in one part for each kill, and one for the end."""
        count = len(self.targets()) + 1
        bounds = [len(keys) * number // count for number in range(count + 1)]
        return [keys[start:end] for start, end in pairwise(bounds)]


@dataclass
class Servers:
    """The servers of a run."""

    redis: Redis
    s3: S3
    way: Faulty
    settings: dict[str, str]
    workers: list[Supervised] = field(default_factory=list)
    killed: dict[int, float] = field(default_factory=dict)  # times of the kills by process id

    def worker(self, name: str, destination: str, endpoint: str) -> Supervised:
        environment = {
            **self.settings,
            "VEIL_ROUTES": f"s3://{RAW}=s3://{destination}",
            "VEIL_S3_ENDPOINT": endpoint,
            "VEIL_LOG_FORMAT": "json",
        }
        command: list[str | Path] = [PROGRAMS / "veil", "worker"]
        return Supervised(Server(name, command, FOLDER.resolve() / f"{name}.log", environment))

    def ready(self) -> list[Supervised]:
        """Return the workers that take messages."""
        return [
            worker
            for worker in self.workers
            if worker.alive and worker.said(READY) > len(worker.deaths)
        ]


def main() -> int:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        plan = Plan(
            int(os.environ.get("JOBS") or 1000),
            int(os.environ.get("KILLS") or 100),
            int(os.environ.get("REDIS_KILLS") or 12),
            int(os.environ.get("SEED") or secrets.randbelow(10**6)),
            int(os.environ.get("CHILD_KILLS") or 0),
        )
        result = run(plan)
    except (ServerFailed, ValueError, subprocess.CalledProcessError) as error:
        console.print(f"chaos: {error}", style="red", markup=False)
        return 2
    except KeyboardInterrupt:
        console.print("chaos: interrupted, everything is stopped")
        return 130
    print(json.dumps(result), flush=True)
    return int(any(result[name] for name in FAILURES))


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def run(plan: Plan) -> dict[str, Any]:
    """Run the test, and return the object that is printed."""
    began = time.monotonic()
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    subprocess.run([PROGRAMS / "veil", "model", "build"], check=True, stdout=subprocess.DEVNULL)
    cache = platformdirs.user_cache_path("veil") / "samples"
    made = pictures.make(FOLDER / "samples", cache, min(plan.jobs, pictures.DISTINCT), plan.seed)
    with started() as servers:
        _say(
            f"{plan.jobs} jobs, {plan.kills} + {plan.redis_kills} + {plan.child_kills} kills, "
            f"seed {plan.seed}"
        )
        keys = {}
        for job in range(plan.jobs):
            number = job % len(made)
            suffix = made[number][0]
            keys[f"{job:05}.{suffix}"] = number
        client = servers.s3.client()
        for key, number in keys.items():
            client.put_object(Bucket=RAW, Key=key, Body=made[number][1])
        _work_in_peace(servers, list(keys)[: len(made)])
        storm = time.monotonic()
        unfinished = _work_under_fire(servers, plan, list(keys))
        seconds = time.monotonic() - storm
        judged = _judge(servers, keys, [content for _, content in made])
    return {
        "jobs": plan.jobs,
        "kills": plan.kills,
        "redis_kills": plan.redis_kills,
        "child_kills": plan.child_kills,
        "seed": plan.seed,
        **judged,
        "unfinished": unfinished,
        "faults": {kind: servers.way.requests[kind] for kind in FAULTS},
        "requests": servers.way.requests.total(),
        "seconds": round(seconds, 1),
        "seconds_in_all": round(time.monotonic() - began, 1),
    }


@contextmanager
def started() -> Iterator[Servers]:
    """Start Redis, S3 and the faulty proxy to it, and stop them at the end of the block."""
    with ExitStack() as stopping:
        redis = start_redis(FOLDER.resolve() / "redis")
        stopping.callback(redis.server.stop)
        s3 = start_s3(FOLDER.resolve() / "s3", (RAW, CALM, CLEAN))
        stopping.callback(s3.server.stop)
        s3.client().put_bucket_versioning(
            Bucket=CLEAN, VersioningConfiguration={"Status": "Enabled"}
        )
        way = Faulty(int(s3.endpoint.rpartition(":")[2]))
        stopping.callback(way.close)
        yield Servers(redis, s3, way, {**redis.environment(), **s3.environment()})


def _work_in_peace(servers: Servers, keys: list[str]) -> None:
    """Make the reference outputs: each content once, with a worker that has no faults."""
    _publish(servers, keys)
    worker = servers.worker("calm", CALM, servers.s3.endpoint)
    worker.start()
    try:
        deadline = time.monotonic() + 120 + len(keys)
        while len(_outputs(servers, CALM)) < len(keys):
            if worker.deaths or time.monotonic() > deadline:
                raise ServerFailed(f"the calm run did not succeed (see {worker.server.log})")
            time.sleep(CHECK_SECONDS)
    finally:
        worker.stop()
    if dead := _dead(servers):
        raise ServerFailed(f"the calm run has {len(dead)} dead letters (see {worker.server.log})")
    _say(f"{len(keys)} pictures worked on in peace")


def _publish(servers: Servers, keys: list[str]) -> None:
    app = create_app(Settings(redis_url=servers.redis.url, redis_password=servers.redis.password))
    publisher = Publisher(app)
    publisher.publish([Wanted(ObjectUri(RAW, key)) for key in keys], "uploads")
    publisher.close()
    app.close()


def _outputs(servers: Servers, bucket: str) -> dict[str, str]:
    """Return the ETags of the outputs in `bucket` by key."""
    pages = servers.s3.client().get_paginator("list_objects_v2").paginate(Bucket=bucket)
    found = {}
    for page in pages:
        for item in page.get("Contents", ()):
            if not item["Key"].startswith(".veil/"):
                found[item["Key"]] = item["ETag"].strip('"')
    return found


def _work_under_fire(servers: Servers, plan: Plan, keys: list[str]) -> int:
    """Run the kills, and wait until each picture has an outcome or the time is up.

    Return the number of pictures without an outcome, plus that of the kills that did not take
    place.
    """
    servers.way.rates = FAULTS
    servers.workers = [
        servers.worker(f"worker-{number}", CLEAN, servers.way.endpoint)
        for number in range(1, WORKERS + 1)
    ]
    chance = random.Random(plan.seed + 1)
    deadline = time.monotonic() + plan.limit_seconds
    targets, (*parts, last) = plan.targets(), plan.parts(keys)
    with ExitStack() as stopping:
        for worker in servers.workers:
            worker.start()
            stopping.callback(worker.stop)
        for number, (target, part) in enumerate(zip(targets, parts, strict=True)):
            if number % 10 == 0:
                ended = len(keys) - _unfinished(servers, keys)
                _say(f"{number} of {len(targets)} kills, {ended} of {len(keys)} pictures ended")
            if not _until(lambda: len(servers.ready()) > SPARED, deadline):
                return _unfinished(servers, keys) + len(targets) - number
            _publish(servers, part)
            time.sleep(chance.uniform(0, MAX_KILL_DELAY_SECONDS))
            _attack(servers, target, chance)
        _publish(servers, last)
        _until(lambda: not _unfinished(servers, keys), deadline)
        # A delivery that is still running could still write a wrong output.
        servers.way.rates = {}
        client = servers.redis.client()
        _until(lambda: not client.llen("uploads") and not client.hlen("unacked"), deadline)
        return _unfinished(servers, keys)


def _until(condition: Callable[[], bool], deadline: float) -> bool:
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(CHECK_SECONDS)
    return True


def _unfinished(servers: Servers, keys: list[str]) -> int:
    outputs = _outputs(servers, CLEAN)
    dead = _dead(servers)
    return sum(1 for key in keys if key not in outputs and key not in dead)


def _dead(servers: Servers) -> dict[str, dead_letters.DeadLetter]:
    letters = dead_letters.LETTERS.entries(servers.redis.client())
    return {letter.source.removeprefix(f"s3://{RAW}/"): letter for letter in letters}


def _attack(servers: Servers, target: str, chance: random.Random) -> None:
    if target == "redis":
        servers.redis.server.kill()
        time.sleep(chance.uniform(0, MAX_REDIS_ABSENCE_SECONDS))
        servers.redis.start()
        return
    victims = servers.ready() or servers.workers
    if target == "child":
        _kill_child(victims, chance)
        return
    while (pid := chance.choice(victims).kill()) is None:
        time.sleep(CHECK_SECONDS)
    servers.killed[pid] = time.time()


def _kill_child(workers: list[Supervised], chance: random.Random) -> None:
    """Kill a picture process of one of `workers`, if they have any at the moment."""
    found = [child for worker in workers if worker.alive for child in children(worker.server.pid)]
    if found:
        with suppress(ProcessLookupError):  # It has just ended.
            os.kill(chance.choice(found), signal.SIGKILL)


def _judge(servers: Servers, keys: dict[str, int], contents: list[bytes]) -> dict[str, Any]:
    client = servers.s3.client()
    calm, calm_keys = _outputs(servers, CALM), list(keys)[: len(contents)]
    outputs, dead = _outputs(servers, CLEAN), _dead(servers)
    written = verdict.versions(client, CLEAN)
    differing = [
        item
        for item in written
        if item.key in keys and item.etag != calm[calm_keys[keys[item.key]]]
    ]
    # All other outputs equal those of the calm run byte for byte, so only these need a check.
    checked: list[tuple[str, str, dict[str, str]]] = [(CALM, key, {}) for key in calm_keys]
    checked += [(CLEAN, version.key, {"VersionId": version.id}) for version in differing]
    clear = []
    for bucket, key, options in checked:
        boxes = _boxes(client, calm_keys[keys[key]])
        output = client.get_object(Bucket=bucket, Key=key, **options)["Body"].read()
        if not boxes or verdict.is_clear(contents[keys[key]], output, boxes, REGION):
            clear.append(key)
    died: dict[int, float] = {}
    for worker in servers.workers:
        died |= {death.pid: death.time for death in worker.deaths}
    died |= servers.killed
    seconds = verdict.redeliveries((worker.server.log for worker in servers.workers), died)
    many = Counter(version.key for version in written if version.key in keys)
    found = {
        "lost": verdict.lost(keys, outputs, dead),
        "doubled": verdict.doubled(keys, written),
        "mismatched": sorted({version.key for version in differing}),
        "clear": clear,
    }
    letters = [f"{key}: {letter.error}: {letter.message}" for key, letter in dead.items()]
    for kind, lines in {**found, "dead letters": letters}.items():
        for line in lines[:20]:
            console.print(f"chaos: {kind}: {line}", style="red", markup=False)
    return {
        **{kind: len(keys_) for kind, keys_ in found.items()},
        "outputs": len(outputs),
        "dead_letters": len(dead),
        "dead_by_error": dict(Counter(letter.error for letter in dead.values())),
        "written_again": sum(1 for count in many.values() if count > 1),
        "worker_deaths": sum(len(worker.deaths) for worker in servers.workers),
        "redelivered": len(seconds),
        "redelivery_p50": verdict.percentile(seconds, 0.50),
        "redelivery_p99": verdict.percentile(seconds, 0.99),
        "redelivery_max": verdict.percentile(seconds, 1.0),
    }


def _boxes(client: Any, key: str) -> list[list[int]]:
    """Return the boxes of the output `key` of the calm run, from its receipt."""
    (receipt,) = client.list_objects_v2(Bucket=CALM, Prefix=f"{receipts.FOLDER}{key}.")["Contents"]
    content = client.get_object(Bucket=CALM, Key=receipt["Key"])["Body"].read()
    return [face["box_xyxy"] for face in receipts.Receipt.from_bytes(content).faces]


def _say(text: str) -> None:
    console.print(f"chaos: {text}", markup=False)


if __name__ == "__main__":
    sys.exit(main())
