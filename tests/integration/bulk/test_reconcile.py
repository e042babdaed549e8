"""`veil reconcile`: its findings in a store of workers, its messages, and its exit codes."""

import itertools
import json
import os
import select
import signal
import socket
import socketserver
import subprocess
import threading
import time
import tracemalloc
from dataclasses import replace
from types import SimpleNamespace
from urllib.parse import urlsplit

import numpy as np
import pytest

from tasks import publishing
from tasks.addresses import ObjectUri
from tasks.app import create_app
from tasks.bulk import reconcile as reconciling
from tasks.bulk.places import Places
from tasks.bulk.reconcile import Only, Reconciliation
from tasks.messages import BACKFILL, UPLOADS, AnonymizeRequest
from tasks.records import dead_letters
from tasks.records.dead_letters import DeadLetter
from tasks.routes import Route, Routes
from tasks.settings import Settings
from tasks.storage.receipts import FOLDER, ReceiptName, uri
from tasks.storage.s3 import ObjectStore, StoredObject
from tests.command import start_command
from tests.pipelines import run as run_pipeline
from tools.local.servers import HOST, start_redis
from worker.anonymizer import Anonymizer, Limits
from worker.detection.faces import Detections
from worker.masking.regions import MaskStyle
from worker.pipeline import Pipeline

RECIPE, OLDER_RECIPE, OLDER_ETAG = "5a38d4c65c2c5ab0", "fedcba9876543210", "0" * 32
SOURCES = (
    "current", "missing", "changed", "older", "changed and older", "in the way", "held", "dead",
    "dead before",
)  # fmt: skip


def give_up(redis, source, when=None, **fields):
    given = {
        "destination": None,
        "error": "UnreadableImage",
        "message": "no picture",
        "attempts": 1,
        "task_id": "t",
    }
    given |= {"worker": "w", "time": time.time() + 5 if when is None else when} | fields
    dead_letters.LETTERS.record(redis, DeadLetter(source=str(source), **given))


@pytest.fixture
def archive(store, archive_at, place):
    return archive_at(store, place)


@pytest.fixture
def one_of_each(archive, unattended):
    """An archive with a picture of each kind, named for it."""
    etags = {key: archive.source(key).etag for key in SOURCES}
    archive.done("current", etags["current"])
    archive.done("changed", OLDER_ETAG)
    archive.done("older", etags["older"], OLDER_RECIPE)
    archive.done("changed and older", OLDER_ETAG, OLDER_RECIPE)
    archive.store.put(archive.places.destination("in the way"), b"a page", "text/html", {})
    archive.receipt("held", etags["held"], status="held")
    give_up(unattended.client, archive.places.source.join("dead"))
    give_up(unattended.client, archive.places.source.join("dead before"), when=1e9)
    archive.done("orphan", OLDER_ETAG)
    return archive


@pytest.fixture
def reconcile(veil, unattended, s3, archive):
    """Run the command on the archive."""
    places = archive.places
    settings = {**unattended.environment, **s3.environment(), "VEIL_ROUTES": str(places.route)}

    def run(*arguments, source=places.source, environment=None):
        return veil(
            "reconcile", source, *arguments, environment={**settings, **(environment or {})}
        )

    return run


def told(done):
    """Return the findings by key and the summary of a run with --json."""
    *findings, last = [json.loads(line) for line in done.stdout.splitlines()]
    return {finding["source"].rpartition("/")[2]: finding for finding in findings}, last["summary"]


def enqueued(queue, name=BACKFILL):
    messages = [json.loads(message) for message in queue.client.lrange(name, 0, -1)]
    return {message["headers"]["argsrepr"]: message["headers"]["id"] for message in messages}


def arguments(archive, *keys):
    return {str(archive.places.source.join(key)) for key in keys}


def test_what_is_wrong_is_told_with_its_reason_and_the_rest_is_counted(
    one_of_each, reconcile, unattended
):
    done = reconcile("--recipe", RECIPE, "--json")

    assert done.returncode == 1
    findings, summary = told(done)
    assert {key: (finding["state"], finding["reason"]) for key, finding in findings.items()} == {
        "missing": ("missing", "no output"),
        "dead before": ("missing", "no output"),
        "in the way": (
            "taken",
            "an object that is not its output is in its output's place: "
            "remove it, or choose another destination",
        ),
        "changed": ("stale", "source changed"),
        "older": ("stale", "other recipe"),
        "changed and older": ("stale", "source changed, other recipe"),
        "orphan": ("orphan", "no source"),
        "held": ("held", "no face found"),
        "dead": ("dead", "UnreadableImage: no picture"),
    }
    places = one_of_each.places
    for key, finding in findings.items():
        assert set(finding) == {
            *("state", "source", "output", "reason", "lowest_score", "enqueued", "older_output")
        }
        assert finding["output"] == str(places.destination(key))
        assert not finding["enqueued"]
    assert summary.pop("seconds") > 0
    counts = {
        "current": 1,
        "missing": 2,
        "stale": 3,
        "taken": 1,
        "orphan": 1,
        "dead": 1,
        "held": 1,
        "archived": 0,
    }
    counts |= {"refused": 0, "unknown key": 0, "source unknown": 0}
    assert summary == {
        **counts,
        "held_with_output": 0,
        "enqueued": 0,
        "recipe": RECIPE,
        "complete": True,
    }
    assert enqueued(unattended) == {}


def test_for_people_a_finding_is_a_line_and_the_summary_is_apart(one_of_each, reconcile):
    done = reconcile("--recipe", RECIPE)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert len(lines) == 9
    assert f"orphan   {one_of_each.places.destination('orphan')}  no source" in lines
    assert f"stale    {one_of_each.places.source.join('older')}  other recipe" in lines
    summary, advice = done.stderr.splitlines()
    assert "veil dead retry SOURCE" in advice
    assert summary.startswith(
        "1 current, 2 missing, 3 stale, 1 taken, 1 orphan, 1 dead, 1 held in "
    )


def test_keys_with_another_suffix_are_left_out(archive, reconcile):
    archive.done("a.JPG", archive.source("a.JPG").etag)
    archive.source("notes.txt")
    archive.done("orphan.txt", OLDER_ETAG)
    assert reconcile("--recipe", RECIPE).returncode == 1
    done = reconcile("--recipe", RECIPE, "--suffix", ".jpg", "--suffix", ".png", "--json")
    assert done.returncode == 0
    findings, summary = told(done)
    assert (findings, summary["current"], summary["missing"]) == ({}, 1, 0)


def test_a_place_without_pictures_is_one_line_and_exit_code_1(archive, reconcile):
    archive.done("a.jpg", archive.source("a.jpg").etag)
    assert reconcile("--recipe", RECIPE).returncode == 0
    source, output = archive.places.source, archive.places.output
    done = reconcile("--recipe", RECIPE, "--json", source=f"{source}mistyped")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"veil: NothingFound: no source below {source}mistyped/ and no output below "
        f"{output}mistyped/: correct the addresses\n"
    )
    done = reconcile("--recipe", RECIPE, "--suffix", ".jgp")
    assert done.returncode == 1
    assert f"no output below {output} with this suffix" in done.stderr


def test_a_place_where_all_is_done_or_held_is_exit_code_0(archive, reconcile):
    archive.done("a.jpg", archive.source("a.jpg").etag)
    archive.receipt("b.jpg", archive.source("b.jpg").etag, status="held")
    done = reconcile("--recipe", RECIPE, "--json")
    assert done.returncode == 0
    findings, summary = told(done)
    assert {key: finding["state"] for key, finding in findings.items()} == {"b.jpg": "held"}
    assert (summary["current"], summary["held"]) == (1, 1)


def test_a_hold_that_left_an_older_output_published_is_told_until_the_output_is_deleted(
    archive, reconcile, veil, unattended, s3
):
    """Of the last one the worker's rule changed, which is no part of its recipe."""
    older = {"other recipe": OLDER_RECIPE, "same recipe": RECIPE}
    later = "2026-02-01T00:00:00.000+00:00"
    for key, recipe in older.items():
        etag = archive.source(key).etag
        archive.done(key, etag, recipe)
        archive.receipt(key, etag, status="held", created=later)
    archive.receipt("new", archive.source("new").etag, status="held")
    archive.receipt("released", archive.source("released").etag, status="held")
    archive.output("released", archive.source("released").etag)
    archive.receipt("released", archive.source("released").etag, created=later)

    done = reconcile("--recipe", RECIPE)
    assert done.returncode == 0
    assert done.stderr.splitlines()[1] == "held, with an older output still published: 2"
    findings, summary = told(reconcile("--recipe", RECIPE, "--json"))
    assert {key for key, finding in findings.items() if finding["older_output"]} == set(older)
    assert (summary["current"], summary["held"], summary["held_with_output"]) == (1, 3, 2)

    environment = {**unattended.environment, **s3.environment()}
    environment["VEIL_ROUTES"] = str(archive.places.route)
    for key in older:
        output = archive.places.destination(key)
        told_of = veil("receipt", "verify", "--json", output, environment=environment)
        receipt = json.loads(told_of.stdout.splitlines()[0])["receipt"]
        archive.store.delete(output)
        archive.store.delete(ObjectUri.parse(receipt))
    _, summary = told(reconcile("--recipe", RECIPE, "--json"))
    assert (summary["held"], summary["held_with_output"]) == (3, 0)
    place = str(archive.places.output)
    verified = veil("receipt", "verify", "--json", place, environment=environment)
    states = json.loads(verified.stdout.splitlines()[-1])["summary"]["states"]
    assert states["held"] == 3
    assert "output gone" not in states


def test_what_is_missing_or_stale_is_enqueued_and_nothing_else(one_of_each, reconcile, unattended):
    done = reconcile("--recipe", RECIPE, "--enqueue", "--json")
    assert done.returncode == 1
    findings, summary = told(done)
    keys = {"missing", "dead before", "changed", "older", "changed and older"}
    assert {key for key, finding in findings.items() if finding["enqueued"]} == keys
    assert summary["enqueued"] == 5
    waiting = enqueued(unattended)
    assert set(waiting) == arguments(one_of_each, *keys)
    assert enqueued(unattended, UPLOADS) == {}

    unattended.client.delete(BACKFILL)
    reconcile("--recipe", RECIPE, "--enqueue")
    assert enqueued(unattended) == waiting  # The second request has the same ids.


def test_only_what_another_recipe_made_is_enqueued_if_asked(one_of_each, reconcile, unattended):
    publishing.announce_recipe(unattended.client, RECIPE)
    done = reconcile("--recipe-older-than-current", "--enqueue", "--json")
    assert done.returncode == 1
    findings, summary = told(done)
    assert set(findings) == {"older", "changed and older"}
    assert (summary["missing"], summary["stale"]) == (0, 2)  # The summary counts what was chosen.
    assert set(enqueued(unattended)) == arguments(one_of_each, "older", "changed and older")


def test_what_another_recipe_held_is_decided_again(archive, reconcile, unattended):
    publishing.announce_recipe(unattended.client, RECIPE)
    archive.receipt("before", archive.source("before").etag, OLDER_RECIPE, status="held")
    archive.receipt("now", archive.source("now").etag, status="held")
    for options in ((), ("--recipe-older-than-current",)):
        done = reconcile(*options, "--enqueue", "--json")
        assert done.returncode == 1
        finding = told(done)[0]["before"]
        assert (finding["state"], finding["reason"]) == ("stale", "held by another recipe")
        assert finding["enqueued"]
        assert set(enqueued(unattended)) == arguments(archive, "before")
        unattended.client.delete(BACKFILL)


def test_only_what_has_a_face_of_a_low_score_if_asked(archive, reconcile, unattended):
    scores = {"low": (0.9, 0.2), "high": (0.9, 0.31), "none": ()}
    for recipe, kind in ((RECIPE, "new"), (OLDER_RECIPE, "old")):
        for name, found in scores.items():
            key = f"{kind} {name}"
            archive.done(key, archive.source(key).etag, recipe, found)
    archive.output("untold", archive.source("untold").etag)
    archive.source("missing")

    done = reconcile("--recipe", RECIPE, "--below-score", 0.3, "--enqueue", "--json")

    assert done.returncode == 1
    findings, summary = told(done)
    assert {
        key: (finding["state"], finding["lowest_score"]) for key, finding in findings.items()
    } == {
        "new low": ("current", 0.2),
        "old low": ("stale", 0.2),
        "untold": ("stale", None),  # Without a receipt nobody knows.
    }
    assert (summary["current"], summary["stale"], summary["missing"]) == (3, 2, 0)
    assert set(enqueued(unattended)) == arguments(archive, "old low", "untold")


def test_what_was_not_asked_for_is_no_fault(archive, reconcile, unattended):
    publishing.announce_recipe(unattended.client, RECIPE)
    archive.done("current", archive.source("current").etag)
    archive.source("missing")
    archive.store.put(archive.places.destination("orphan"), b"a page", "text/html", {})
    done = reconcile("--recipe-older-than-current", "--sources-deleted")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith("1 current, 0 stale in ")
    done = reconcile("--sources-deleted")
    assert (done.returncode, len(done.stdout.splitlines())) == (1, 2)
    assert done.stderr.startswith("1 current, 1 missing, 0 stale, 1 orphan, 0 dead, 0 held in ")


def test_where_sources_are_deleted_on_purpose_a_receipt_is_enough(archive, reconcile):
    archive.done("archived", OLDER_ETAG)
    archive.done("older", OLDER_ETAG, OLDER_RECIPE)
    done = reconcile("--recipe", RECIPE, "--sources-deleted", "--json")
    assert done.returncode == 0
    findings, summary = told(done)
    assert (findings, summary["archived"], summary["orphan"]) == ({}, 2, 0)
    archive.output("without receipt", OLDER_ETAG)
    done = reconcile("--recipe", RECIPE, "--sources-deleted", "--json")
    assert done.returncode == 1
    assert told(done)[0].keys() == {"without receipt"}
    assert reconcile("--recipe", RECIPE).stdout.count("orphan") == 3


def test_outputs_elsewhere_in_the_route_are_asked_for_there(archive, reconcile, unattended):
    archive.source("2026/a.jpg")
    source, output = (f"{place}2026" for place in (archive.places.source, archive.places.output))
    done = reconcile(f"{output}/again", "--recipe", RECIPE, "--enqueue", source=source)
    assert done.returncode == 1
    assert set(enqueued(unattended)) == {f"{source}/a.jpg → {output}/again/a.jpg"}


def test_outputs_elsewhere_are_no_orphans_if_their_receipts_prove_them(
    archive, reconcile, unattended
):
    route = archive.places.route
    elsewhere = replace(
        archive, places=Places.find(str(route.source), f"{route.destination}to", Routes((route,)))
    )
    etag = archive.source("a.jpg").etag
    archive.done("a.jpg", etag)
    elsewhere.done("a.jpg", etag)
    done = reconcile("--recipe", RECIPE, "--json")
    assert done.returncode == 0
    findings, summary = told(done)
    assert (findings, summary["current"], summary["source unknown"]) == ({}, 1, 1)
    elsewhere.store.put(elsewhere.places.destination("a.jpg"), b"another", "image/jpeg", {})
    done = reconcile("--recipe", RECIPE, "--json")
    assert done.returncode == 1
    assert told(done)[0]["a.jpg"]["state"] == "orphan"


def test_a_dead_letter_is_that_of_its_destination(archive, reconcile, unattended):
    source, output = archive.source("a.jpg").uri, f"{archive.places.output}again"
    give_up(unattended.client, source, destination=f"{output}/a.jpg")
    findings, _ = told(reconcile("--recipe", RECIPE, "--json"))
    assert findings["a.jpg"]["state"] == "missing"
    findings, _ = told(reconcile(output, "--recipe", RECIPE, "--json"))
    assert findings["a.jpg"]["state"] == "dead"
    for destination in (None, str(archive.places.destination("a.jpg"))):
        unattended.client.delete(dead_letters.LETTERS.key)
        give_up(unattended.client, source, destination=destination)
        findings, _ = told(reconcile("--recipe", RECIPE, "--json"))
        assert findings["a.jpg"]["state"] == "dead"
        findings, _ = told(reconcile(output, "--recipe", RECIPE, "--json"))
        assert findings["a.jpg"]["state"] == "missing"


def test_without_a_recipe_versions_alone_count_and_a_note_says_so(archive, reconcile):
    archive.done("a", archive.source("a").etag, OLDER_RECIPE)
    done = reconcile("--json")
    assert done.returncode == 0
    assert told(done)[1]["recipe"] is None
    (note,) = done.stderr.splitlines()
    assert "recipe" in note
    done = reconcile("--recipe-older-than-current")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "--recipe" in line


class HangingStore(socketserver.ThreadingTCPServer):
    """A relay to a store at `port` that passes on one connection and never answers the others.

    `hangs` is set once another connection has sent a request.
    """

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__((HOST, 0), HangingConnection)
        self.store_port, self.hangs = port, threading.Event()
        self.passed_on = itertools.count()

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.1,), daemon=True).start()
        return self

    def __exit__(self, *_exception):
        self.shutdown()
        self.server_close()


class HangingConnection(socketserver.BaseRequestHandler):
    def handle(self):
        if next(self.server.passed_on):
            while self.request.recv(65_536):
                self.server.hangs.set()
            return
        with socket.create_connection((HOST, self.server.store_port)) as store:
            ends = {self.request: store, store: self.request}
            while True:
                for end in select.select(list(ends), [], [])[0]:
                    content = end.recv(65_536)
                    if not content:
                        return
                    ends[end].sendall(content)


def test_an_interruption_while_the_store_hangs_is_told_at_once(
    archive, programs, s3, unattended, tmp_path
):
    for number in range(20):
        archive.source(f"{number}")
    places = archive.places
    environment = {**unattended.environment, **s3.environment(), "VEIL_ROUTES": str(places.route)}
    with HangingStore(urlsplit(s3.endpoint).port) as hanging_store:
        environment["VEIL_S3_ENDPOINT"] = f"http://{HOST}:{hanging_store.server_address[1]}"
        process = start_command(
            [programs / "veil", "reconcile", places.source, "--recipe", RECIPE],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
            cwd=tmp_path,
        )
        try:
            assert hanging_store.hangs.wait(60)
            process.send_signal(signal.SIGTERM)
            started = time.monotonic()
            assert "interrupted" in process.stderr.readline()
            assert "limit" not in process.stderr.readline()
            assert time.monotonic() - started < 10
        finally:
            process.stderr.close()
            process.kill()
            process.wait()


def test_a_limit_proves_nothing(archive, reconcile, unattended):
    for number in range(5):
        archive.receipt(f"{number}", archive.source(f"{number}").etag, status="held")
    archive.source("a")
    done = reconcile("--recipe", RECIPE, "--limit", 3, "--json", "--enqueue")
    assert done.returncode == 1
    findings, summary = told(done)
    assert len(findings) == 3
    assert summary["complete"] is False
    assert enqueued(unattended) == {}


@pytest.mark.parametrize(
    ("arguments", "word"),
    [(("s3://elsewhere",), "no route"), (("--recipe", "latest"), "16 hex digits")],
)
def test_what_can_not_be_asked_is_exit_code_2(reconcile, arguments, word):
    done = reconcile(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert word in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("server", ["VEIL_REDIS_URL", "VEIL_S3_ENDPOINT"])
def test_a_server_that_is_away_is_one_line(reconcile, quiet_port, server):
    scheme = "redis" if server == "VEIL_REDIS_URL" else "http"
    done = reconcile("--recipe", RECIPE, environment={server: f"{scheme}://{HOST}:{quiet_port}"})
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(("veil: QueueUnavailable: ", "veil: StorageUnavailable: "))


def test_workers_put_right_what_is_enqueued(
    veil, worker, queue, environment, raw, portrait, place, wait_until
):
    for key in ("a.jpg", "b c.jpg", "d/é.jpg"):
        raw.put(place + key, portrait)
    given_up = raw.put(place + "no picture.jpg", b"text")
    command = ("reconcile", raw.uri(place), "--enqueue", "--json")
    first = veil(*command, environment=environment)
    assert first.returncode == 1
    assert told(first)[1]["enqueued"] == 4

    wait_until(
        lambda: veil(*command[:2], "--json", environment=environment).stdout.count("\n") == 2
    )

    findings, summary = told(veil(*command, environment=environment))
    assert {key: finding["state"] for key, finding in findings.items()} == {
        "no picture.jpg": "dead"
    }
    assert (summary["current"], summary["enqueued"]) == (3, 0)
    raw.client.delete_object(Bucket=raw.name, Key=place + "no picture.jpg")
    assert veil("dead", "drop", given_up, environment=environment).returncode == 0
    assert veil(*command, environment=environment).returncode == 0


class FindsNothing:
    """A detector that finds no face in any picture."""

    def detect(self, picture):
        return Detections(np.empty((0, 4), np.float32), np.empty(0, np.float32))


def test_an_output_that_stays_while_its_new_version_is_held_is_not_taken_for_done(
    archive, unattended, portrait
):
    archive.done("a.jpg", OLDER_ETAG)
    archive.source("a.jpg", portrait)
    pipeline = Pipeline(
        store=archive.store,
        anonymizer=Anonymizer(
            detector=FindsNothing(),
            style=MaskStyle("surround", 1.0, 0.0),
            limits=Limits(1 << 20, 1 << 20, 60),
            hold_without_faces=True,
            recipe=RECIPE,
        ),
        routes=Routes((archive.places.route,)),
    )
    request = AnonymizeRequest.parse(source=str(archive.places.source.join("a.jpg")))
    assert run_pipeline(pipeline, request).status == "held"
    findings = Reconciliation(archive.store, archive.places, RECIPE, unattended.client).findings()
    assert [(finding.source.key[-5:], finding.state) for finding in findings] == [("a.jpg", "held")]


def test_a_redis_that_is_killed_and_comes_back_is_waited_for(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(reconciling, "BATCH", 2)
    keys = [f"{number}.jpg" for number in range(8)]
    for key in keys:
        archive.source(key)
    redis = start_redis(tmp_path / "redis")
    # Otherwise a kill may lose what Redis has just confirmed: docs/reliability.md.
    redis.client().config_set("appendfsync", "always")
    told = []

    def tell(line):
        told.append(line)
        if line.startswith("QueueUnavailable"):
            redis.server.start()

    try:
        app = create_app(Settings(redis_url=redis.url, redis_password=redis.password))
        publisher = publishing.Publisher(app)
        findings = Reconciliation(
            archive.store, archive.places, RECIPE, app.backend.client, Only(), tell=tell
        ).findings(lambda pictures: publisher.publish(pictures, BACKFILL))
        found = [next(findings)]
        redis.server.kill()
        found += findings
        publisher.close()

        assert [finding.source.key.rpartition("/")[2] for finding in found] == keys
        assert enqueued(SimpleNamespace(client=redis.client())).keys() == arguments(archive, *keys)
        away, goes_on = told
        assert away.startswith("QueueUnavailable")
        assert goes_on.startswith("goes on after")
    finally:
        redis.server.stop()


class Simulated(ObjectStore):
    """A store of `count` sources that are done, except that each fifth has no output."""

    def __init__(self, count):
        super().__init__(None)
        self.count = count

    def list(self, bucket, prefix="", after=""):
        # Other listings are those of one picture.
        for number in range(self.count) if prefix in ("", FOLDER) else ():
            key = f"{number:09}.jpg"
            if bucket == "clean" and number % 5 == 0:
                continue
            name = (
                uri(
                    Route.parse("s3://raw=s3://clean").destination,
                    ReceiptName.of(key, RECIPE, "e", 1, is_copy=True),
                ).key
                if prefix
                else key
            )
            yield StoredObject(ObjectUri(bucket, name), "e", 1)

    def head(self, uri):
        return StoredObject(uri, "e", 1) if uri.bucket == "raw" else None


def test_memory_does_not_grow_with_the_number_of_keys(unattended):
    routes = Routes.parse("s3://raw=s3://clean")
    places = Places.find("s3://raw", None, routes)
    peaks = []
    for count in (4_000, 16_000):
        store = Simulated(count)
        reconciliation = Reconciliation(store, places, RECIPE, unattended.client, Only())
        tracemalloc.start()
        found = sum(1 for _ in reconciliation.findings())
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert found == count // 5
        assert reconciliation.counts == {"current": count - found, "missing": found}
    assert peaks[1] < 1.5 * peaks[0]
