"""`veil backfill` as a user types it, with real workers: its output and its exit codes."""

import io
import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime

import pytest
from PIL import Image

from tasks.bulk import backfill, comparison, runs
from tasks.bulk.places import Places
from tasks.messages import BACKFILL, RUN_HEADER
from tasks.publishing import announced_recipe
from tasks.records import outcomes
from tasks.records.queues import LEASED
from tasks.routes import Routes
from tests.command import start_command
from tools.local.servers import HOST

PAGE_KEYS = {
    "event",
    "run",
    "state",
    "listed",
    "ignored",
    "skipped",
    "enqueued",
    "source_bytes",
    "cursor",
}
SUMMARY_KEYS = (PAGE_KEYS - {"cursor"}) | {
    "source",
    "destination",
    "recipe",
    "newly_enqueued",
    "dry_run",
    "outcomes",
    "seconds",
}
# BACKFILL_KEYS=20000 make test ARGS="tests/integration/bulk/test_backfill_command.py -k killed"
KILLED_KEYS = int(os.environ.get("BACKFILL_KEYS", "300"))
KILLS = 4
WATERS = ("--low-water", 10, "--high-water", 40)  # so low that kills find the run half enqueued


def lines(done):
    return [json.loads(line) for line in done.stdout.splitlines()]


def summary(done):
    """Return the last printed object, after checking that those before it are pages."""
    *pages, last = lines(done)
    assert all(set(page) == PAGE_KEYS and page["event"] == "page" for page in pages)
    assert set(last) == SUMMARY_KEYS
    assert last["event"] == "summary"
    return last


def small_pictures(portrait, count):
    """Return `count` different pictures of about 30 px."""
    with Image.open(io.BytesIO(portrait)) as image:
        face = image.resize((28, 28))
    for number in range(count):
        picture = face.copy()
        picture.putpixel((0, 0), (number % 256, number // 256 % 256, 0))
        content = io.BytesIO()
        picture.save(content, "PNG")
        yield content.getvalue()


def put_all(bucket, contents):
    """Put `contents`, a dict by key, over many connections."""
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda item: bucket.put(*item), contents.items()))


@pytest.fixture
def began(programs, tmp_path):
    """``began(*arguments, environment)`` starts ``veil backfill``, which ends with the test."""
    processes = []

    def start(*arguments, environment):
        with (tmp_path / "backfill.log").open("ab") as log:
            processes.append(
                start_command(
                    [programs / "veil", "backfill", *arguments],
                    stdout=log,
                    stderr=log,
                    env={**os.environ, **environment},
                    cwd=tmp_path,
                )
            )
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


def test_what_is_not_done_is_done_and_nothing_is_done_again(
    veil, worker, environment, raw, clean, portrait, place
):
    keys = [f"{place}{name}.jpg" for name in ("a b", "deep/b", "ü+%")]
    for key in keys:
        raw.put(key, portrait)

    first = veil("backfill", raw.uri(place), "--wait", "--json", environment=environment)
    raw.put(keys[1], portrait + b"\0")  # A new version.
    second = veil("backfill", raw.uri(place), "--wait", "--json", environment=environment)

    assert (first.returncode, second.returncode) == (0, 0)
    assert sorted(clean.keys(place)) == sorted(keys)
    done = summary(first)
    assert (done["listed"], done["skipped"], done["enqueued"]) == (3, 0, 3)
    assert done["outcomes"] == {"anonymized": 3, "skipped": 0, "held": 0, "dead": 0}
    assert done["state"] == "finished"
    again = summary(second)
    assert (done["newly_enqueued"], again["newly_enqueued"]) == (3, 1)
    assert (again["run"], again["listed"], again["skipped"], again["enqueued"]) == (
        done["run"],
        3,
        2,
        1,
    )
    assert again["outcomes"]["anonymized"] == 1


def test_a_picture_that_dies_makes_the_exit_code_1(veil, worker, environment, raw, portrait, place):
    raw.put(place + "a.jpg", portrait)
    raw.put(place + "b.jpg", b"no picture")

    done = veil("backfill", raw.uri(place), "--wait", environment=environment)

    assert done.returncode == 1
    assert done.stdout == ""
    named, line = done.stderr.splitlines()
    assert named.startswith(f"{raw.uri(place)}b.jpg: UnreadableImage: ")
    assert "2 listed" in line
    assert line.endswith("enqueued; 1 anonymized, 1 dead (veil dead list)")
    run = line.split()[1].rstrip(":")
    followed = veil("backfill", "--follow", run, "--json", environment=environment)
    assert followed.returncode == 1
    assert summary(followed)["outcomes"]["dead"] == 1


def test_outputs_go_where_asked_below_the_route(
    veil, worker, environment, raw, clean, portrait, place
):
    raw.put(place + "in/a.jpg", portrait)

    done = veil(
        "backfill",
        raw.uri(place + "in"),
        "--to",
        clean.uri(place + "out"),
        "--wait",
        environment=environment,
    )

    assert done.returncode == 0
    assert clean.keys(place) == [place + "out/a.jpg"]


def began_at(line):
    return datetime.fromisoformat(line["timestamp"]).timestamp() - line["total"]


def test_an_upload_is_the_next_picture_after_those_in_hand(
    veil, worker, queue, environment, raw, portrait, place, wait_until
):
    put_all(
        raw, {f"{place}{n}.png": content for n, content in enumerate(small_pictures(portrait, 150))}
    )
    upload = raw.put(place + "upload/a.jpg", portrait)
    done = veil("backfill", raw.uri(place), "--suffix", ".PNG", environment=environment)
    assert done.returncode == 0

    wait_until(lambda: worker.lines("anonymized"))
    result = queue.send(upload)
    sent = time.time()
    result.get(timeout=60)
    waiting = queue.client.llen(BACKFILL)
    queue.client.delete(BACKFILL)
    wait_until(lambda: not queue.client.hlen("unacked"))

    assert waiting, "the backfill must not have ended"
    (line,) = worker.lines(source=upload)
    overtook = [
        each for each in worker.lines("anonymized") if sent < began_at(each) < began_at(line)
    ]
    assert len(overtook) <= 2  # The worker may have two in hand.


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 3), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"]
)
def test_a_run_that_is_interrupted_says_how_to_go_on_and_does(
    veil, began, unattended, s3, raw, place, tmp_path, wait_until, number, code
):
    for key in range(30):
        raw.put(f"{place}{key}", b"no picture")
    environment = {**unattended.environment, **s3.environment()}
    process = began(raw.uri(place), "--high-water", 10, "--low-water", 1, environment=environment)
    wait_until(lambda: unattended.client.llen(BACKFILL) == 10)
    process.send_signal(number)

    assert process.wait(20) == code
    _, done, line = (tmp_path / "backfill.log").read_text().splitlines()
    (run,) = runs.names(unattended.client)
    assert done.startswith(f"veil: {run}: 10 listed")
    assert "10 (100 bytes) enqueued; none has ended" in done
    assert line == f"veil: stopped: the same command goes on with the run {run}"
    assert runs.read(unattended.client, run).state == "stopped"
    unattended.client.delete(BACKFILL)
    followed = veil("backfill", "--follow", run, "--json", environment=environment)
    assert followed.returncode == 3
    assert summary(followed)["enqueued"] == 10
    assert summary(followed)["newly_enqueued"] == 0

    rehearsed = veil("backfill", raw.uri(place), "--dry-run", environment=environment)
    assert "30 listed" in rehearsed.stderr
    assert rehearsed.stderr.endswith(
        f"20 (200 bytes) would be enqueued; the run {run} has enqueued 10 before\n"
    )
    assert runs.read(unattended.client, run).state == "stopped"
    done = veil("backfill", raw.uri(place), "--json", environment=environment)
    assert done.returncode == 0
    assert [line["enqueued"] for line in lines(done)] == [10, 30, 30]
    assert summary(done)["newly_enqueued"] == 20
    assert unattended.client.llen(BACKFILL) == 20


def test_a_run_that_is_stopped_keeps_its_exit_code_though_its_reader_is_gone(
    programs, unattended, s3, raw, place
):
    for key in range(30):
        raw.put(f"{place}{key}", b"no picture")
    bounds = ["--high-water", 10, "--low-water", 1]
    process = start_command(
        [programs / "veil", "backfill", raw.uri(place), "--json", *bounds],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **unattended.environment, **s3.environment()},
    )
    try:
        pages = [json.loads(process.stdout.readline()) for _ in range(2)]
        assert [page["enqueued"] for page in pages] == [0, 10]
        process.stdout.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 3
    finally:
        process.kill()
        process.wait()
    (run,) = runs.names(unattended.client)
    assert runs.read(unattended.client, run).state == "stopped"


def test_a_run_that_is_killed_is_abandoned_and_goes_on(
    veil, began, unattended, s3, raw, place, wait_until
):
    for key in range(30):
        raw.put(f"{place}{key}", b"no picture")
    environment = {**unattended.environment, **s3.environment()}
    process = began(raw.uri(place), "--high-water", 10, "--low-water", 1, environment=environment)
    wait_until(lambda: unattended.client.llen(BACKFILL) == 10)
    (run,) = runs.names(unattended.client)
    life = runs.LIFE.format(run)

    # A process that waits for room shows signs of life.
    unattended.client.expire(life, runs.SECONDS_KEPT - 3600)
    assert runs.abandoned_since(unattended.client, run, "running")
    wait_until(lambda: not runs.abandoned_since(unattended.client, run, "running"))
    process.kill()
    process.wait()
    unattended.client.expire(life, runs.SECONDS_KEPT - 3600)
    followed = veil("backfill", "--follow", run, environment=environment)

    assert followed.returncode == 3
    line = followed.stderr.splitlines()[-1]
    assert line.startswith(f"veil: the run {run} is abandoned since 20")
    assert line.endswith(": repeat its command to go on")
    followed = veil("backfill", "--follow", run, "--json", environment=environment)
    assert followed.returncode == 3
    assert summary(followed)["state"] == "abandoned"
    unattended.client.delete(BACKFILL)
    done = veil("backfill", raw.uri(place), "--json", environment=environment)
    assert done.returncode == 0
    assert summary(done)["enqueued"] == 30


def test_a_cancelled_run_loses_its_waiting_messages_and_no_other_run_does(
    veil, began, unattended, s3, raw, place, tmp_path, wait_until
):
    for key in range(30):
        raw.put(f"{place}a/{key}", b"no picture")
        raw.put(f"{place}b/{key}", b"no picture")
    redis = unattended.client
    environment = {**unattended.environment, **s3.environment()}
    bounds = ("--high-water", 20, "--low-water", 1)
    process = began(raw.uri(place + "a"), *bounds, "--wait", environment=environment)
    wait_until(lambda: redis.llen(BACKFILL) == 20)
    (run,) = runs.names(redis)
    assert veil("backfill", raw.uri(place + "b"), environment=environment).returncode == 0
    redis.hset(LEASED, "tag", json.dumps([json.loads(redis.rpop(BACKFILL)), "", BACKFILL]))

    done = veil("backfill", "--cancel", run, environment=environment)

    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == (
        f"{run} is cancelled: 19 waiting messages removed, 1 in hand of workers, "
        "which finish them\n"
    )
    of_runs = Counter(
        json.loads(message)["headers"][RUN_HEADER] for message in redis.lrange(BACKFILL, 0, -1)
    )
    (other,) = set(runs.names(redis)) - {run}
    assert of_runs == {other: 30}
    redis.delete(BACKFILL)  # The command sees that there is room again.
    assert process.wait(20) == 3
    assert f"the run {run} was cancelled" in (tmp_path / "backfill.log").read_text()
    assert redis.llen(BACKFILL) == 0
    shown = json.loads(veil("status", run, "--json", environment=environment).stdout)
    assert (shown["state"], shown["enqueued"], shown["left"]) == ("cancelled", 1, 1)
    outcomes.count(redis, "anonymized", run)
    redis.delete(LEASED)
    followed = veil("backfill", "--follow", run, environment=environment)
    assert followed.returncode == 3
    assert followed.stderr.endswith(f"{run} was cancelled: its command begins it anew\n")
    repeated = veil("backfill", "--cancel", run, environment=environment)
    assert (repeated.returncode, repeated.stderr.count(" 0 ")) == (0, 2)

    again = veil("backfill", raw.uri(place + "a"), "--json", environment=environment)
    assert (again.returncode, summary(again)["enqueued"]) == (0, 30)
    assert veil("backfill", "--cancel", run, environment=environment).returncode == 0
    followed = veil("backfill", "--follow", run, environment=environment)
    assert "0 not selected, 0 enqueued\n" in followed.stderr


@pytest.mark.parametrize("in_hand", [0, 1])
def test_a_cancelled_run_is_not_followed_while_older_messages_of_others_wait(
    veil, unattended, s3, raw, place, in_hand
):
    redis = unattended.client
    environment = {**unattended.environment, **s3.environment()}
    for name in ("a", "b"):
        raw.put(f"{place}{name}/1", b"no picture")
        raw.put(f"{place}{name}/2", b"no picture")
        assert veil("backfill", raw.uri(place + name), environment=environment).returncode == 0
    run = next(name for name in runs.names(redis) if runs.read(redis, name).source.endswith("b/"))
    if in_hand:  # whose outcome may come much later
        redis.hset(LEASED, "tag", json.dumps([json.loads(redis.lpop(BACKFILL)), "", BACKFILL]))
    assert veil("backfill", "--cancel", run, environment=environment).returncode == 0

    began_at = time.monotonic()
    followed = veil("backfill", "--follow", run, environment=environment)

    assert followed.returncode == 3
    assert time.monotonic() - began_at < runs.BEAT_SECONDS
    assert redis.llen(BACKFILL) == 2


def test_a_finished_run_is_not_cancelled_while_messages_of_others_wait(
    veil, unattended, s3, raw, place
):
    redis = unattended.client
    environment = {**unattended.environment, **s3.environment()}
    for name in ("a", "b"):
        raw.put(f"{place}{name}/1", b"no picture")
        assert veil("backfill", raw.uri(place + name), environment=environment).returncode == 0
    run = next(name for name in runs.names(redis) if runs.read(redis, name).source.endswith("b/"))
    redis.lpop(BACKFILL)  # the picture of the run has ended

    done = veil("backfill", "--cancel", run, environment=environment)

    assert done.returncode == 2
    assert "nothing to cancel" in done.stderr
    assert runs.read(redis, run).state == "finished"


@pytest.mark.parametrize("flags", [(), ("--wait",), ("--dry-run",), ("--json",)], ids=str)
def test_a_run_that_selects_nothing_says_so(veil, unattended, s3, raw, place, flags):
    raw.put(f"{place}a.png", b"no picture")
    environment = {**unattended.environment, **s3.environment()}

    done = veil("backfill", raw.uri(place), "--suffix", ".jpg", *flags, environment=environment)

    assert done.returncode == 1
    assert done.stderr.endswith(
        f"veil: NothingFound: no object below {raw.uri(place)} is selected, of 1: "
        "correct --suffix, or the suffixes of the route\n"
    )
    for run in runs.names(unattended.client):
        followed = veil("backfill", "--follow", run, environment=environment)
        assert followed.returncode == 1


@pytest.mark.parametrize("flags", [(), ("--dry-run",)], ids=str)
def test_a_run_that_finds_nothing_new_succeeds_and_says_so(veil, unattended, s3, raw, place, flags):
    raw.put(f"{place}a.png", b"no picture")
    environment = {**unattended.environment, **s3.environment()}

    done = veil(
        "backfill", raw.uri(place), "--since", "2999-01-01", *flags, environment=environment
    )

    assert done.returncode == 0, done.stderr
    assert f"no object below {raw.uri(place)} is selected, of 1" in done.stderr
    assert unattended.client.llen(BACKFILL) == 0


def test_pictures_that_were_not_counted_are_no_success(veil, unattended, s3, raw, place):
    for key in ("a", "b"):
        raw.put(place + key, b"no picture")
    environment = {**unattended.environment, **s3.environment()}
    assert veil("backfill", raw.uri(place), environment=environment).returncode == 0
    (run,) = runs.names(unattended.client)
    unattended.client.delete(BACKFILL)
    outcomes.count(unattended.client, "anonymized", run)

    done = veil("backfill", "--follow", run, environment=environment)

    assert done.returncode == 1
    assert "1 were not counted: repeat the command of the run" in done.stderr


def test_a_command_that_waits_for_a_cancelled_run_ends(
    veil, began, unattended, s3, raw, place, tmp_path, wait_until
):
    raw.put(f"{place}a", b"no picture")
    environment = {**unattended.environment, **s3.environment()}
    process = began(raw.uri(place), "--wait", environment=environment)
    wait_until(lambda: unattended.client.llen(BACKFILL) == 1)
    (run,) = runs.names(unattended.client)

    done = veil("backfill", "--cancel", run, "--json", environment=environment)

    assert json.loads(done.stdout) == {"run": run, "removed": 1, "in_hand": 0}
    assert process.wait(20) == 3
    assert unattended.client.llen(BACKFILL) == 0


def test_a_run_of_which_nothing_is_left_is_not_cancelled(veil, unattended, s3, raw, place):
    raw.put(f"{place}a", b"no picture")
    environment = {**unattended.environment, **s3.environment()}
    assert veil("backfill", raw.uri(place), environment=environment).returncode == 0
    (run,) = runs.names(unattended.client)
    unattended.client.delete(BACKFILL)

    done = veil("backfill", "--cancel", run, environment=environment)

    assert done.returncode == 2
    assert "nothing to cancel" in done.stderr
    assert runs.read(unattended.client, run).state == "finished"


def test_held_pictures_are_counted_apart(veil, unattended, s3, raw, place):
    for key in range(3):
        raw.put(f"{place}{key}", b"no picture")
    environment = {**unattended.environment, **s3.environment()}
    assert veil("backfill", raw.uri(place), environment=environment).returncode == 0
    (run,) = runs.names(unattended.client)
    unattended.client.delete(BACKFILL)
    for outcome in ("anonymized", "held", "held"):
        outcomes.count(unattended.client, outcome, run)

    done = veil("backfill", "--follow", run, environment=environment)

    assert done.returncode == 0
    assert done.stderr.endswith("enqueued; 1 anonymized, 2 held (veil review list)\n")


@pytest.mark.parametrize("flags", [(), ("--wait",), ("--dry-run",)], ids=str)
def test_a_prefix_without_objects_is_one_line_and_no_run(veil, unattended, s3, raw, place, flags):
    raw.put(f"{place}a.jpg", b"no picture")
    settings = {**unattended.environment, **s3.environment()}
    done = veil("backfill", raw.uri(f"{place}mistyped"), *flags, environment=settings)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"veil: NothingFound: no object below {raw.uri(place)}mistyped/: correct the address\n"
    )
    assert unattended.client.keys("*") == []


def test_a_second_process_takes_the_run_over_and_the_first_one_says_so(
    veil, began, unattended, s3, raw, place, tmp_path, wait_until
):
    for key in range(20):
        raw.put(f"{place}{key}", b"no picture")
    environment = {**unattended.environment, **s3.environment()}
    first = began(raw.uri(place), "--high-water", 10, "--low-water", 9, environment=environment)
    wait_until(lambda: unattended.client.llen(BACKFILL) == 10)

    done = veil("backfill", raw.uri(place), "--json", environment=environment)
    unattended.client.rpop(BACKFILL, 15)

    assert done.returncode == 0
    assert summary(done)["enqueued"] == 20
    assert first.wait(20) == 3
    assert "another process goes on with the run" in (tmp_path / "backfill.log").read_text()
    assert unattended.client.llen(BACKFILL) == 5


def test_a_rehearsal_says_what_would_be_done(veil, unattended, s3, raw, place):
    for key in range(3):
        raw.put(f"{place}{key}", b"no picture")
    settings = {**unattended.environment, **s3.environment()}

    done = veil(
        "backfill", raw.uri(place), "--dry-run", "--limit", 2, "--json", environment=settings
    )
    plain = veil("backfill", raw.uri(place), "--dry-run", environment=settings)

    assert done.returncode == plain.returncode == 0
    said = summary(done)
    assert (said["dry_run"], said["listed"], said["enqueued"]) == (True, 2, 2)
    no_recipe, line = plain.stderr.splitlines()
    assert "no worker has reported its recipe" in no_recipe
    assert "3 (30 bytes) would be enqueued; the run would be" in line
    assert unattended.client.keys("*") == []


def test_a_run_with_nothing_to_do_says_nothing_of_endings(
    veil, unattended, s3, archive_at, store, place
):
    archive = archive_at(store, place)
    archive.done("a.jpg", archive.source("a.jpg").etag)
    settings = {
        **unattended.environment,
        **s3.environment(),
        "VEIL_ROUTES": str(archive.places.route),
    }
    for flags in ((), ("--wait",)):
        done = veil("backfill", archive.places.source, *flags, environment=settings)
        assert done.returncode == 0
        last = done.stderr.splitlines()[-1]
        assert last.endswith("1 listed, 1 done already, 0 not selected, 0 enqueued")


def test_while_messages_of_the_last_pass_wait_nothing_is_enqueued_nor_rehearsed(
    veil, unattended, s3, raw, place
):
    for key in range(3):
        raw.put(f"{place}{key}", b"no picture")
    settings = {**unattended.environment, **s3.environment()}

    def run(*flags):
        done = veil("backfill", raw.uri(place), *flags, environment=settings)
        assert done.returncode == 0
        return done.stderr.splitlines()[1:]  # after the note that no worker reported its recipe

    (first,) = run()
    assert first.endswith("3 (30 bytes) enqueued; none has ended")
    (name,) = runs.names(unattended.client)
    waits, rehearsed = run("--dry-run")
    waits_too, last = run()

    assert waits == waits_too
    assert f"messages of the last pass of {name} are still waiting or in work" in waits
    assert rehearsed.endswith(
        f"0 (0 bytes) would be enqueued; the run {name} has enqueued 3 before"
    )
    assert last.endswith("3 (30 bytes) enqueued, 0 of them by this command; none has ended")
    assert unattended.client.llen(BACKFILL) == 3
    (restarted,) = run("--dry-run", "--restart")
    assert restarted.endswith(f"3 (30 bytes) would be enqueued; the run would be {name}")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "--follow"),
        (("s3://raw/a", "--since", "yesterday"), "2026-11-30"),
        (("s3://raw/a", "--low-water", 20000), "--high-water"),
        (("s3://raw/a", "--limit", 0), "--limit"),
        (("s3://raw/a", "--recipe", "abc", "--dry-run"), "16 hex digits"),
        (("s3://private/a",), "VEIL_ROUTES"),
        (("s3://raw/a", "--to", "s3://raw/b"), "VEIL_ROUTES"),
        (("raw/a",), "raw/a"),
        (("s3://absent/a",), "does not exist"),
        (("--follow", "no-such-run"), "veil status --runs lists them"),
        (("--cancel", "no-such-run"), "veil status --runs lists them"),
        (("s3://raw/a", "--cancel", "a-run"), "has no effect with --cancel"),
    ],
    ids=str,
)
def test_what_can_not_be_done_is_said_at_once(veil, unattended, s3, arguments, said):
    routes = {"VEIL_ROUTES": "s3://raw=s3://clean,s3://absent=s3://clean-absent"}
    done = veil(
        "backfill", *arguments, environment={**unattended.environment, **s3.environment(), **routes}
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert unattended.client.keys("*") == []


def test_a_missing_destination_leaves_no_run_and_keeps_a_finished_one(
    veil, unattended, s3, raw, place
):
    raw.put(place + "a.jpg", b"no picture")
    routes = {"VEIL_ROUTES": "s3://raw=s3://no-such-bucket"}
    environment = {**unattended.environment, **s3.environment(), **routes}
    places = Places.find(raw.uri(place), None, Routes.parse(routes["VEIL_ROUTES"]))

    done = veil("backfill", raw.uri(place), environment=environment)
    assert done.returncode == 2
    assert "no-such-bucket" in done.stderr
    assert unattended.client.keys("*") == []

    before = replace(backfill.new_run(places, backfill.Selection(), ""), state="finished")
    runs.write(unattended.client, before)
    assert veil("backfill", raw.uri(place), environment=environment).returncode == 2
    assert runs.read(unattended.client, before.name) == before


@pytest.mark.parametrize("down", ["redis", "s3"])
def test_a_server_that_is_not_there_at_the_beginning_is_one_line(
    veil, unattended, s3, quiet_port, down
):
    environment = {**unattended.environment, **s3.environment()}
    environment |= {
        "redis": {"VEIL_REDIS_URL": f"redis://{HOST}:{quiet_port}/0"},
        "s3": {"VEIL_S3_ENDPOINT": f"http://{HOST}:{quiet_port}"},
    }[down]
    done = veil("backfill", "s3://raw/a", environment=environment)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert {"redis": "VEIL_REDIS_URL", "s3": "S3 can't be reached"}[down] in line


@pytest.mark.timeout(300 + KILLED_KEYS // 5)
def test_a_run_that_is_killed_again_and_again_does_every_picture_once(
    began, worker, queue, environment, raw, store, portrait, place, tmp_path, wait_until
):
    contents = {
        f"{place}{n % 7}/{n:06}.png": picture
        for n, picture in enumerate(small_pictures(portrait, KILLED_KEYS))
    }
    put_all(raw, contents)
    sources = {raw.uri(key) for key in contents}
    places = Places.find(raw.uri(place), None, Routes.parse("s3://raw=s3://clean"))
    name = backfill.run_name(places, backfill.Selection())
    arguments = (raw.uri(place), *WATERS)
    random_ = random.Random(20)

    def enqueued():
        run = runs.read(queue.client, name)
        return run.enqueued if run else 0

    for kill in range(1, KILLS + 1):
        process = began(*arguments, environment=environment)
        wait_until(
            lambda least=KILLED_KEYS * kill / (KILLS + 1): enqueued() >= least,
            seconds=120 + KILLED_KEYS / 10,
        )
        time.sleep(random_.uniform(0, 0.5))
        assert process.poll() is None, "it must be killed before its end"
        process.kill()
        process.wait()
    last = began(*arguments, "--wait", "--json", environment=environment)

    assert last.wait(120 + KILLED_KEYS / 5) == 0
    said = json.loads((tmp_path / "backfill.log").read_text().splitlines()[-1])
    assert said["event"] == "summary"
    assert said["enqueued"] == said["listed"] == KILLED_KEYS
    # Each message has one line in the worker's log.
    worked_on = [line for line in worker.lines() if line.get("source") in sources]
    assert Counter(line["event"] for line in worked_on) == {"anonymized": KILLED_KEYS}
    assert set(Counter(line["source"] for line in worked_on).values()) == {1}
    assert outcomes.of_run(queue.client, name) == {"anonymized": KILLED_KEYS}
    compared = list(comparison.compare(store, places, announced_recipe(queue.client)))
    assert len(compared) == KILLED_KEYS
    assert all(each.is_current for each in compared)
