"""Pictures for review: held or flagged, listed, released and made again; none is forgotten."""

import base64
import io
import json
import os
import pty
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.errors import InvalidRequest
from tasks.messages import (
    MAX_AREAS,
    MAX_BOXES,
    AnonymizeOptions,
    AnonymizeReport,
    AnonymizeRequest,
)
from tasks.records import review
from tasks.records.review import REVIEW_LIST, ReviewEntry
from tasks.routes import Routes
from tasks.storage import receipts
from tasks.storage.receipts import Receipt
from tests.integration.poison_worker import CROWD, CYAN, MAGENTA, WHITE, YELLOW

ROOT = Path(__file__).resolve().parents[3]
SOURCE = "s3://raw/a.png"
STILL = "faces still found in the output"


def picture(colour, corner=0):
    """Return a picture of 256 x 256 pixels; `corner` makes it another version."""
    image = Image.new("RGB", (256, 256), colour)
    image.putpixel((255, 255), (corner, 0, 0))
    target = io.BytesIO()
    image.save(target, "PNG")
    return target.getvalue()


def settings_of(queue, s3):
    return {
        **queue.environment,
        **s3.environment(),
        "VEIL_ROUTES": "s3://raw=s3://clean",
        "VEIL_SCALES": "256",
        "VEIL_CLOSER_TO": "0",
        "VEIL_LEASE_SECONDS": "2",
        "VEIL_METHOD": "fill",
        "VEIL_FEATHER": "0",
        "PYTHONPATH": str(ROOT),
    }


@pytest.fixture(scope="module")
def held_queue(new_queue):
    return new_queue()


@pytest.fixture(scope="module")
def flagged_queue(new_queue):
    return new_queue()


@pytest.fixture(scope="module")
def start(s3, start_worker):
    """``start(…)`` runs a worker whose model obeys the colour of the picture."""

    def start(queue, **settings):
        command = [sys.executable, Path(__file__).parents[1] / "poison_worker.py"]
        return start_worker(command, {**settings_of(queue, s3), **settings})

    return start


@pytest.fixture(scope="module")
def holding(held_queue, start):
    """A queue whose worker holds the pictures for review."""
    with start(held_queue, VEIL_VERIFY="hold", VEIL_NO_FACES="hold"):
        yield held_queue


@pytest.fixture(scope="module")
def flagging(flagged_queue, start):
    """A queue whose worker publishes the pictures for review."""
    with start(flagged_queue, VEIL_VERIFY="flag"):
        yield flagged_queue


@pytest.fixture
def command(veil, s3):
    """``command(queue, *arguments)`` returns the output and the exit code of ``veil review``."""
    return lambda queue, *arguments: veil("review", *arguments, environment=settings_of(queue, s3))


def listed(queue):
    return {doubt.source: doubt for doubt in REVIEW_LIST.entries(queue.client)}


def etag(bucket, key):
    return bucket.head(key)["ETag"].strip('"')


def receipts_of(bucket, key):
    return [
        Receipt.from_bytes(bucket.get(name)) for name in bucket.keys(receipts.FOLDER + key + ".")
    ]


# --- the list


def a_request(**fields):
    return Routes.parse("s3://raw=s3://clean").resolve(
        AnonymizeRequest.parse(source=SOURCE, **fields)
    )


def report(reason=STILL, status="held", etag="1", **fields):
    given = {"status": status, "reason": reason, "source_etag": etag, **fields}
    return AnonymizeReport(source=SOURCE, destination=None, recipe="r", **given)


def test_a_picture_is_listed_once_and_a_newer_version_takes_its_place(unattended):
    routed = a_request(destination="s3://clean/b.png")
    for version, left in (("1", [[1, 2, 3, 4]]), ("1", [[1, 2, 3, 4]]), ("2", [[5, 6, 7, 8]])):
        review.update(unattended.client, routed, report(etag=version, left_xyxy=left))
    (doubt,) = REVIEW_LIST.entries(unattended.client)
    assert (doubt.etag, doubt.left_xyxy, doubt.state) == ("2", [[5, 6, 7, 8]], "held")
    assert doubt.destination == "s3://clean/b.png"
    review.update(unattended.client, routed, report(None, "anonymized", "3"))
    assert REVIEW_LIST.count(unattended.client) == 0


def test_a_repeated_event_takes_no_picture_off_the_list_that_was_held_since(unattended):
    """The output that exists is an older one, without the area that a reviewer asked for."""
    routed, asked = a_request(), {"extra": [[1, 2, 30, 40]]}
    review.update(unattended.client, routed, report(options=asked))
    for options in (None, {"extra": [[5, 5, 9, 9]]}):
        review.update(unattended.client, routed, report(None, "skipped", options=options))
        assert REVIEW_LIST.count(unattended.client) == 1
    more = {"extra": [[5, 5, 9, 9], [1, 2, 30, 40]], "release": "1"}
    review.update(unattended.client, routed, report(None, "skipped", options=more))
    assert REVIEW_LIST.count(unattended.client) == 0

    review.update(unattended.client, routed, report(options=asked))
    review.update(unattended.client, routed, report(None, "skipped", etag="2"))
    assert REVIEW_LIST.count(unattended.client) == 0


def test_a_source_has_an_entry_for_each_destination(command, unattended):
    default, elsewhere = a_request(), a_request(destination="s3://clean/b.png")
    for routed in (default, elsewhere, default):
        review.update(unattended.client, routed, report())
    lines = command(unattended, "list").stdout.splitlines()
    assert sorted(line.split(maxsplit=2)[2] for line in lines) == [
        f"{SOURCE}  {STILL}",
        f"{SOURCE} → s3://clean/b.png  {STILL}",
    ]
    assert command(unattended, "redo", SOURCE).returncode == 0
    assert unattended.client.llen("uploads") == 2

    named = a_request(destination="s3://clean/a.png")  # the default destination
    review.update(unattended.client, named, report(None, "anonymized"))
    (doubt,) = REVIEW_LIST.entries(unattended.client)
    assert doubt.destination == "s3://clean/b.png"
    assert "1 dropped" in command(unattended, "drop", SOURCE).stderr
    assert REVIEW_LIST.count(unattended.client) == 0


def test_a_picture_is_not_made_anew_with_more_areas_than_there_may_be():
    doubt = ReviewEntry(
        SOURCE, "e", "r", "held", STILL, 1e9, options={"extra": [[0, 0, 9, 9]] * MAX_AREAS}
    )
    with pytest.raises(InvalidRequest, match="at most 1000"):
        doubt.redo_options(AnonymizeOptions.parse(extra=[[1, 1, 2, 2]]))


def test_an_entry_counts_all_faces(unattended, programs, s3):
    boxes = [[1, 2, 3, 4]] * MAX_BOXES
    counted = report(faces=12_345, boxes_xyxy=boxes, left=6_789, left_xyxy=boxes)
    review.update(unattended.client, a_request(), counted)
    (doubt,) = REVIEW_LIST.entries(unattended.client)
    assert (doubt.faces, doubt.left) == (12_345, 6_789)
    shown = on_a_terminal(programs, unattended, s3)
    assert "12,345" in shown
    assert "6,789" in shown


def doubted(queue, source=SOURCE, when=1e9, state="held"):
    doubt = ReviewEntry(
        source, "e" * 32, "r", state, STILL, when, None, [[1, 2, 3, 4]], [[1, 2, 3, 4]]
    )
    REVIEW_LIST.record(queue.client, doubt)
    return doubt


def test_the_list_is_oldest_first_and_each_picture_is_one_line(command, unattended):
    for number in (3, 1, 2):
        doubted(unattended, f"s3://raw/{number}\n.png", 1e9 + number)
    done = command(unattended, "list")
    assert done.returncode == 0
    first, *others = done.stdout.splitlines()
    assert first == rf"2001-09-09T01:46:41+00:00  held     s3://raw/1\n.png  {STILL}"
    assert len(others) == 2
    entries = [
        json.loads(line) for line in command(unattended, "list", "--json").stdout.splitlines()
    ]
    assert [entry["source"][9] for entry in entries] == ["1", "2", "3"]


def on_a_terminal(programs, queue, s3):
    ours, theirs = pty.openpty()
    environment = {**os.environ, **settings_of(queue, s3), "COLUMNS": "140"}
    subprocess.run(
        [programs / "veil", "review", "list"],
        stdout=theirs,
        env=environment,
        check=True,
        timeout=60,
    )
    os.close(theirs)
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    return shown


def test_on_a_terminal_the_list_is_a_table(programs, unattended, s3):
    doubted(unattended)
    shown = on_a_terminal(programs, unattended, s3)
    assert SOURCE in shown
    assert "since" in shown
    assert "┃" in shown


def test_one_is_shown_with_its_boxes(command, unattended):
    doubted(unattended)
    assert "left_xyxy: [[1, 2, 3, 4]]" in command(unattended, "show", SOURCE).stdout.splitlines()
    assert json.loads(command(unattended, "show", SOURCE, "--json").stdout)["etag"] == "e" * 32


def test_an_empty_list_is_a_line_for_people_alone(command, unattended):
    done = command(unattended, "list")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "veil: no picture to review\n"
    done = command(unattended, "list", "--json")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("action", ["show", "release", "redo", "drop"])
def test_a_picture_that_is_not_listed_is_exit_code_1_and_a_line(command, unattended, action):
    doubted(unattended)
    done = command(unattended, action, "s3://raw/other.png")
    assert (done.returncode, done.stdout) == (1, "")
    assert "veil: no picture to review of s3://raw/other.png" in done.stderr.splitlines()
    assert set(listed(unattended)) == {SOURCE}
    assert unattended.client.llen("uploads") == 0


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("release",), "--all"),
        (("release", SOURCE, "--all"), "--all"),
        (("release", "--all"), "--yes"),
        (("drop", "--all"), "--yes"),
        (("redo", "--all", "--extra", "1,2,3,4"), "one picture"),
        (("redo", SOURCE, "--queue", "other"), "uploads"),
    ],
)
def test_what_is_meant_must_be_clear(command, unattended, arguments, hint):
    doubted(unattended)
    done = command(unattended, *arguments)
    assert done.returncode == 2
    assert hint in done.stderr
    assert unattended.client.llen("uploads") == 0
    assert len(listed(unattended)) == 1


def test_what_is_dropped_is_off_the_list_and_nothing_else(command, unattended):
    doubted(unattended)
    doubted(unattended, "s3://raw/b.png")
    assert "1 dropped" in command(unattended, "drop", SOURCE).stderr
    assert set(listed(unattended)) == {"s3://raw/b.png"}
    dropped = command(unattended, "drop", "--all", "--yes", "--json")
    assert json.loads(dropped.stdout) == {"dropped": 1}


def test_a_redo_on_top_of_one_that_waits_hides_the_areas_of_both(command, unattended):
    """Its output takes the place of the other one. What the first kept clear is not kept."""
    doubted(unattended)
    first = ("--extra", "1,2,3,4", "--region", "full", "--exempt", "7,7,9,9")
    for more in (first, ("--extra", "5,6,7,8")):
        assert command(unattended, "redo", SOURCE, *more).returncode == 0
    message = json.loads(unattended.client.lindex("uploads", 0))
    assert json.loads(base64.b64decode(message["body"]))[0][2] == {
        "region": 1.0,
        "extra": [[1, 2, 3, 4], [5, 6, 7, 8]],
    }


@pytest.mark.parametrize(
    ("recorded", "is_replaced"),
    [
        ({}, True),
        ({"labels": ..., "box_labels": ..., "left": ...}, True),  # by an earlier version
        ({"reviewers": ["ana"]}, True),  # by a later one
        ({"time": 1.25}, False),
        ({"options": {"extra": [[1, 2, 3, 4], [5, 6, 7, 8]]}}, False),
        ({"options": {}}, False),
        ({"left_xyxy": [[1, 2, 3, 5]]}, False),
        ({"options": {"extra": ["\ud800"]}}, False),
    ],
)
def test_an_entry_of_another_version_of_veil_gets_the_areas_of_a_redo(
    unattended, recorded, is_replaced
):
    """But not one that a worker has recorded since it was read."""
    boxes = [[1, 2, 3, 4]]
    options = {"extra": boxes}
    read = ReviewEntry(SOURCE, "1", "r", "held", STILL, 1.5, None, boxes, boxes, options)
    fields = {**asdict(read), **recorded}
    stored = {name: value for name, value in fields.items() if value is not ...}
    unattended.client.hset(REVIEW_LIST.key, SOURCE, json.dumps(stored))
    asked = read.asked_for(AnonymizeOptions.parse(extra=[(1, 2, 3, 4), (9, 9, 20, 20)]))
    REVIEW_LIST.replace(unattended.client, read, asked)
    found = listed(unattended)[SOURCE]
    assert (found == asked) == is_replaced
    REVIEW_LIST.drop(unattended.client, [SOURCE])
    REVIEW_LIST.replace(unattended.client, read, asked)
    assert not listed(unattended)


def test_all_can_be_asked_for_at_once(command, unattended):
    doubted(unattended)
    doubted(unattended, "s3://raw/b.png")
    done = command(unattended, "redo", "--all", "--region", "full", "--queue", "backfill", "--json")
    assert done.returncode == 0
    assert {json.loads(line)["source"] for line in done.stdout.splitlines()} == {
        SOURCE,
        "s3://raw/b.png",
    }
    shown = {
        json.loads(message)["headers"]["argsrepr"]
        for message in unattended.client.lrange("backfill", 0, -1)
    }
    assert shown == {f"{SOURCE} {{'region': 1.0}}", "s3://raw/b.png {'region': 1.0}"}
    assert command(unattended, "release", "--all", "--yes").returncode == 0
    assert unattended.client.llen("uploads") == 2
    assert len(listed(unattended)) == 2


# --- what becomes of pictures


def test_a_picture_in_which_faces_are_still_found_is_held_with_boxes_and_no_pixels(
    holding, raw, clean, place
):
    source = raw.put(place + "a.png", picture(MAGENTA))
    report = holding.report(source)
    assert (report["status"], report["reason"]) == ("held", STILL)
    assert clean.head(place + "a.png") is None
    doubt = listed(holding)[source]
    assert (doubt.state, doubt.reason, doubt.etag) == ("held", STILL, etag(raw, place + "a.png"))
    assert doubt.left_xyxy == report["left_xyxy"]
    assert (doubt.faces, doubt.left, len(doubt.left_xyxy)) == (report["faces"], 1, 1)
    (receipt,) = receipts_of(clean, place + "a.png")
    assert (receipt.status, receipt.check, receipt.reason) == ("held", "left", STILL)
    assert receipt.left_xyxy == doubt.left_xyxy
    assert len(receipt.found_by_check) == report["found_by_check"] == report["faces"] - 1


def test_a_released_picture_is_published_stays_so_and_is_off_the_list(
    holding, raw, clean, place, command, wait_until
):
    source = raw.put(place + "a.png", picture(MAGENTA))
    holding.report(source)
    done = command(holding, "release", source)
    assert (done.returncode, done.stderr) == (0, "1 enqueued\n")
    wait_until(lambda: source not in listed(holding))
    hidden = np.asarray(clean.open(place + "a.png").convert("RGB")) == 0
    assert hidden.all(axis=2).any()
    receipt = receipts_of(clean, place + "a.png")[-1]
    assert {each.status for each in receipts_of(clean, place + "a.png")} >= {"anonymized"}
    again = holding.report(source)
    assert again["status"] == "skipped"
    assert source not in listed(holding)
    assert receipt.source_etag == etag(raw, place + "a.png")


def test_commands_wait_for_the_pictures_if_asked(holding, raw, clean, place, command):
    source = raw.put(place + "a.png", picture(MAGENTA))
    holding.report(source)
    still = command(holding, "redo", source, "--region", "full", "--wait")
    assert still.returncode == 0
    assert still.stderr.splitlines() == [
        "1 enqueued",
        f"{source}: held, {STILL}",
        "1 held (veil review list)",
    ]
    done = command(holding, "release", source, "--wait", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["status"] == "anonymized"
    assert source not in listed(holding)
    assert clean.head(place + "a.png")

    gone = raw.put(place + "b.png", picture(MAGENTA))
    holding.report(gone)
    raw.client.delete_object(Bucket=raw.name, Key=place + "b.png")
    failed = command(holding, "release", gone, "--wait")
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-1] == "1 dead (veil dead list)"


def test_a_released_picture_is_done_for_a_backfill_and_for_reconcile(
    holding, veil, s3, raw, place, command
):
    source = raw.put(place + "a.png", picture(MAGENTA))
    holding.report(source)
    assert command(holding, "release", source, "--wait").returncode == 0

    settings = settings_of(holding, s3)
    places = (raw.uri(place), "--json")
    rehearsed = veil("backfill", *places, "--dry-run", environment=settings)
    compared = veil("reconcile", *places, environment=settings)

    counts = json.loads(rehearsed.stdout.splitlines()[-1])
    assert (counts["skipped"], counts["enqueued"]) == (1, 0)
    assert json.loads(compared.stdout)["summary"]["current"] == 1


def test_a_release_is_of_the_version_that_was_looked_at(holding, raw, clean, place):
    source = raw.put(place + "a.png", picture(MAGENTA))
    holding.report(source)
    released = listed(holding)[source].release_options().to_json()
    raw.put(place + "a.png", picture(MAGENTA, corner=9))
    report = holding.report(source, options=released)
    assert report["status"] == "held"
    assert "-" not in report["recipe"]
    assert clean.head(place + "a.png") is None
    assert listed(holding)[source].etag == etag(raw, place + "a.png")


def test_a_picture_without_a_face_is_held_and_released(
    holding, raw, clean, place, command, wait_until
):
    source = raw.put(place + "a.png", picture(CYAN))
    assert holding.report(source)["reason"] == "no face found"
    assert listed(holding)[source].reason == "no face found"
    command(holding, "release", source)
    wait_until(lambda: source not in listed(holding))
    assert clean.open(place + "a.png").convert("RGB").getpixel((0, 0)) == CYAN
    assert holding.report(source)["status"] == "skipped"


def test_made_anew_with_a_further_area_it_is_published_and_keeps_what_was_asked_before(
    holding, raw, clean, place, command, wait_until
):
    source = raw.put(place + "a.png", picture(MAGENTA))
    holding.report(source, options={"region": 0.8, "extra": [[240, 0, 256, 9]]})
    done = command(holding, "redo", source, "--extra", "0,0,256,256", "--json")
    assert json.loads(done.stdout) == {"source": source, "queue": "uploads"}
    wait_until(lambda: source not in listed(holding))
    assert not np.asarray(clean.open(place + "a.png").convert("RGB")).any()
    asked = {"region": 0.8, "extra": [[240, 0, 256, 9], [0, 0, 256, 256]]}
    assert asked in [receipt.options for receipt in receipts_of(clean, place + "a.png")]


def test_a_flagged_picture_is_published_and_listed_even_if_its_worker_died_before_it_said_so(
    flagging, raw, clean, place
):
    source = raw.put(place + "a.png", picture(MAGENTA))
    report = flagging.report(source)
    assert (report["status"], report["reason"]) == ("anonymized", STILL)
    assert clean.head(place + "a.png")["Metadata"][receipts.LEFT] == "1"
    before = listed(flagging)[source]
    assert before.state == "flagged"
    REVIEW_LIST.discard(flagging.client, source, [None])

    assert flagging.report(source)["status"] == "skipped"
    after = listed(flagging)[source]
    assert (after.left_xyxy, after.boxes_xyxy) == (before.left_xyxy, before.boxes_xyxy)
    assert (after.faces, after.left) == (before.faces, before.left)
    assert (after.etag, after.reason, after.state) == (before.etag, STILL, "flagged")


def test_a_picture_that_is_as_it_should_be_is_not_listed(flagging, raw, place):
    source = raw.put(place + "a.png", picture((10, 20, 30)))
    report = flagging.report(source)
    assert (report["status"], report.get("reason"), report["found_by_check"]) == (
        "anonymized",
        None,
        0,
    )
    assert source not in listed(flagging)


def test_a_worker_that_is_killed_while_it_looks_again_loses_nothing(
    new_queue, raw, clean, place, start, wait_until
):
    queue = new_queue()
    source = raw.put(place + "a.png", picture(YELLOW))
    reached = threading.Event()

    def hear(event):
        if event["type"] == "task-verifying":
            reached.set()

    with start(queue, VEIL_VERIFY="hold") as killed, queue.app.connection_for_read() as connection:
        receiver = queue.app.events.Receiver(connection, handlers={"*": hear})
        listener = threading.Thread(
            target=lambda: receiver.capture(limit=None, timeout=None), daemon=True
        )
        listener.start()
        result = None

        def asked():
            nonlocal result
            result = result or queue.send(source)
            return reached.is_set()

        wait_until(asked)
        killed.server.kill()
        receiver.should_stop = True
        listener.join(30)
        assert clean.head(place + "a.png") is None
    with start(queue, VEIL_VERIFY="hold"):
        assert result.get(timeout=60)["status"] == "anonymized"
    assert clean.head(place + "a.png") is not None
    assert queue.dead() == {}
    assert len(receipts_of(clean, place + "a.png")) == 1


def test_of_a_crowd_the_report_has_some_boxes_and_the_exact_number_and_the_receipt_has_all(
    flagging, raw, clean, place
):
    source = raw.put(place + "a.png", picture(WHITE))
    result = flagging.send(source)
    report = result.get(timeout=60)
    assert (report["faces"], len(report["boxes_xyxy"])) == (len(CROWD), MAX_BOXES)
    assert flagging.client.strlen(f"celery-task-meta-{result.id}") < 10_000
    (receipt,) = receipts_of(clean, place + "a.png")
    assert len(receipt.faces) == len(CROWD)
    assert [face["box_xyxy"] for face in receipt.faces[:MAX_BOXES]] == report["boxes_xyxy"]
