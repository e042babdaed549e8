"""`veil enqueue` and `veil dead list` as a user types them: their output and their exit codes."""

import json
import os
import signal
import subprocess
import time

import pytest

from tasks.errors import Busy
from tests.command import start_command
from tools.local.servers import HOST
from worker.commands import waiting


def lines(done):
    return [json.loads(line) for line in done.stdout.splitlines()]


def the_one_line(done):
    """Return the only line on standard error of a command that failed."""
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("veil: ")
    return line


def test_addresses_are_anonymized_and_reported_one_a_line(
    veil, worker, environment, raw, clean, portrait, place
):
    sources = [raw.put(f"{place}{name}", portrait) for name in ("a b.jpg", "ü+%.jpg")]

    done = veil("enqueue", *sources, "--wait", "--json", environment=environment)

    assert done.returncode == 0
    reports = {report["source"]: report for report in lines(done)}
    assert set(reports) == set(sources)
    for source, report in reports.items():
        assert report["status"] == "anonymized"
        assert report["destination"] == source.replace("s3://raw/", "s3://clean/")
        assert report["task_id"]
        assert len(report["boxes_xyxy"]) == report["faces"] == 1
    assert sorted(clean.keys(place)) == sorted(
        source.removeprefix("s3://raw/") for source in sources
    )
    assert "2 anonymized" in done.stderr


def test_everything_below_a_prefix_is_anonymized(
    veil, worker, environment, raw, clean, portrait, place
):
    keys = [f"{place}in/{name}.jpg" for name in ("a", "deep/b", "deep/er/c")]
    for key in [*keys, f"{place}in2/neighbour.jpg"]:
        raw.put(key, portrait)

    done = veil(
        "enqueue", "--prefix", raw.uri(f"{place}in"), "--wait", "--json", environment=environment
    )

    assert done.returncode == 0
    assert {report["source"] for report in lines(done)} == {raw.uri(key) for key in keys}
    assert clean.keys(place) == keys


def test_a_picture_that_fails_is_named_and_makes_the_exit_code_1(
    veil, worker, environment, raw, portrait, place
):
    good, missing = raw.put(place + "a.jpg", portrait), raw.uri(place + "missing.jpg")

    done = veil("enqueue", good, missing, "--wait", "--json", environment=environment)

    assert done.returncode == 1
    outcomes = {outcome["source"]: outcome for outcome in lines(done)}
    assert outcomes[good]["status"] == "anonymized"
    assert outcomes[missing]["status"] == "failed"
    assert outcomes[missing]["error"] == "ObjectNotFound"
    assert "does not exist" in outcomes[missing]["message"]
    assert "Traceback" not in done.stderr


def test_without_json_a_failure_is_one_line_for_people(veil, worker, environment, raw, place):
    missing = raw.uri(place + "missing.jpg")

    done = veil("enqueue", missing, "--wait", environment=environment)

    assert done.returncode == 1
    assert done.stdout == ""
    failure, summary = done.stderr.splitlines()
    assert failure.startswith(f"{missing}: ObjectNotFound: ")
    assert summary == "1 dead (veil dead list)"


def test_without_wait_each_message_lies_once_in_the_queue_it_was_meant_for(veil, unattended):
    printed = {}
    for queue in ("uploads", "backfill", "uploads"):
        done = veil(
            "enqueue",
            f"s3://raw/{queue}.jpg",
            "--queue",
            queue,
            "--json",
            environment=unattended.environment,
        )
        assert done.returncode == 0
        (line,) = lines(done)
        assert line["source"] == f"s3://raw/{queue}.jpg"
        printed.setdefault(queue, set()).add(line["task_id"])

    for queue, ids in printed.items():
        messages = [json.loads(message) for message in unattended.client.lrange(queue, 0, -1)]
        assert len(messages) == len(ids)
        assert {message["headers"]["id"] for message in messages} == ids


def test_more_than_one_batch_arrives_in_the_order_of_the_arguments(veil, unattended):
    sources = [f"s3://raw/{number}.jpg" for number in range(1100)]

    done = veil("enqueue", *sources, "--json", environment=unattended.environment)

    assert done.returncode == 0
    messages = [
        json.loads(message)["headers"]
        for message in reversed(unattended.client.lrange("uploads", 0, -1))
    ]
    assert [line["source"] for line in lines(done)] == sources
    assert [line["task_id"] for line in lines(done)] == [headers["id"] for headers in messages]
    assert [headers["argsrepr"] for headers in messages] == sources


def test_a_picture_that_no_worker_takes_is_given_up_after_the_timeout(veil, unattended):
    done = veil(
        "enqueue",
        "s3://raw/a.jpg",
        "--wait",
        "--timeout",
        0.5,
        "--json",
        environment=unattended.environment,
    )

    assert done.returncode == 1
    (outcome,) = lines(done)
    assert (outcome["status"], outcome["error"]) == ("unknown", "NoAnswer")
    assert "waits on uploads and no worker answers: start `veil worker`" in outcome["message"]
    assert done.stderr == "1 without a result\n"


@pytest.mark.parametrize(
    ("meta", "reason"),
    [
        ({"status": "RETRY", "result": Busy("taken")}, "another try after Busy: taken"),
        ({"status": "STARTED", "result": None}, "has begun it and has not ended"),
        ({"status": "PENDING", "result": None}, "2 workers answer"),
    ],
)
def test_the_reason_of_a_missing_answer_is_the_state_of_its_task(meta, reason):
    assert reason in waiting._reason(meta, "uploads", ["a", "b"])


def test_without_wait_the_command_says_what_it_did(veil, unattended):
    addresses = ("s3://raw/a.jpg", "s3://raw/b.jpg")
    done = veil("enqueue", *addresses, environment=unattended.environment)
    quiet = veil("enqueue", *addresses, "-q", environment=unattended.environment)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "2 enqueued on uploads\n")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")


@pytest.mark.parametrize(
    "arguments",
    [("s3://raw/a.jpg", "s3://other/a.jpg"), ("--prefix", "s3://other"), ("--prefix", "s3://raw")],
)
def test_an_address_outside_of_the_routes_is_refused(veil, unattended, arguments):
    environment = {**unattended.environment, "VEIL_ROUTES": "s3://raw/in=s3://clean"}
    done = veil("enqueue", "s3://raw/in/a.jpg", *arguments, environment=environment)
    line = the_one_line(done)
    assert "BucketNotAllowed" in line
    assert "VEIL_ROUTES" in line
    assert unattended.client.llen("uploads") == 0


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"]
)
def test_an_interruption_says_what_was_done_until_then(
    unattended, programs, wait_until, number, code
):
    process = start_command(
        [programs / "veil", "enqueue", "s3://raw/a.jpg", "s3://raw/b.jpg", "--wait"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **unattended.environment},
    )
    wait_until(lambda: unattended.client.llen("uploads") == 2)
    time.sleep(0.5)  # the transaction has ended, and the command waits for results
    process.send_signal(number)
    _, printed = process.communicate(timeout=30)
    assert process.returncode == code
    assert printed.splitlines()[-2:] == [
        "veil: interrupted; what was done until then:",
        "2 without a result",
    ]


@pytest.mark.parametrize(
    "command", [("enqueue", "s3://raw/a.jpg"), ("dead", "list")], ids=lambda c: c[0]
)
def test_no_redis_is_one_line(veil, quiet_port, command):
    done = veil(*command, environment={"VEIL_REDIS_URL": f"redis://{HOST}:{quiet_port}/0"})
    line = the_one_line(done)
    assert "VEIL_REDIS_URL" in line
    assert f"connecting to {HOST}:{quiet_port}. Connection refused" in line


@pytest.mark.parametrize(
    "command", [("enqueue", "s3://raw/a.jpg"), ("dead", "list")], ids=lambda c: c[0]
)
@pytest.mark.parametrize("password", ["not-the-password-of-this-run", ""], ids=["wrong", "none"])
def test_a_refused_password_is_one_line_that_does_not_tell_it(veil, unattended, command, password):
    done = veil(*command, environment={**unattended.environment, "VEIL_REDIS_PASSWORD": password})
    line = the_one_line(done)
    assert "VEIL_REDIS_PASSWORD" in line
    assert not password or password not in line


@pytest.mark.parametrize("address", ["raw/a.jpg", "s3://raw/folder/"])
def test_one_bad_address_is_one_line_and_nothing_is_enqueued(veil, unattended, address):
    done = veil("enqueue", "s3://raw/good.jpg", address, environment=unattended.environment)
    assert address in the_one_line(done)
    assert unattended.client.llen("uploads") == 0


@pytest.mark.parametrize("prefix", ["raw", "s3://no-such-bucket/in"])
def test_a_prefix_that_can_not_be_listed_is_one_line(veil, unattended, s3, prefix):
    done = veil(
        "enqueue", "--prefix", prefix, environment={**unattended.environment, **s3.environment()}
    )
    assert prefix in the_one_line(done)


def test_a_prefix_without_objects_says_so(veil, unattended, s3, place):
    settings = {**unattended.environment, **s3.environment()}

    done = veil(
        "enqueue",
        "s3://raw/a.jpg",
        "--prefix",
        f"s3://raw/{place}",
        "--wait",
        "--json",
        environment=settings,
    )

    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        f"veil: NothingFound: no object below s3://raw/{place}: correct the address\n"
    )
    assert unattended.client.keys("*") == []


def test_a_prefix_without_an_object_that_the_route_takes_says_so(
    veil, unattended, s3, raw, place, tmp_path
):
    raw.put(f"{place}a.jpg", b"a")
    routes = tmp_path / "routes.toml"
    routes.write_text(
        '[routes.a]\nsource = "s3://raw"\ndestination = "s3://clean"\nsuffixes = [".png"]\n'
    )
    settings = {**unattended.environment, **s3.environment(), "VEIL_ROUTES_FILE": str(routes)}
    done = veil("enqueue", "--prefix", f"s3://raw/{place}", environment=settings)
    assert done.returncode == 1
    assert f"NothingFound: nothing was enqueued: no object below s3://raw/{place}" in done.stderr
    assert not unattended.client.exists("uploads")


@pytest.mark.parametrize(
    "arguments", [(), ("s3://raw/a.jpg", "--queue", "express")], ids=["nothing", "queue"]
)
def test_wrong_arguments_are_exit_code_2(veil, unattended, arguments):
    done = veil("enqueue", *arguments, environment=unattended.environment)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_what_was_given_up_is_listed_with_its_reason(veil, worker, queue, environment, raw, place):
    missing = raw.uri(place + "missing.jpg")
    queue.outcome(queue.send(missing))

    done = veil("dead", "list", "--json", environment=environment)
    plain = veil("dead", "list", environment=environment)

    assert done.returncode == plain.returncode == 0
    letters = lines(done)
    assert [letter["time"] for letter in letters] == sorted(letter["time"] for letter in letters)
    (letter,) = (letter for letter in letters if letter["source"] == missing)
    known = {"source", "destination", "error", "message", "attempts", "task_id", "worker", "time"}
    further = {"first_time", "last_error", "options", "queue", "sample", "is_whole"}
    assert set(letter) == known | further
    assert letter["error"] == "ObjectNotFound"
    (line,) = (line for line in plain.stdout.splitlines() if missing in line)
    assert "ObjectNotFound" in line
