"""`veil dead` as a user types it: list, show, retry and drop, without effects on other letters."""

import json
import time

import pytest

from tasks.anonymize import _stored_options
from tasks.delivery import envelopes
from tasks.messages import BACKFILL, MAX_AREAS, UPLOADS
from tasks.records import dead_letters, ledger
from tasks.records.dead_letters import DeadLetter


@pytest.fixture
def dead(veil, unattended):
    return lambda *arguments: veil("dead", *arguments, environment=unattended.environment)


def give_up(
    queue, source, error="UnreadableImage", when=1e9, destination=None, options=None, is_whole=True
):
    letter = DeadLetter(
        source,
        destination,
        error,
        "a line",
        1,
        "task",
        "worker",
        when,
        when,
        options=options,
        is_whole=is_whole,
    )
    dead_letters.LETTERS.record(queue.client, letter)
    return letter


def waiting(queue, name=BACKFILL):
    return {
        json.loads(message)["headers"]["argsrepr"] for message in queue.client.lrange(name, 0, -1)
    }


def test_the_list_is_oldest_first_and_each_letter_is_one_line(dead, unattended):
    for number in (3, 1, 2):
        give_up(unattended, f"s3://raw/{number}\n\x1b[31m.jpg", when=1e9 + number)
    done = dead("list")
    assert done.returncode == 0
    first, *_ = lines = done.stdout.splitlines()
    assert first == r"2001-09-09T01:46:41+00:00  s3://raw/1\n\x1b[31m.jpg  UnreadableImage: a line"
    assert len(lines) == 3
    listed = [json.loads(line) for line in dead("list", "--json").stdout.splitlines()]
    assert [letter["source"][9] for letter in listed] == ["1", "2", "3"]


def test_so_many_letters_that_sorting_would_take_memory_come_in_no_order(unattended, monkeypatch):
    letters = {give_up(unattended, f"s3://raw/{number}", when=-number) for number in range(1200)}
    assert [letter.time for letter in dead_letters.LETTERS.oldest_first(unattended.client)] == list(
        range(-1199, 1)
    )
    monkeypatch.setattr(ledger, "MAX_SORTED", 10)
    assert set(dead_letters.LETTERS.oldest_first(unattended.client)) == letters


def test_one_is_shown_with_all_that_is_known(dead, unattended):
    letter = give_up(unattended, "s3://raw/a b.jpg")
    done = dead("show", letter.source)
    assert done.returncode == 0
    assert "source: s3://raw/a b.jpg" in done.stdout.splitlines()
    assert "error: UnreadableImage" in done.stdout.splitlines()
    assert "time: 2001-09-09T01:46:40+00:00" in done.stdout.splitlines()
    assert "first_time: 2001-09-09T01:46:40+00:00" in done.stdout.splitlines()
    assert "None" not in done.stdout
    assert json.loads(dead("show", letter.source, "--json").stdout)["message"] == "a line"


@pytest.mark.parametrize("action", ["retry", "drop"])
def test_an_error_that_no_letter_has_is_noted(dead, unattended, action):
    letter = give_up(unattended, "s3://raw/a.jpg")
    done = dead(action, "--error", "AccessDenied")
    assert done.returncode == 1
    assert "veil: no dead letter meets the condition: nothing was done" in done.stderr
    assert unattended.dead() == {letter.source: letter}
    assert waiting(unattended) == set()


@pytest.mark.parametrize("arguments", [("retry", "--all"), ("drop", "--all", "--yes")])
def test_nothing_to_do_is_exit_code_1_and_a_line(dead, arguments):
    done = dead(*arguments)
    assert done.returncode == 1
    assert "veil: no dead letter: nothing was done" in done.stderr


@pytest.mark.parametrize("action", ["list", "retry", "drop"])
def test_a_name_that_no_error_has_is_refused_with_the_names(dead, unattended, action):
    refused = dead(action, "--error", "Unreadable")
    assert refused.returncode == 2
    assert "UnreadableImage" in refused.stderr  # All names: there is no letter.
    letters = [give_up(unattended, f"s3://raw/{error}", error) for error in ("B", "ValueError")]
    refused = dead(action, "--error", "Unreadable")
    assert refused.returncode == 2
    assert "Unreadable is not the name of an error: choose from B, ValueError" in refused.stderr
    assert set(unattended.dead().values()) == set(letters)
    assert waiting(unattended) == set()


def test_the_letters_with_an_error_can_be_listed(dead, unattended):
    for number, error in enumerate(("A", "B", "A")):
        give_up(unattended, f"s3://raw/{number}", error, when=number)
    lines = dead("list", "--error", "A").stdout.splitlines()
    assert [line.split("  ")[1] for line in lines] == ["s3://raw/0", "s3://raw/2"]
    none = dead("list", "--error", "AccessDenied")
    assert (none.returncode, none.stdout) == (0, "")
    assert none.stderr == "veil: no dead letter meets the condition\n"


def test_an_empty_list_is_a_line_for_people_alone(dead):
    done = dead("list")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "veil: no dead letter\n")
    done = dead("list", "--json")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("action", ["show", "retry", "drop"])
def test_a_source_that_is_not_there_is_exit_code_1_and_a_line(dead, unattended, action):
    letter = give_up(unattended, "s3://raw/a.jpg")
    done = dead(action, "s3://raw/other.jpg")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "veil: no dead letter of s3://raw/other.jpg" in done.stderr.splitlines()
    assert unattended.dead() == {letter.source: letter}
    assert waiting(unattended) == set()


def test_what_is_tried_again_is_enqueued_as_it_was_asked_for_and_stays_listed(dead, unattended):
    give_up(unattended, "s3://raw/a.jpg")
    give_up(unattended, "s3://raw/b.jpg", "AccessDenied", destination="s3://clean/c.jpg")
    give_up(unattended, "s3://raw/d.jpg", "ImageTooLarge")

    done = dead("retry", "s3://raw/a.jpg", "s3://raw/a.jpg", "--json")
    assert done.returncode == 0
    (line,) = map(json.loads, done.stdout.splitlines())
    assert line == {"source": "s3://raw/a.jpg", "queue": BACKFILL}
    assert unattended.client.llen(BACKFILL) == 1
    assert waiting(unattended) == {"s3://raw/a.jpg"}

    assert dead("retry", "--error", "AccessDenied", "--queue", "uploads").returncode == 0
    assert waiting(unattended, UPLOADS) == {"s3://raw/b.jpg → s3://clean/c.jpg"}
    assert len(unattended.dead()) == 3


def test_what_was_asked_for_with_options_is_never_tried_again_without(dead, unattended):
    options = {"method": "fill", "extra": [[0, 0, 9, 9]]}
    give_up(unattended, "s3://raw/a.jpg", options=options)
    give_up(unattended, "s3://raw/b.jpg", "InvalidRequest", options={"extra": [[9, 9, 0, 0]]})
    give_up(unattended, "s3://raw/c.jpg", "InvalidRequest", options="[[[[…")
    done = dead("retry", "--all")
    assert done.returncode == 1
    assert "an area is x1, y1, x2, y2" in done.stderr
    assert "options: give a JSON object" in done.stderr
    assert waiting(unattended) == {f"s3://raw/a.jpg {options}"}


@pytest.mark.parametrize("is_whole", [False, None])
def test_a_refused_message_that_a_letter_may_not_have_whole_is_never_tried_again(
    dead, unattended, is_whole
):
    refused = "s3://raw/a.jpg", "s3://raw/b.jpg"
    for source, error in zip(refused, dead_letters.REFUSED, strict=True):
        give_up(unattended, source, error, is_whole=is_whole)
    give_up(unattended, "s3://raw/c.jpg", is_whole=is_whole)
    done = dead("retry", "--all")
    assert done.returncode == 1
    for source in refused:
        assert f"{source} can't be tried again, only dropped: its message may" in done.stderr
    assert waiting(unattended) == {"s3://raw/c.jpg"}
    assert len(unattended.dead()) == 3


def test_what_shows_more_is_tried_again_only_for_a_version(dead, unattended):
    options = {"exempt": [[0, 0, 9, 9]]}
    pinned = {**options, "version": "a" * 32}
    give_up(unattended, "s3://raw/a.jpg", options=options)
    give_up(unattended, "s3://raw/b.jpg", options={"rules": {"FACE": {"ignore": True}}})
    give_up(unattended, "s3://raw/c.jpg", options=pinned)
    done = dead("retry", "--all")
    assert done.returncode == 1
    for name in "ab":
        assert f"s3://raw/{name}.jpg can't be tried again, only dropped: its options" in done.stderr
    assert waiting(unattended) == {f"s3://raw/c.jpg {pinned}"}


def test_a_picture_with_the_most_areas_is_tried_again_with_all_of_them(dead, unattended):
    areas = [[999_990, 999_990, 1_000_000, 1_000_000]] * MAX_AREAS
    options = {"exempt": areas, "extra": areas, "version": "a" * 256}
    give_up(unattended, "s3://raw/a.jpg", options=_stored_options(options))
    assert dead("retry", "--all").returncode == 0
    (item,) = unattended.client.lrange(BACKFILL, 0, -1)
    envelope = envelopes.read(item, len(item))
    assert (envelope.defect, envelope.arguments[2]) == (None, options)


def test_all_are_tried_again_but_for_what_never_was_a_request(dead, unattended):
    good = {f"s3://raw/{number}.jpg" for number in range(700)}
    for source in good:
        give_up(unattended, source)
    give_up(unattended, "message node-3", "MalformedMessage")
    done = dead("retry", "--all")
    assert done.returncode == 1
    line = "veil: message node-3 can't be tried again, only dropped: it names no picture"
    assert line in done.stderr.splitlines()
    assert "700 enqueued" in done.stderr
    assert waiting(unattended) == good


def test_the_id_of_a_message_that_names_no_picture_finds_its_letter(dead, unattended):
    name = "97f895fe-08ad-4b52-ae08-5d31b64e51a5"
    give_up(unattended, f"message {name}", "MalformedMessage")
    for given in (name, f"message {name}"):
        done = dead("show", given)
        assert done.returncode == 0
        assert f"source: message {name}" in done.stdout.splitlines()
    assert "1 dropped" in dead("drop", name).stderr


def test_a_picture_that_comes_through_at_last_is_no_longer_listed(
    veil, worker, queue, environment, raw, portrait, place
):
    source = raw.uri(place + "late.jpg")
    queue.outcome(queue.send(source))
    raw.put(place + "late.jpg", portrait)
    assert veil("dead", "retry", source, environment=environment).returncode == 0
    deadline = time.monotonic() + 60
    while source in queue.dead():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_pictures_of_one_source_are_told_apart_by_their_destinations(dead, unattended):
    for destination in DESTINATIONS:
        give_up(unattended, "s3://raw/a.jpg", destination=destination)
    retried = ("retry", "s3://raw/a.jpg", "--wait", "--timeout", 0.2)
    named = [line.split(": NoAnswer: ")[0] for line in dead(*retried).stderr.splitlines()[1:-1]]
    assert sorted(named) == [
        "s3://raw/a.jpg",
        "s3://raw/a.jpg → s3://clean/b.jpg",
        "s3://raw/a.jpg → s3://clean/c.jpg",
    ]
    for flags in (retried, ("retry", "s3://raw/a.jpg")):
        shown = map(json.loads, dead(*flags, "--json").stdout.splitlines())
        assert {line.get("destination") for line in shown} == set(DESTINATIONS)


def test_what_is_dropped_is_forgotten_and_nothing_else(dead, unattended):
    for number, error in enumerate(("A", "A", "B", "B", "C")):
        give_up(unattended, f"s3://raw/{number}", error)
    assert "1 dropped" in dead("drop", "s3://raw/4").stderr
    assert "2 dropped" in dead("drop", "--error", "A").stderr
    assert set(unattended.dead()) == {"s3://raw/2", "s3://raw/3"}

    refused = dead("drop", "--all")
    assert refused.returncode == 2
    assert "--yes" in refused.stderr
    assert len(unattended.dead()) == 2
    assert json.loads(dead("drop", "--all", "--yes", "--json").stdout) == {"dropped": 2}
    assert unattended.dead() == {}


def test_a_letter_that_a_worker_writes_meanwhile_is_not_dropped(unattended):
    give_up(unattended, "s3://raw/a.jpg", "A", when=1)

    class Meanwhile:
        """A Redis in which a letter is replaced right after it was read."""

        def __getattr__(self, name):
            return getattr(unattended.client, name)

        def hscan_iter(self, *arguments, **named):
            for item in unattended.client.hscan_iter(*arguments, **named):
                give_up(unattended, "s3://raw/a.jpg", "A", when=2)
                yield item

    drop = dead_letters.LETTERS.drop_where
    assert not any(drop(Meanwhile(), lambda letter: letter.error == "A"))
    assert unattended.dead()["s3://raw/a.jpg"].time == 2


@pytest.mark.parametrize("action", ["retry", "drop"])
@pytest.mark.parametrize("arguments", [(), ("s3://raw/a.jpg", "--all"), ("--error", "A", "--all")])
def test_which_letters_are_meant_must_be_clear(dead, action, arguments):
    done = dead(action, *arguments)
    assert done.returncode == 2
    assert "--error" in done.stderr
    assert "Traceback" not in done.stderr


DESTINATIONS = (None, "s3://clean/b.jpg", "s3://clean/c.jpg")


def test_a_source_has_a_letter_for_each_destination(dead, unattended):
    for destination in (*DESTINATIONS, *DESTINATIONS):
        give_up(unattended, "s3://raw/a.jpg", destination=destination)
    give_up(unattended, "s3://raw/b.jpg")
    lines = dead("list").stdout.splitlines()
    assert {line.split("  ")[1] for line in lines} == {
        "s3://raw/a.jpg",
        "s3://raw/a.jpg → s3://clean/b.jpg",
        "s3://raw/a.jpg → s3://clean/c.jpg",
        "s3://raw/b.jpg",
    }
    shown = dead("show", "s3://raw/a.jpg", "--json").stdout.splitlines()
    assert {json.loads(line)["destination"] for line in shown} == set(DESTINATIONS)
    assert dead("retry", "s3://raw/a.jpg").returncode == 0
    assert len(waiting(unattended)) == 3

    dead_letters.LETTERS.discard(unattended.client, "s3://raw/a.jpg", [DESTINATIONS[1]])
    left = dead_letters.LETTERS.entries(unattended.client)
    assert {(letter.source, letter.destination) for letter in left} == {
        ("s3://raw/a.jpg", None),
        ("s3://raw/a.jpg", DESTINATIONS[2]),
        ("s3://raw/b.jpg", None),
    }
    assert "2 dropped" in dead("drop", "s3://raw/a.jpg").stderr


# A letter as version 0.2.0 stored it, for any destination under the name of its source.
OLDER = {
    "source": "s3://raw/a.jpg",
    "destination": "s3://clean/b.jpg",
    "error": "AccessDenied",
    "message": "a line",
    "attempts": 1,
    "task_id": "task",
    "worker": "worker",
    "time": 1e9,
    "first_time": None,
    "last_error": None,
    "options": {"extra": [[0, 0, 9, 9]], "method": "\ud800"},
    "queue": None,
    "sample": None,
}


def test_a_letter_of_an_earlier_version_is_read_and_ends_with_its_picture(dead, unattended):
    key, name = dead_letters.LETTERS.key, OLDER["source"]

    def write(**fields):
        unattended.client.hset(key, name, json.dumps(OLDER | fields))

    write(options=None)
    assert dead("retry", name).returncode == 0
    assert waiting(unattended) == {"s3://raw/a.jpg → s3://clean/b.jpg"}
    for fields in ({"options": None}, {"later": "field", "options": {"extra": []}}):
        write(**fields)
        (letter,) = dead_letters.LETTERS.oldest_first(unattended.client)
        assert letter.destination == "s3://clean/b.jpg"
        dead_letters.LETTERS.discard(unattended.client, name, ["s3://clean/c.jpg"])
        assert unattended.client.hlen(key) == 1
        dead_letters.LETTERS.discard(unattended.client, name, ["s3://clean/b.jpg"])
        assert unattended.client.hlen(key) == 0
    write()
    give_up(unattended, name, destination="s3://clean/c.jpg")
    assert unattended.client.hlen(key) == 2
    write(destination=None)
    give_up(unattended, name)
    assert unattended.client.hlen(key) == 2


def test_a_repeated_event_ends_no_letter_of_a_request_for_more(worker, queue, raw, portrait, place):
    source, area = raw.put(place + "a.jpg", portrait), [0, 0, 5, 5]

    def letters():
        return [one for one in dead_letters.LETTERS.entries(queue.client) if one.source == source]

    queue.report(source)
    give_up(queue, source, options={"extra": [area], "region": "full"})
    assert queue.report(source)["status"] == "skipped"
    assert len(letters()) == 1
    queue.report(source, options={"extra": [area, [7, 7, 9, 9]], "region": 1.0})
    assert letters() == []
    give_up(queue, source)
    assert queue.report(source)["status"] == "skipped"
    assert letters() == []


@pytest.mark.parametrize("named", [None, "default", "other"])
def test_a_picture_that_succeeds_ends_the_letters_of_its_destination(
    worker, queue, raw, clean, portrait, place, named
):
    source = raw.put(place + "a.jpg", portrait)
    default, other = clean.uri(place + "a.jpg"), clean.uri(place + "b.jpg")
    for destination in (None, default, other):
        give_up(queue, source, destination=destination)
    queue.report(source, {None: None, "default": default, "other": other}[named])
    left = {
        letter.destination
        for letter in dead_letters.LETTERS.entries(queue.client)
        if letter.source == source
    }
    assert left == ({None, default} if named == "other" else {other})
    dead_letters.LETTERS.discard(queue.client, source, [None, default, other])
