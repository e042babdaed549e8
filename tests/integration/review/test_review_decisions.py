"""``veil review decisions``: who decided what, from records that a real store keeps."""

import json

import pytest

from tasks.addresses import ObjectUri, PrefixUri
from tasks.signatures import Key
from tasks.storage import decisions
from tasks.storage.decisions import Decision

KEY = "a key for receipts of 32 characters or more"
OTHER_KEY = "another key, of people who may not decide"
SOURCES, OUTPUTS = "s3://raw/decided", "s3://clean/decided"
FOLDER = "decided/.veil/decisions/"
LONG = f"x/{'k' * 240}.jpg"


@pytest.fixture
def settings(s3):
    return {
        **s3.environment(),
        "VEIL_ROUTES": f"{SOURCES}={OUTPUTS}",
        "VEIL_RECEIPT_KEY": KEY,
    }


@pytest.fixture(autouse=True)
def empty(clean):
    for key in list(clean.keys("decided/")):
        clean.client.delete_object(Bucket="clean", Key=key)


@pytest.fixture
def decide(store):
    """``decide(key, second, ...)`` records a decision on the output ``key``."""

    def record(key, second, by="ana", *, keys=(KEY,), source=True, **fields):
        made = Decision(
            **{"action": "redo", "source_etag": f"etag of {key}", **fields},
            by=by,
            at=f"2026-11-30T08:00:{second:02}.000+00:00",
        )
        return decisions.record(
            store,
            PrefixUri.parse(OUTPUTS),
            ObjectUri.parse(f"{OUTPUTS}/{key}"),
            ObjectUri.parse(f"{SOURCES}/{key}") if source else None,
            made,
            [Key.parse(text) for text in keys],
        )

    return record


@pytest.fixture
def listed(veil, settings):
    """``listed(address, ...)`` returns the ended command and the objects that it printed."""

    def run(address, **environment):
        command = ("review", "decisions", address, "--json")
        done = veil(*command, environment={**settings, **environment})
        return done, [json.loads(line) for line in done.stdout.splitlines()]

    return run


def test_each_decision_has_who_when_what_and_the_version_oldest_first(decide, listed):
    area = [[1, 2, 30, 40]]
    decide("2026/b.jpg", 3, "ben", action="release", reason="no face found")
    decide("2026/a.jpg", 2, options={"extra": area}, output_etag="o")
    decide("2026/a.jpg", 1, action="mark", exposed_xyxy=area, sample="5a3b1e00", source=False)
    decide("2025/a.jpg", 9)
    decide("2026-draft.jpg", 9)

    done, lines = listed(f"{OUTPUTS}/2026")

    assert done.returncode == 0, done.stderr
    assert "3 decisions" in done.stderr
    assert [(line["by"], line["action"], line["output"]) for line in lines] == [
        ("ana", "mark", f"{OUTPUTS}/2026/a.jpg"),
        ("ana", "redo", f"{OUTPUTS}/2026/a.jpg"),
        ("ben", "release", f"{OUTPUTS}/2026/b.jpg"),
    ]
    mark, redo, release = lines
    assert (mark["exposed_xyxy"], mark["sample"], mark["source"]) == (area, "5a3b1e00", None)
    assert (redo["options"], redo["output_etag"]) == ({"extra": area}, "o")
    assert (release["at"], release["reason"]) == ("2026-11-30T08:00:03.000+00:00", "no face found")
    assert (release["source"], release["source_etag"]) == (
        f"{SOURCES}/2026/b.jpg",
        "etag of 2026/b.jpg",
    )
    assert {(line["flaw"], line["checked"]) for line in lines} == {(None, True)}


def test_the_decisions_on_one_output_are_found_by_its_address(decide, listed):
    decide("a.jpg", 1)
    decide("a.jpg.20261130080000000.jpg", 2)
    decide("a.jpg/below.jpg", 3)
    decide(LONG, 4)

    def outputs(address):
        return [line["output"] for line in listed(address)[1]]

    assert outputs(f"{OUTPUTS}/a.jpg") == [f"{OUTPUTS}/a.jpg", f"{OUTPUTS}/a.jpg/below.jpg"]
    assert outputs(f"{OUTPUTS}/{LONG}") == [f"{OUTPUTS}/{LONG}"]
    # Their names have a digest in place of the key, so only the whole route is known to have it.
    assert outputs(f"{OUTPUTS}/x") == []
    assert outputs(OUTPUTS)[-1] is None


def test_a_record_that_was_not_signed_for_its_output_does_not_count(decide, listed, clean, store):
    decide("unsigned.jpg", 1, keys=())
    decide("foreign.jpg", 2, keys=(OTHER_KEY,))
    changed = decide("changed.jpg", 3)
    with store.open(changed) as opened:
        signed = opened.read(1 << 20, 5)
    clean.put(changed.key, signed.replace(b'"redo"', b'"drop"'))
    clean.put(f"{FOLDER}moved.jpg.20261130080004000.0123456789ab.json", signed)
    for number, junk in enumerate((b"", b"[]", b"[" * 100_000, b'{"action": "redo"}', b"\xff{")):
        clean.put(f"{FOLDER}junk.jpg.2026113008000500{number}.0123456789ab.json", junk)
    clean.put(f"{FOLDER}no-record.json", b"{}")
    decide("good.jpg", 6)

    done, lines = listed(OUTPUTS)

    assert done.returncode == 1
    flaws = {}
    for line in lines:
        flaws.setdefault(line["output"].rpartition("/")[2], set()).add(line["flaw"])
    assert flaws == {
        "unsigned.jpg": {"unsigned"},
        "foreign.jpg": {"unknown key"},
        "changed.jpg": {"bad signature"},
        "moved.jpg": {"misplaced"},
        "junk.jpg": {"bad record"},
        "good.jpg": {None},
    }
    assert len(lines) == 10
    assert "9 of them don't count" in done.stderr


def test_without_a_key_no_signature_is_checked_and_the_command_says_so(decide, listed):
    decide("a.jpg", 1, keys=())
    done, (line,) = listed(OUTPUTS, VEIL_RECEIPT_KEY="")
    assert done.returncode == 0
    assert (line["flaw"], line["checked"], line["source"]) == (None, False, f"{SOURCES}/a.jpg")
    assert "signatures are not checked" in done.stderr


def test_people_get_one_line_a_decision_without_characters_that_a_terminal_obeys(
    decide, veil, settings
):
    decide("a.jpg", 1, "ana\x1b[2J\nben", options={"region": 1.0, "method": "blur"})
    done = veil("review", "decisions", OUTPUTS, environment=settings)
    assert done.stdout == (
        '2026-11-30T08:00:01.000+00:00  ana\\x1b[2J\\nben  redo region=1.0 method="blur"  '
        f"{OUTPUTS}/a.jpg  source etag of a.jpg\n"
    )


def test_an_address_without_decisions_or_without_a_route(listed):
    done, lines = listed(f"{OUTPUTS}/nobody")
    assert (done.returncode, lines) == (0, [])
    assert "0 decisions" in done.stderr
    for address in ("s3://elsewhere/a", f"{OUTPUTS}/.veil/decisions", "clean"):
        done, lines = listed(address)
        assert (done.returncode, lines) == (2, []), done.stderr
