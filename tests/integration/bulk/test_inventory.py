"""Inventories and manifests in place of listings, on a real store and a real queue.

``INVENTORY_KEYS=1000000`` makes the large inventory a million keys.
"""

import csv
import gzip
import hashlib
import io
import json
import os
import random
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote_plus

import pytest

from tasks.addresses import ObjectUri
from tasks.bulk.comparison import compare
from tasks.bulk.inventory import Inventory
from tasks.errors import InventoryInvalid, ObjectNotFound, SettingsInvalid
from tests.integration.storage.test_policies import Account, account  # noqa: F401

SCHEMA = (
    "Bucket, Key, VersionId, IsLatest, IsDeleteMarker, Size, LastModifiedDate, ETag, StorageClass"
)
KEYS = int(os.environ.get("INVENTORY_KEYS", "20000"))
LARGE, LISTED = 100_000, 5_000  # keys with which the rate is compared with LIST, and keys to list
OLD = "2026-01-01T00:00:00.000Z"

# A program that runs another one and prints its peak memory in KiB. The figure of a process that
# pytest forks itself would include what pytest had in memory.
MEASURED = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def row(key, bucket="raw", etag="0" * 32, latest="true", deleted="false", size=7, modified=OLD):
    return [
        bucket,
        quote_plus(key),
        "v",
        latest,
        deleted,
        "" if deleted == "true" else str(size),
        modified,
        etag,
        "STANDARD",
    ]


def compressed(content):
    """Return `content` in gzip, without the time: it would be in the names of tests."""
    return gzip.compress(content, 1, mtime=0)


def written(rows):
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(rows)
    return compressed(text.getvalue().encode())


class Report:
    """An inventory below a prefix of the bucket `other`."""

    def __init__(self, client, place):
        self.client, self.place = client, place
        self.uri = ObjectUri("other", place + "manifest.json")
        self.files = []
        self.inventories = []
        self.manifest = {
            "sourceBucket": "raw",
            "destinationBucket": "arn:aws:s3:::other",
            "version": "2016-11-30",
            "creationTimestamp": "1764370800000",
            "fileFormat": "CSV",
            "fileSchema": SCHEMA,
            "files": self.files,
        }

    def put(self, key, content):
        self.client.put_object(Bucket="other", Key=self.place + key, Body=content)

    def add(self, rows, content=None):
        content = content or written(rows)
        key = f"data/{len(self.files)}.csv.gz"
        self.put(key, content)
        md5 = hashlib.md5(content).hexdigest()
        self.files.append({"key": self.place + key, "size": len(content), "MD5checksum": md5})

    def write(self, **changes):
        self.put("manifest.json", json.dumps({**self.manifest, **changes}).encode())
        return self

    def read(self, store, *buckets, key="manifest.json"):
        uri = ObjectUri("other", self.place + key)
        self.inventories.append(Inventory.read(store, uri, buckets or ("raw",)))
        return self.inventories[-1]


@pytest.fixture
def report(s3, place):
    made = Report(s3.client(), place)
    yield made
    for inventory in made.inventories:
        inventory.close()


def keys_of(inventory, *arguments):
    return [stored.uri.key for stored in inventory.list(*arguments)]


def test_the_rows_of_all_files_come_in_the_order_of_their_keys(report, store):
    keys = ["b.jpg", "a/b c+d.jpg", "a-1.jpg", "ü/写真 №5%.jpg", "a/1.jpg", "a.jpg"]
    report.add([row(key) for key in keys[:3]])
    report.add([row(key, etag="f" * 32, size=9) for key in keys[3:]])
    inventory = report.write().read(store)
    assert keys_of(inventory) == sorted(keys, key=str.encode)
    assert keys_of(inventory, "a/") == ["a/1.jpg", "a/b c+d.jpg"]
    assert keys_of(inventory, "", "a/1.jpg") == ["a/b c+d.jpg", "b.jpg", "ü/写真 №5%.jpg"]
    assert keys_of(inventory, "a/", "a/1.jpg") == ["a/b c+d.jpg"]
    stored = next(inventory.list("b"))
    assert (stored.etag, stored.size, stored.modified.year) == ("0" * 32, 7, 2026)


def test_old_versions_deleted_objects_folders_and_repeated_rows_are_left_out(report, store):
    report.add(
        [
            row("a.jpg"),
            row("a.jpg"),
            row("a.jpg", latest="false", etag="1" * 32),
            row("gone.jpg", deleted="true"),
            row("folder/"),
        ]
    )
    assert keys_of(report.write().read(store)) == ["a.jpg"]


def test_a_schema_with_the_least_columns_is_read(report, store):
    report.add(None, written([["raw", "a.jpg"], ["raw", "b.jpg"]]))
    inventory = report.write(fileSchema="Bucket, Key").read(store)
    assert keys_of(inventory) == ["a.jpg", "b.jpg"]
    assert not inventory.has_times


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"sourceBucket": "another"}, "the inventory of 'another', not of raw"),
        ({"fileFormat": "Parquet"}, "the format 'Parquet': have S3 write it as CSV"),
        ({"fileFormat": "ORC"}, "the format 'ORC'"),
        ({"fileSchema": "Bucket, Size"}, "no column key"),
        ({"files": [{"size": 1}]}, "no manifest of an S3 inventory: it has no 'key'"),
        ({"files": 7}, "no manifest of an S3 inventory"),
        ({"files": [{"key": "absent.csv.gz", "size": 1}]}, "absent.csv.gz is missing"),
    ],
)
def test_a_manifest_that_cant_be_used_is_named(report, store, changes, complaint):
    report.add([row("a.jpg")])
    with pytest.raises(InventoryInvalid, match=complaint):
        report.write(**changes).read(store)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"no json", b"\xff\xfe"])
def test_what_is_no_manifest_is_named(report, store, content):
    report.put("manifest.json", content)
    with pytest.raises(InventoryInvalid, match="no manifest of an S3 inventory"):
        report.read(store)


def test_a_missing_manifest_is_named(report, store):
    with pytest.raises(ObjectNotFound, match=r"manifest\.json"):
        report.read(store)


WHOLE = written([row(f"{number}.jpg") for number in range(2000)])


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (WHOLE[: len(WHOLE) // 2], "damaged or cut"),
        (WHOLE[:-4], "damaged or cut"),
        (b"no gzip", "damaged or cut"),
        (compressed(b'"raw","a.jpg\n'), "not a row"),
        (compressed(b'"raw"\n'), "not a row"),
        (compressed(b"\xff\xfe,\xff\n"), "not a row"),
        (written([row("a.jpg", size="many")]), "line 1: not a row"),
        (written([row("a.jpg"), row("b.jpg", modified="yesterday")]), "line 2: not a row"),
        (
            written([row("a.jpg"), row("b.jpg", bucket="clean")]),
            "line 2: it has the bucket",
        ),
    ],
)
def test_a_file_that_is_cut_or_damaged_is_named_and_nothing_is_used(
    report, store, content, complaint
):
    report.add([row("good.jpg")])
    report.add(None, content)
    with pytest.raises(InventoryInvalid, match=complaint):
        report.write().read(store)


def test_a_file_that_was_exchanged_is_named(report, store):
    report.add([row("a.jpg")])
    report.put("data/0.csv.gz", written([row("b.jpg")]))
    with pytest.raises(InventoryInvalid, match="differs from its MD5"):
        report.write().read(store)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"size": 7}, "the manifest states another number"),
        ({"MD5checksum": "0" * 32}, "differs from its MD5"),
        ({"MD5checksum": 7}, "differs from its MD5"),
    ],
)
def test_a_file_that_is_not_as_the_manifest_states_is_named(report, store, changes, complaint):
    report.add([row("a.jpg")])
    report.files[0] |= changes
    with pytest.raises(InventoryInvalid, match=complaint):
        report.write().read(store)


@pytest.mark.parametrize("name", ["data.csv.gz", "manifest.json"])
def test_an_empty_file_is_no_inventory_without_objects(report, store, name):
    report.put("data.csv.gz", b"")
    report.files.append({"key": report.place + "data.csv.gz"})
    with pytest.raises(InventoryInvalid, match="is empty, and so damaged or cut"):
        report.write().read(store, key=name)


def test_a_missing_file_says_who_acts(report, store):
    report.add([row("a.jpg")])
    report.files[0]["key"] += ".gone"
    with pytest.raises(InventoryInvalid, match="is missing, and the manifest names it: restore it"):
        report.write().read(store)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("manifest.json", "is empty, because it names no file"),
        ("jobs.csv", "is empty, because no row of an object is in its files"),
        ("jobs.csv.gz", "is empty, because no row of an object is in its files"),
    ],
)
def test_an_empty_inventory_of_sources_is_named(
    veil, environment, unattended, report, place, name, reason
):
    report.put("jobs.csv", b"")
    report.put("jobs.csv.gz", compressed(b""))
    report.write()
    done = veil(
        "backfill", f"s3://raw/{place}", "--inventory", f"s3://other/{report.place}{name}",
        environment={**environment, **unattended.environment},
    )  # fmt: skip
    assert done.returncode == 1
    assert f"{report.place}{name}" in done.stderr
    assert reason in done.stderr


@pytest.mark.parametrize("variable", ["TMPDIR", "SQLITE_TMPDIR"])
def test_a_folder_for_the_rows_that_does_not_exist_is_refused(
    report, store, monkeypatch, tmp_path, variable
):
    report.add([row("a.jpg")])
    report.write()
    monkeypatch.setenv(variable, str(tmp_path / "absent"))
    with pytest.raises(SettingsInvalid, match=f"{variable}: .*absent is no folder that this user"):
        report.read(store)
    (tmp_path / "absent").mkdir()
    assert keys_of(report.read(store)) == ["a.jpg"]


@pytest.mark.parametrize("is_compressed", [False, True])
def test_a_manifest_of_batch_operations_is_read(report, store, is_compressed):
    lines = b'raw,b+c%2B%C3%BC.jpg\r\n"raw",a.jpg,version\n\n'
    name = "jobs.csv.gz" if is_compressed else "jobs.csv"
    report.put(name, compressed(lines) if is_compressed else lines)
    inventory = report.read(store, "raw", "clean", key=name)
    assert keys_of(inventory) == ["a.jpg", "b c+ü.jpg"]
    assert {stored.etag for stored in inventory.list()} == {""}
    report.put("foreign.csv", b"raw,a.jpg\nelse,b.jpg\n")
    with pytest.raises(InventoryInvalid, match="line 2: it has the bucket 'else'"):
        report.read(store, key="foreign.csv")


def test_pictures_are_compared_as_with_a_listing(report, store, archive_at, place):
    archive = archive_at(store, place)
    sources = {}
    for key in ("done.jpg", "stale.jpg", "new.jpg"):
        sources[key] = archive.source(key)
    archive.done("done.jpg", sources["done.jpg"].etag)
    report.add([row(place + key, etag=sources[key].etag) for key in sources])
    listed = list(compare(store, archive.places, None))
    store.list_as("raw", report.write().read(store).list)
    try:
        assert [(each.key, each.is_current) for each in compare(store, archive.places, None)] == [
            (each.key, each.is_current) for each in listed
        ]
    finally:
        store._listers.clear()


def sent(queue):
    """Return the addresses of the messages on the queue of backfills, oldest first."""
    messages = map(json.loads, reversed(queue.client.lrange("backfill", 0, -1)))
    return [message["headers"]["argsrepr"] for message in messages]


def test_a_backfill_takes_its_keys_from_an_inventory_and_continues_where_it_was(
    veil, unattended, environment, report, place
):
    keys = [f"{place}{number:03}.jpg" for number in range(50)]
    report.add([row(key) for key in random.Random(0).sample(keys, 50)])
    report.add([row("elsewhere/a.jpg")])
    report.write()
    variables = {**environment, **unattended.environment}
    command = ["backfill", f"s3://raw/{place}", "--inventory", report.uri, "--json"]

    first = veil(*command, "--limit", "20", environment=variables)
    assert first.returncode == 0, first.stderr
    done = veil(*command, environment=variables)

    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["listed"], summary["enqueued"]) == (50, 50)
    assert [any(key in line for line in sent(unattended)) for key in keys] == [True] * 50
    again = veil(*command, environment=variables)
    assert json.loads(again.stdout.splitlines()[-1])["newly_enqueued"] == 0


def test_an_inventory_without_a_key_below_the_prefix_is_no_success(
    veil, environment, unattended, report, place
):
    report.add([row("elsewhere/a.jpg")])
    report.write()
    done = veil(
        "backfill", f"s3://raw/{place}", "--inventory", report.uri,
        environment={**environment, **unattended.environment},
    )  # fmt: skip
    assert done.returncode == 1
    assert "no object below" in done.stderr


def test_times_select_only_where_the_inventory_has_them(
    veil, environment, unattended, report, place
):
    report.add(None, written([["raw", f"{place}a.jpg"]]))
    report.write(fileSchema="Bucket, Key")
    done = veil(
        "backfill", f"s3://raw/{place}", "--inventory", report.uri, "--since", "2026-01-01",
        environment={**environment, **unattended.environment},
    )  # fmt: skip
    assert done.returncode == 2
    assert "no LastModifiedDate: leave out --since" in done.stderr


def test_reconcile_reads_inventories_of_sources_and_outputs(
    veil, environment, unattended, raw, report, place
):
    raw.put(f"{place}a.jpg", b"a")
    raw.put(f"{place}b.jpg", b"b")
    report.add([row(f"{place}a.jpg")])
    report.write()
    outputs = Report(report.client, place + "outputs/")
    outputs.add([row(f"{place}old.jpg", bucket="clean")])
    outputs.write(sourceBucket="clean")
    done = veil(
        "reconcile", f"s3://raw/{place}", "--json",
        "--inventory", report.uri, "--inventory", outputs.uri,
        environment={**environment, **unattended.environment},
    )  # fmt: skip
    assert done.returncode == 1
    findings = [json.loads(line) for line in done.stdout.splitlines()]
    # What came after the inventory is not in it, and what is gone since is no finding.
    assert [each.get("source") for each in findings[:-1]] == [f"s3://raw/{place}a.jpg"]
    assert findings[-1]["summary"]["missing"] == 1


def test_two_inventories_of_a_bucket_are_refused(veil, environment, unattended, report, place):
    report.add([row(f"{place}a.jpg")])
    report.write()
    done = veil(
        "backfill", f"s3://raw/{place}", "--inventory", report.uri, "--inventory", report.uri,
        environment={**environment, **unattended.environment},
    )  # fmt: skip
    assert done.returncode == 2
    assert "two inventories of raw" in done.stderr


def test_the_policy_of_producers_reads_inventories(veil, unattended, account):  # noqa: F811
    own = Report(account.client, "")
    own.manifest |= {
        "sourceBucket": account.raw,
        "destinationBucket": f"arn:aws:s3:::inventory-{account.name}",
    }
    content = written([row("a.png", bucket=account.raw)])
    bucket = f"inventory-{account.name}"
    account.client.put_object(Bucket=bucket, Key="0.csv.gz", Body=content)
    own.files.append({"key": "0.csv.gz", "size": len(content)})
    account.client.put_object(Bucket=bucket, Key="m.json", Body=json.dumps(own.manifest).encode())
    command = ["backfill", f"s3://{account.raw}", "--inventory", f"s3://{bucket}/m.json"]
    variables = {**unattended.environment, **account.environment}
    with account.enforced("producer"):
        assert veil(*command, environment=variables).returncode == 0
    with account.enforced("producer", "ReadInventories", "s3:GetObject"):
        done = veil(*command, environment=variables)
    assert done.returncode != 0
    assert "denies access" in done.stderr


def keys_a_second_of_list(store, raw, place):
    """Return the rate at which the local store lists the keys below a prefix."""
    prefix = f"{place}listed/"
    with ThreadPoolExecutor(16) as pool:
        names = [f"{prefix}{number:09}.jpg" for number in range(LISTED)]
        list(pool.map(lambda name: raw.put(name, b"picture"), names))
    began = time.monotonic()
    assert sum(1 for _ in store.list(raw.name, prefix)) == LISTED
    return LISTED / (time.monotonic() - began)


def test_a_large_inventory_is_enqueued_with_flat_memory(
    programs, environment, unattended, report, place, store, raw
):
    """A thread takes messages, so that Redis stays small. The time includes its pauses.

    From LARGE on, the rate at which the local store lists keys is printed beside it.
    """
    beside = ""
    if KEYS >= LARGE:
        beside = f" (LIST: {keys_a_second_of_list(store, raw, place):,.0f}/s)"
    numbers = list(range(KEYS))
    random.Random(1).shuffle(numbers)
    for start in range(0, KEYS, 100_000):
        part = numbers[start : start + 100_000]
        report.add([row(f"{place}{number:09}.jpg", etag=f"{number:032x}") for number in part])
    report.write()
    ended = threading.Event()
    taken = 0

    def drain():
        nonlocal taken
        while not ended.wait(0.01):
            if (depth := unattended.client.llen("backfill")) > 10_000:
                taken += depth - 5_000
                unattended.client.ltrim("backfill", 0, 4_999)

    drainer = threading.Thread(target=drain)
    drainer.start()
    began = time.monotonic()
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", MEASURED, programs / "veil", "backfill", f"s3://raw/{place}",
             "--inventory", str(report.uri), "--json", "--quiet"],
            env={**os.environ, **environment, **unattended.environment},
            stdout=subprocess.PIPE,
        )  # fmt: skip
        with process.stdout as pipe:
            output = pipe.read()
        process.wait()
    finally:
        ended.set()
        drainer.join()
    seconds = time.monotonic() - began
    *_, last, resident = output.splitlines()
    summary, mebibytes = json.loads(last), int(resident) / 1024
    print(f"{KEYS:,} keys, {KEYS / seconds:,.0f}/s{beside}, {mebibytes:,.0f} MiB at most")
    assert (summary["listed"], summary["enqueued"]) == (KEYS, KEYS)
    assert taken + unattended.client.llen("backfill") == KEYS
    assert mebibytes < 400
