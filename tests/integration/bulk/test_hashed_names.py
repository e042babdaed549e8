"""Routes with hashed names: the outputs' bucket has no key, and every command knows the sources.

``HASHED_KEYS=1000000`` makes the large list of sources a million keys.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tasks.addresses import ObjectUri, PrefixUri
from tasks.bulk.backfill import Selection, SourcePages
from tasks.bulk.comparison import compare, settle
from tasks.bulk.places import Places
from tasks.bulk.source_index import SourceIndex
from tasks.records import samples
from tasks.routes import Routes
from tasks.signatures import Key
from tasks.storage import decisions
from tasks.storage.decisions import Decision
from tests.integration.bulk.test_comparison import (
    LEFT,
    bounded,
    current,
    keys,
    missing,
    numbers,
    orphan,
    told,
)
from tests.integration.bulk.test_inventory import MEASURED
from tests.integration.delivery.test_poison import picture

ROOT = Path(__file__).resolve().parents[3]
KEYS = int(os.environ.get("HASHED_KEYS", "20000"))
RECIPE = "5a38d4c65c2c5ab0"
NAMES_KEY, RECEIPT_KEY = Key.parse("n" * 32), Key.parse("r" * 32)
DIGEST = re.compile(r"[0-9a-f]{32}(\.png|\.jpg)?")
FILES = ("Smith/John 1980.PNG", "Smith/Jane/a.png", "Müller/b.HEIC", "top secret")
ROUTE = """
[routes.school-{number}]
source = "s3://raw/hashed/{number}"
destination = "s3://clean/hashed/{number}"
output_names = "hash"
"""
ROUTES = 8  # the tests with the worker use one each


# --- with a worker


@pytest.fixture(scope="module")
def environment(new_queue, s3, tmp_path_factory):
    """The queue and the environment of all programs, with routes that hash names."""
    path = tmp_path_factory.mktemp("routes") / "routes.toml"
    path.write_text("".join(ROUTE.format(number=number) for number in range(ROUTES)))
    queue = new_queue()
    return queue, {
        **queue.environment,
        **s3.environment(),
        "VEIL_ROUTES_FILE": str(path),
        "VEIL_NAMES_KEY": "n" * 32,
        "VEIL_RECEIPT_KEY": "r" * 32,
        "VEIL_HEIF_SUFFIX": ".jpg",
        "VEIL_SCALES": "64",
        "VEIL_PROCESSES": "1",
        "PYTHONPATH": str(ROOT),
    }


@pytest.fixture(scope="module")
def worker(environment, start_worker):
    _, variables = environment
    command = [sys.executable, Path(__file__).parents[1] / "poison_worker.py"]
    with start_worker(command, variables) as started:
        yield started


@pytest.fixture(scope="module")
def unused_routes():
    return iter(range(ROUTES))


@pytest.fixture
def school(unused_routes):
    """The prefix of the keys of this test in both buckets, those of a route of its own."""
    return f"hashed/{next(unused_routes)}/"


@pytest.fixture
def run(veil, environment):
    """``run(*arguments)`` runs a command of this deployment."""
    _, variables = environment
    return lambda *arguments: veil(*arguments, environment=variables)


@pytest.fixture
def anonymized(worker, run, raw, school):
    """The addresses of sources that a backfill had anonymized, by their keys on the route."""
    for number, key in enumerate(FILES):
        raw.put(f"{school}{key}", picture((90, 90, 90 + number)), Metadata={"camera": "7"})
    done = run("backfill", raw.uri(school), "--wait", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert summary_of(done)["outcomes"]["anonymized"] == len(FILES)
    return {key: raw.uri(f"{school}{key}") for key in FILES}


def lines_of(done):
    return [json.loads(line) for line in done.stdout.splitlines()]


def summary_of(done):
    last = lines_of(done)[-1]
    return last.get("summary", last)


def findings_of(done):
    return [line for line in lines_of(done) if "summary" not in line]


def output_of(run, source):
    """Return the key of the output of `source` as ``veil routes check`` has it."""
    done = run("routes", "check", source, "--offline", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    return lines_of(done)[0]["address"]["output"].removeprefix("s3://clean/")


def test_no_key_of_a_source_is_in_the_bucket_of_the_outputs(anonymized, clean, school):
    written = clean.keys(school)
    outputs = [key for key in written if "/.veil/" not in key]
    assert len(outputs) == len(FILES)
    assert all(DIGEST.fullmatch(key.removeprefix(school)) for key in outputs)
    suffixes = sorted(key.rpartition("/")[2][32:] for key in outputs)
    assert suffixes == ["", ".jpg", ".png", ".png"]
    told = " ".join(written)
    for key in written:
        told += json.dumps(clean.head(key), default=str)
        told += clean.get(key).decode("latin-1") if "/.veil/" in key else ""
    assert not re.search("Smith|John|Jane|M.{1,6}ller|secret|s3://raw|camera", told)


def test_a_second_backfill_finds_everything_done_and_reconcile_agrees(
    anonymized, run, environment, raw, clean, school
):
    queue, _ = environment
    again = summary_of(run("backfill", raw.uri(school), "--json", "--restart"))
    assert (again["listed"], again["skipped"], again["enqueued"]) == (4, 4, 0)
    elsewhere = clean.uri(school + "second/version.png")
    assert queue.report(anonymized[FILES[0]], elsewhere)["destination"] == elsewhere
    done = run("reconcile", raw.uri(school), "--json")
    assert (done.returncode, summary_of(done)["current"]) == (0, 4)
    assert summary_of(done)["source unknown"] == 1

    part = run("reconcile", raw.uri(school + "Smith"), "--json")
    assert (part.returncode, summary_of(part)["current"]) == (0, 2)
    assert "outputs without a source are left out" in part.stderr
    clean.client.delete_object(Bucket="clean", Key=output_of(run, anonymized[FILES[0]]))
    part = run("backfill", raw.uri(school + "Smith"), "--json", "--dry-run")
    assert (summary_of(part)["skipped"], summary_of(part)["enqueued"]) == (1, 1)


def test_reconcile_names_what_is_wrong_and_has_it_repaired(
    anonymized, run, raw, clean, school, wait_until
):
    john, jane, _, secret = (anonymized[key] for key in FILES)
    names = {source: output_of(run, source) for source in anonymized.values()}
    clean.client.delete_object(Bucket="clean", Key=names[john])
    raw.put(jane.removeprefix("s3://raw/"), picture((80, 80, 80)))
    raw.client.delete_object(Bucket="raw", Key=secret.removeprefix("s3://raw/"))
    clean.put(f"{school}index.html", b"a page")

    done = run("reconcile", raw.uri(school), "--json", "--enqueue")

    found = {(each["state"], each["source"], each["output"]) for each in findings_of(done)}
    assert done.returncode == 1
    assert found == {
        ("missing", john, clean.uri(names[john])),
        ("stale", jane, clean.uri(names[jane])),
        ("orphan", None, clean.uri(names[secret])),
        ("orphan", None, clean.uri(f"{school}index.html")),
    }
    assert (summary_of(done)["current"], summary_of(done)["enqueued"]) == (1, 2)
    assert wait_until(lambda: clean.head(names[john]))
    plain = run("reconcile", raw.uri(school))
    assert f"orphan   {clean.uri(names[secret])}  no source" in plain.stdout
    archived = run("reconcile", raw.uri(school), "--sources-deleted", "--json")
    assert summary_of(archived)["archived"] == 1
    assert [each["output"] for each in findings_of(archived) if each["state"] == "orphan"] == [
        clean.uri(f"{school}index.html")
    ]
    wait_until(lambda: summary_of(run("reconcile", raw.uri(school), "--json"))["current"] == 3)


def test_another_secret_of_names_is_suspected_where_no_output_has_the_name_of_a_source(
    anonymized, veil, environment, raw, school
):
    _, variables = environment
    other = {**variables, "VEIL_NAMES_KEY": "o" * 32}
    done = veil("reconcile", raw.uri(school), "--json", environment=other)
    assert (summary_of(done)["missing"], summary_of(done)["orphan"]) == (4, 4)
    assert "if VEIL_NAMES_KEY is not the secret of the workers here" in done.stderr
    right = veil("reconcile", raw.uri(school), "--json", environment=variables)
    assert "VEIL_NAMES_KEY" not in right.stderr


def test_receipts_lead_to_the_sources_they_are_verified_with(anonymized, run, raw, clean, school):
    outputs = {source: output_of(run, source) for source in anonymized.values()}
    whole = run("receipt", "verify", clean.uri(school), "--json")
    states = {each["output"]: each["states"] for each in findings_of(whole)}
    assert states == {clean.uri(key): ["ok"] for key in outputs.values()}
    single = run("receipt", "verify", clean.uri(outputs[anonymized[FILES[0]]]), "--json")
    assert findings_of(single)[0]["states"] == ["ok"]

    boxes = run("receipt", "export", clean.uri(school))
    pictures = lines_of(boxes)
    assert {line["name"] for line in pictures} == set(states)

    due = run(
        *("receipt", "verify", clean.uri(school), "--delete-source", "--dry-run"),
        "--json",
    )
    # The worker of this test has a detector of its own.
    assert [each["states"] for each in findings_of(due)] == [
        ["ok", "source due", "other recipe"]
    ] * 4
    single = clean.uri(outputs[anonymized[FILES[1]]])
    deleted = run("receipt", "verify", single, "--delete-source", "--yes", "--json")
    assert findings_of(deleted)[0]["states"] == ["ok", "source deleted", "other recipe"]
    left = {raw.uri(key) for key in raw.keys(school)}
    assert left == set(anonymized.values()) - {anonymized[FILES[1]]}
    again = run("receipt", "verify", clean.uri(outputs[anonymized[FILES[1]]]), "--json")
    assert findings_of(again)[0]["states"] == ["ok", "source unknown"]


def test_corrected_boxes_decisions_and_samples_lead_to_the_source(
    anonymized, run, store, clean, school, environment, tmp_path, wait_until
):
    queue, _ = environment
    output = output_of(run, anonymized[FILES[0]])
    before = clean.head(output)["Metadata"]["veil-recipe"]
    path = tmp_path / "boxes.jsonl"
    assert run("receipt", "export", clean.uri(output), "-o", path).returncode == 0
    line = json.loads(path.read_text())
    line["shapes"].append({"area": [1, 1, 9, 9], "label": "extra"})
    path.write_text(json.dumps(line))
    done = run("receipt", "import", path)
    assert done.returncode == 0, done.stderr
    assert "1 enqueued" in done.stderr
    wait_until(lambda: clean.head(output)["Metadata"]["veil-recipe"].startswith(before + "-"))

    etag = clean.head(output)["ETag"].strip('"')
    made = Decision("redo", "ana", decisions.now(), etag)
    source, address = ObjectUri.parse(anonymized[FILES[0]]), ObjectUri.parse(clean.uri(output))
    place = PrefixUri.parse(clean.uri(school))
    record = decisions.record(store, place, address, source, made, [RECEIPT_KEY])
    assert "Smith" not in str(record) + clean.get(record.key).decode()
    (line,) = lines_of(run("review", "decisions", clean.uri(school), "--json"))
    assert (line["source"], line["output"]) == (str(source), str(address))

    run("sample", clean.uri(school), "--pictures", 10)
    (header,) = samples.headers(queue.client)
    drawn = samples.find(queue.client, header["name"])
    assert {each.source for each in drawn.pictures} == set(anonymized.values())


def test_outputs_from_before_the_names_were_hashed_are_orphans_with_a_source(
    anonymized, run, veil, environment, tmp_path, raw, clean, school
):
    queue, variables = environment
    hashed = Path(variables["VEIL_ROUTES_FILE"])
    plain = tmp_path / "routes.toml"
    plain.write_text(hashed.read_text().replace('"hash"', '"source"'))
    variables = {**variables, "VEIL_ROUTES_FILE": str(plain)}
    foreign = veil("reconcile", raw.uri(school), "--json", environment=variables)
    assert summary_of(foreign)["missing"] == 4
    assert summary_of(foreign)["source unknown"] == 4

    john, as_before = anonymized[FILES[0]], clean.uri(school + FILES[0])
    assert queue.report(john, as_before)["destination"] == as_before
    (orphan,) = findings_of(run("reconcile", raw.uri(school), "--json"))
    assert (orphan["state"], orphan["source"], orphan["output"]) == ("orphan", john, as_before)


# --- without a worker


@pytest.fixture
def fresh(listing_client, archive_at, place):
    """``fresh()`` returns an empty archive with hashed names."""
    from tasks.storage.s3 import ObjectStore

    store = ObjectStore(listing_client, page_keys=3)
    return lambda: archive_at(
        store, f"{place}{next(numbers)}/", RECEIPT_KEY, names_key=NAMES_KEY, heif_suffix=".jpg"
    )


def left(archive, pictures):
    """Leave `pictures`, and return the state of each by the key of its output."""
    found = {}
    for key, leave in pictures.items():
        if state := leave(archive, key):
            found[archive.places.key(archive.places.source.join(key))] = state
    return found


@bounded
@given(pictures=st.dictionaries(keys, st.sampled_from(LEFT), max_size=9))
@example(pictures=dict.fromkeys(("a/a.heic", "a-a.jpg", "a", "a.a", "a!/a"), current))
@example(pictures=dict(zip(map("{}/a.jpg".format, range(len(LEFT))), LEFT, strict=True)))
def test_every_picture_is_told_for_what_it_is(fresh, pictures):
    archive = fresh()
    truth = left(archive, pictures)
    states, _ = told(archive)
    # Without its receipt, an output is not proven: there is a receipt key.
    unproven = {key for key in truth if truth[key] != states[key]}
    assert states.keys() == truth.keys()
    assert {truth[key] for key in unproven} <= {"current"}
    assert {states[key] for key in unproven} <= {"stale"}


@pytest.mark.parametrize("most", [1, 2])
def test_a_backfill_that_is_cut_off_after_any_page_wants_every_picture_once(fresh, most):
    archive = fresh()
    pictures = {f"{number}/{leave.__name__}": leave for number, leave in enumerate(LEFT)}
    truth = left(archive, {**pictures, **dict.fromkeys(("a", "b/c", "b/d"), missing)})
    cursor, wanted, listed = "", [], 0
    while True:
        # Each page is that of another process, which sorts the sources again.
        places = replace(archive.places, index=SourceIndex())
        reading = SourcePages(archive.store, places, Selection(), RECIPE, cursor)
        if reading.at_end:
            break
        page = reading.page(most)
        cursor, listed = page.cursor, listed + page.listed
        wanted += [places.key(picture.source) for picture in page.wanted]
    there = {key for key, state in truth.items() if state != "orphan"}
    assert listed == len(there)
    assert len(wanted) == len(set(wanted))
    assert {key for key in there if truth[key] not in ("current",)} <= set(wanted) <= there


def test_what_is_uploaded_during_a_comparison_is_no_orphan(fresh):
    archive = fresh()
    left(archive, {f"{number}.jpg": current for number in range(12)})
    gone = next(iter(left(archive, {"gone.jpg": orphan})))
    comparison = compare(archive.store, archive.places, RECIPE)
    found = [next(comparison)]
    later = left(archive, {f"later {number}.jpg": current for number in range(12)})
    found += comparison
    orphans = {each.key for each in found if each.source is None}
    assert orphans == {gone}
    assert not orphans & later.keys()


def test_what_an_inventory_does_not_have_yet_is_no_orphan(fresh):
    archive = fresh()
    left(archive, {f"{number}.jpg": current for number in range(3)})
    place, store = archive.places.source, archive.store
    listed = list(store.list(place.bucket, place.prefix))
    store.list_as(place.bucket, lambda prefix, after: iter(listed))
    left(archive, {f"later {number}.jpg": current for number in range(3)})
    found = list(compare(store, archive.places, RECIPE))
    assert [each.is_current for each in found] == [True] * 3


def test_the_parts_of_a_route_are_compared_without_the_outputs_of_others(fresh):
    archive = fresh()
    left(archive, {"a/1.jpg": current, "a/2.jpg": missing, "b/1.jpg": current, "c": orphan})
    routes = Routes((archive.places.route,))
    part = Places.find(f"{archive.places.source}a", None, routes, [RECEIPT_KEY])
    states = {}
    for compared in compare(archive.store, part, RECIPE):
        settled = None if compared.is_current else settle(archive.store, part, RECIPE, compared)
        states[compared.source.uri.key[-5:]] = settled.state if settled else "current"
    assert states == {"1.jpg": "current", "2.jpg": "missing"}


SORTING = """
import resource
from tasks.addresses import ObjectUri, PrefixUri
from tasks.bulk.source_index import SortedSources
from tasks.output_names import OutputNames
from tasks.signatures import Key
from tasks.storage.s3 import StoredObject

COUNT = {count}
names = OutputNames(hash_key=Key.parse("n" * 32))
sources = (
    StoredObject(ObjectUri("raw", f"Smith/John {{number:09}}.jpg"), "0" * 32, number)
    for number in range(COUNT)
)
found = SortedSources("raw", sources, lambda uri: names.output_key(uri.key))
last, listed = "", 0
for stored in found.after(""):
    key = names.output_key(stored.uri.key)
    assert key > last
    last, listed = key, listed + 1
assert listed == COUNT
assert found.find(names.output_key("Smith/John 000000007.jpg")).key == "Smith/John 000000007.jpg"
assert found.find("0" * 32) is None
"""


def peak_kib(count):
    command = [sys.executable, "-c", MEASURED, sys.executable, "-c", SORTING.format(count=count)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.splitlines()[-1])


def test_the_memory_for_sorting_does_not_grow_with_the_number_of_sources():
    # SQLite fills a cache of 64 MiB before it writes to the disk, and sorts as much at once.
    assert peak_kib(KEYS) - peak_kib(10) < 160 << 10
