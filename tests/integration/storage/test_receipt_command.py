"""`veil receipt verify`: its findings in a store of workers, and in one that somebody changed."""

import contextlib
import gc
import hashlib
import io
import json
import struct
import tracemalloc
from datetime import timedelta
from functools import cache

import numpy as np
import pytest
from PIL import Image

from tasks.addresses import ObjectUri
from tasks.bulk.verify import Audit, Disposal
from tasks.errors import InvalidRequest, StorageRejected, StorageUnavailable
from tasks.messages import AnonymizeRequest
from tasks.routes import Route, Routes
from tasks.signatures import Key
from tasks.storage import receipts
from tasks.storage.marks import Marks
from tasks.storage.receipts import Receipt
from tasks.storage.s3 import ObjectStore, OpenObject, StoredObject
from tests.pipelines import run as run_pipeline
from worker.anonymizer import Anonymizer, Limits
from worker.bootstrap import build_anonymizer
from worker.commands.receipt import comparison
from worker.detection.faces import Detections
from worker.images import deep
from worker.masking.regions import MaskStyle
from worker.pipeline import Pipeline
from worker.settings import WorkerSettings

RECIPE = "5a38d4c65c2c5ab0"
SECONDS = 30.0
DELETED = (
    "4 sources {}, 2 of them of outputs with objects that a rule or an exempt area leaves visible"
)


class Finds:
    """A detector that finds the same boxes in every picture."""

    def __init__(self, *boxes):
        self.boxes = np.array(boxes, np.float32).reshape(-1, 4)

    def detect(self, picture):
        return Detections(self.boxes, np.full(len(self.boxes), 0.9, np.float32))


@cache
def recipe_of_settings():
    return build_anonymizer(WorkerSettings()).recipe


def pipeline(store, route, *boxes, hold=False, key=None):
    return Pipeline(
        store=store,
        anonymizer=Anonymizer(
            detector=Finds(*boxes),
            style=MaskStyle("surround", 1.0, 0.0),
            limits=Limits(1 << 20, 1 << 20, SECONDS),
            hold_without_faces=hold,
            recipe=recipe_of_settings(),
        ),
        routes=Routes((route,)),
        keys=[key] if key else [],
    )


def picture(seed=0):
    target = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 255, (40, 40, 3), np.uint8)
    Image.fromarray(noise).save(target, "PNG")
    return target.getvalue()


@pytest.fixture
def route(place):
    return Route.parse(f"s3://raw/{place}=s3://clean/{place}")


@pytest.fixture
def make(store, raw, place, route):
    """Put a source and have its output made, with one face."""

    def made(
        key,
        content=None,
        hold=False,
        boxes=((5, 5, 20, 25),),
        destination=None,
        sign=None,
        **options,
    ):
        raw.put(place + key, picture() if content is None else content)
        request = {
            "source": raw.uri(place + key),
            "options": options or None,
            "destination": destination,
        }
        return run_pipeline(
            pipeline(store, route, *boxes, hold=hold, key=sign), AnonymizeRequest.parse(**request)
        )

    return made


@pytest.fixture
def verify(veil, s3, route):
    """Run the command, by default on everything below the route's destination."""
    settings = {**s3.environment(), "VEIL_ROUTES": str(route)}

    def run(*arguments, **environment):
        addresses = [argument for argument in arguments if str(argument).startswith("s3://clean")]
        command = arguments if addresses else (str(route.destination), *arguments)
        return veil("receipt", "verify", *command, environment={**settings, **environment})

    return run


def told(done):
    """Return the states by key, and the summary, of a run with --json."""
    *verdicts, last = [json.loads(line) for line in done.stdout.splitlines()]
    return {verdict["output"].rpartition("/")[2]: verdict["states"] for verdict in verdicts}, last[
        "summary"
    ]


def receipt_of(clean, place, key):
    """Return the key of the receipt of an output."""
    (name,) = (
        name
        for name in clean.keys(f"{place}{receipts.FOLDER}")
        if receipts.parse(name.removeprefix(f"{place}{receipts.FOLDER}")).key == key
    )
    return name


def test_what_workers_made_is_ok(make, verify, clean, place):
    for key in ("a.jpg", "b/c d.jpg", "k" * 200 + ".jpg"):
        make(key)
    make("wanted.jpg", extra=[[0, 0, 5, 5]])
    make("held.jpg", boxes=(), hold=True)
    done = verify("--json")
    assert done.returncode == 0, done.stdout
    states, summary = told(done)
    assert states == {
        "a.jpg": ["ok"],
        "c d.jpg": ["ok"],
        "k" * 200 + ".jpg": ["ok"],
        "wanted.jpg": ["ok"],
        "held.jpg": ["held"],
    }
    assert summary.pop("seconds") > 0
    assert summary == {"checked": 5, "good": 5, "states": {"ok": 4, "held": 1}}


def test_whatever_was_changed_since_is_told(make, verify, raw, clean, place, portrait):
    keys = (
        "good",
        "source gone",
        "source changed",
        "output differs",
        "other size",
        "faces",
        "no receipt",
        "output gone",
        "original",
    )
    for key in keys:
        make(key)
    clean.put(
        place + "original",
        raw.get(place + "original"),
        Metadata=clean.head(place + "original")["Metadata"],
    )
    raw.put(place + "copied", picture(7))
    clean.put(place + "copied", picture(7))
    raw.client.delete_object(Bucket=raw.name, Key=place + "source gone")
    raw.put(place + "source changed", picture(1))
    for key, change in {
        "output differs": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
        "other size": lambda content: content + b"\0",
    }.items():
        clean.put(
            place + key,
            change(clean.get(place + key)),
            Metadata=clean.head(place + key)["Metadata"],
        )
    metadata = {**clean.head(place + "faces")["Metadata"], receipts.FACES: "0"}
    clean.put(place + "faces", clean.get(place + "faces"), Metadata=metadata)
    clean.client.delete_object(Bucket=clean.name, Key=receipt_of(clean, place, "no receipt"))
    clean.client.delete_object(Bucket=clean.name, Key=place + "output gone")
    clean.put(place + "somebody's", portrait)

    done = verify("--json")

    assert done.returncode == 1
    states, summary = told(done)
    assert states == {
        "good": ["ok"],
        "source gone": ["ok", "source gone"],
        "source changed": ["source changed"],
        "output differs": ["output differs"],
        "other size": ["output differs"],
        "faces": ["metadata differs"],
        "no receipt": ["no receipt"],
        "output gone": ["output gone"],
        "somebody's": ["no receipt"],
        "original": ["original"],
        "copied": ["original"],
    }
    assert (summary["checked"], summary["good"]) == (11, 2)

    first, also, *advice = verify().stderr.splitlines()
    assert first.startswith("11 verified: 2 original, 2 ok, ")
    parts = first.removeprefix("11 verified: ").rpartition(" in ")[0].split(", ")
    assert sum(int(part.split()[0]) for part in parts) == 11
    assert also == "also: 1 source gone"
    assert [line.partition(": ")[0] for line in advice] == [
        "original",
        "no receipt, output differs, metadata differs",
        "output gone, source changed",
    ]


def test_for_people_a_verdict_is_a_line_and_the_summary_is_apart(make, verify, clean, place):
    make("a.jpg")
    make("b.jpg")
    clean.put(place + "b.jpg", b"other", Metadata=clean.head(place + "b.jpg")["Metadata"])
    done = verify()
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        f"ok               {clean.uri(place)}a.jpg",
        f"output differs   {clean.uri(place)}b.jpg",
    ]
    summary, advice = done.stderr.splitlines()
    assert summary.startswith("2 verified: 1 ok, 1 output differs in ")
    assert advice.startswith("output differs: remove the object if its source is still there")


def test_an_output_a_receipt_or_a_place_can_be_named(make, verify, clean, place):
    for key in ("a.jpg", "a.jpg.bak", "b/c.jpg"):
        make(key)
    clean.client.delete_object(Bucket=clean.name, Key=place + "a.jpg.bak")
    for address, expected in {
        "a.jpg": {"a.jpg": ["ok"]},
        receipt_of(clean, place, "a.jpg").removeprefix(place): {"a.jpg": ["ok"]},
        "a.jpg.bak": {"a.jpg.bak": ["output gone"]},
        receipt_of(clean, place, "a.jpg.bak").removeprefix(place): {"a.jpg.bak": ["output gone"]},
        "b": {"c.jpg": ["ok"]},
        "b/": {"c.jpg": ["ok"]},
    }.items():
        assert told(verify(clean.uri(place + address), "--json"))[0] == expected, address
    several = verify(clean.uri(place + "a.jpg"), clean.uri(place + "b/"), "--json")
    assert told(several)[0] == {"a.jpg": ["ok"], "c.jpg": ["ok"]}


def test_the_receipt_of_what_was_made_anew_is_superseded(make, verify, clean, place):
    make("a.jpg")
    older = receipt_of(clean, place, "a.jpg")
    content = clean.get(older)
    make("a.jpg", picture(2))
    clean.put(older, content)  # As if the worker had died before it removed this receipt.
    assert told(verify("--json"))[0] == {"a.jpg": ["ok"]}
    done = verify(clean.uri(older), "--json")
    assert (done.returncode, told(done)[0]) == (0, {"a.jpg": ["superseded"]})


def test_of_an_output_that_was_put_elsewhere_the_source_has_to_be_named(
    make, verify, clean, raw, place
):
    make("2026/a.jpg", destination=f"s3://clean/{place}again/a.jpg")
    there = clean.uri(place + "again")
    assert told(verify(there, "--json"))[0] == {"a.jpg": ["ok", "source unknown"]}
    assert told(verify(there, "--source", raw.uri(place + "2026"), "--json"))[0] == {
        "a.jpg": ["ok"]
    }
    raw.put(place + "2026/a.jpg", picture(3))
    assert verify(there, "--source", raw.uri(place + "2026")).returncode == 1


def test_with_a_key_receipts_have_to_be_signed(make, verify, clean, place):
    new, old, lost = (Key.parse(letter * 32) for letter in "nol")
    keys = {"new": new, "old": old, "lost": lost, "unsigned": None, "forged": new, "renamed": lost}
    for name, key in keys.items():
        make(name, sign=key)
    make("held", boxes=(), hold=True)

    def change(name, **fields):
        where = receipt_of(clean, place, name)
        clean.put(where, json.dumps(json.loads(clean.get(where)) | fields).encode())

    change("forged", faces=[])
    clean.put(
        place + "forged",
        clean.get(place + "forged"),
        Metadata=clean.head(place + "forged")["Metadata"] | {receipts.FACES: "0"},
    )
    signature = json.loads(clean.get(receipt_of(clean, place, "renamed")))["signature"]
    change("renamed", signature=signature | {"key": new.id})

    done = verify("--json", VEIL_RECEIPT_KEY="n" * 32 + "," + "o" * 32)

    assert done.returncode == 1
    assert told(done)[0] == {
        "new": ["ok"],
        "old": ["ok"],
        "lost": ["unknown key"],
        "unsigned": ["unsigned"],
        "forged": ["bad signature"],
        "renamed": ["bad signature"],
        "held": ["unsigned", "held"],
    }
    # Without a key nobody can tell which source a keyed mark is of.
    states, _ = told(verify("--json"))
    assert states == {
        "new": ["unknown key"],
        "old": ["unknown key"],
        "lost": ["unknown key"],
        "forged": ["unknown key"],
        "renamed": ["unknown key"],
        "unsigned": ["ok"],
        "held": ["held"],
    }


@pytest.mark.parametrize(
    ("address", "code", "word"),
    [
        ("nothing/", 1, "no output and no receipt"),
        ("nothing.jpg", 1, "no output and no receipt"),
        (".veil/", 2, "name the output"),
        (".veil/receipts/a.jpg", 2, "name the output"),
        (".veil/receipts-of-long-keys/00.json", 2, "name the output"),
    ],
)
def test_where_there_is_nothing_to_verify_is_one_line(verify, clean, place, address, code, word):
    done = verify(clean.uri(place + address))
    assert done.returncode == code
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert word in line


def test_places_of_others_are_not_read(verify):
    done = verify("s3://clean-of-others/a")
    assert done.returncode == 2
    assert "no route" in done.stderr


def test_a_face_that_its_receipt_does_not_have_is_exposed(
    veil, worker, queue, environment, store, raw, clean, place, portrait
):
    found = queue.report(raw.put(place + "found.jpg", portrait))
    queue.report(raw.put(place + "exempt.jpg", portrait), options={"exempt": found["boxes_xyxy"]})
    raw.put(place + "missed.jpg", portrait)
    missing = pipeline(store, Route.parse("s3://raw=s3://clean"))
    run_pipeline(missing, AnonymizeRequest.parse(source=raw.uri(place + "missed.jpg")))
    command = ("receipt", "verify", clean.uri(place), "--json")
    assert veil(*command, environment=environment).returncode == 0
    done = veil(*command, "--redetect", environment=environment)
    assert done.returncode == 1, done.stderr
    states, _ = told(done)
    assert states == {
        "found.jpg": ["ok"],
        "exempt.jpg": ["ok", "objects visible"],
        "missed.jpg": ["face exposed"],
    }
    *verdicts, _ = map(json.loads, done.stdout.splitlines())
    exposed = {verdict["output"]: verdict["exposed"] for verdict in verdicts}
    (face,) = exposed.pop(clean.uri(place + "missed.jpg"))
    assert not any(exposed.values())
    assert face["box_xyxy"] == found["boxes_xyxy"][0]
    assert face["score"] == pytest.approx(found["lowest_score"], abs=0.001)

    plain = veil("receipt", "verify", clean.uri(place), "--redetect", environment=environment)
    box = ",".join(map(str, face["box_xyxy"]))
    assert f"missed.jpg  {box} (score {face['score']:.2f})" in plain.stdout
    assert "veil enqueue SOURCE --extra X1,Y1,X2,Y2" in plain.stderr
    hide = ("enqueue", raw.uri(place + "missed.jpg"), "--extra", box, "--wait")
    assert veil(*hide, environment=environment).returncode == 0
    assert veil(*command, "--redetect", environment=environment).returncode == 0


# --- deleting sources


@pytest.fixture
def some_of_each(make, raw, clean, store, place):
    """Pictures of which only `good`, `no face` and `asked` may lose their source."""
    for key in ("good", "source changed", "output differs", "no receipt", "flagged"):
        make(key)
    make("no face", boxes=())
    make("asked", extra=[[0, 0, 5, 5]])
    make("held", boxes=(), hold=True)
    raw.put(place + "not done", picture())
    raw.put(place + "source changed", picture(1))
    clean.put(
        place + "output differs",
        b"other",
        Metadata=clean.head(place + "output differs")["Metadata"],
    )
    clean.client.delete_object(Bucket=clean.name, Key=receipt_of(clean, place, "no receipt"))
    where = receipt_of(clean, place, "flagged")
    clean.put(
        where,
        clean.get(where).replace(b'"reason": null', b'"reason": "faces still found in the output"'),
    )
    return {key.removeprefix(place) for key in raw.keys(place)}


def test_only_verified_sources_are_deleted_and_only_if_asked(some_of_each, verify, raw, place):
    def left():
        return {key.removeprefix(place) for key in raw.keys(place)}

    verify("--json")
    rehearsed = told(verify("--delete-source", "--dry-run", "--json"))[0]
    assert left() == some_of_each

    done = verify("--delete-source", "--yes", "--json")

    assert done.returncode == 1  # Some outputs have a finding.
    states = told(done)[0]
    deleted = {"good", "no face", "asked"}
    assert {key for key, said in states.items() if "source deleted" in said} == deleted
    assert {key for key, said in rehearsed.items() if "source due" in said} == deleted
    assert states["flagged"] == ["ok", "source kept: needs a review"]
    assert left() == some_of_each - deleted
    again = told(verify("--delete-source", "--yes", "--json"))[0]
    assert all(again[key] == ["ok", "source gone"] for key in deleted)


def test_without_a_confirmation_the_sources_to_be_deleted_are_only_counted(
    make, verify, raw, clean, place
):
    for key in ("a.jpg", "b.jpg"):
        make(key)
    make("clear.jpg", exempt=[[0, 0, 40, 40]])
    make("small.jpg", rules={"FACE": {"smallest": 99999}})
    with pytest.raises(InvalidRequest, match="ignore every label"):
        make("ignored.jpg", rules={"FACE": {"ignore": True}})
    clean.put(place + "foreign.jpg", b"foreign")
    raw.put(place + "foreign.jpg", picture(9))
    done = verify("--delete-source")
    assert done.returncode == 1
    first, *rest = done.stderr.splitlines()
    assert first.startswith("5 verified: 4 ok, 1 no receipt in ")
    assert rest[:2] == ["also: 2 objects visible", DELETED.format("would be deleted")]
    assert rest[-1] == "veil: nothing was deleted: add --yes to delete these sources"
    assert len(raw.keys(place)) == 6

    clean.client.delete_object(Bucket=clean.name, Key=place + "foreign.jpg")
    assert verify("--delete-source").returncode == 1
    assert verify("--delete-source", "--dry-run").returncode == 0
    done = verify("--delete-source", "--yes")
    assert done.returncode == 0
    assert done.stderr.splitlines()[1:] == ["also: 2 objects visible", DELETED.format("deleted")]
    assert raw.keys(place) == [place + "foreign.jpg", place + "ignored.jpg"]
    assert verify("--delete-source").returncode == 0  # There is nothing to confirm.


def test_a_deletion_tells_outputs_of_another_recipe_than_that_of_the_settings(make, verify, place):
    for key in ("a.jpg", "b.jpg"):
        make(key)
    other = {"VEIL_RULES": "FACE: smallest=9"}
    assert "other recipe" not in verify("--delete-source").stderr
    assert told(verify("--json", **other))[0] == {
        key: ["ok", "objects visible"] for key in ("a.jpg", "b.jpg")
    }
    done = verify("--delete-source", "--dry-run", **other)
    assert done.returncode == 0
    assert "2 of them of outputs of another recipe than that of these settings" in done.stderr
    assert "other recipe" in done.stdout.splitlines()[0]


def test_what_is_young_is_kept(make, verify, raw, place):
    make("a.jpg")
    done = verify("--delete-source", "--yes", "--older-than", 1, "--json")
    assert (done.returncode, told(done)[0]) == (0, {"a.jpg": ["ok", "source kept: too young"]})
    assert raw.keys(place)


def test_a_picture_that_several_recipes_held_is_told_once_by_its_last_receipt(
    archive_at, verify, store, clean, place
):
    archive = archive_at(store, place)
    etags = {key: archive.source(key).etag for key in ("a.jpg", "b.jpg")}
    days = {"0" * 16: 1, "1" * 16: 3, "2" * 16: 2}
    for key, etag in etags.items():
        for recipe, day in days.items():
            created = f"2026-01-0{day}T00:00:00.000+00:00"
            archive.receipt(key, etag, recipe, status="held", created=created)
    for addresses in ((), [str(archive.destination(key)) for key in etags]):
        done = verify("--json", *addresses)
        assert done.returncode == 0
        *verdicts, last = [json.loads(line) for line in done.stdout.splitlines()]
        assert [verdict["receipt"].split(".")[-3] for verdict in verdicts] == ["1" * 16] * 2
        assert last["summary"]["states"] == {"held": 2}
    archive.store.delete(archive.places.source.join("a.jpg"))
    states, summary = told(verify("--json"))
    assert states == {"a.jpg": ["held", "source gone"], "b.jpg": ["held"]}
    assert summary["checked"] == 2


def test_a_held_picture_is_told_once_also_without_its_key(make, verify, raw, place):
    keys = {"VEIL_RECEIPT_KEY": "n" * 32}
    for key in ("a.jpg", "gone.jpg"):
        for seed in range(2):
            make(key, picture(seed), boxes=(), hold=True, sign=Key.parse("n" * 32))
    raw.client.delete_object(Bucket=raw.name, Key=place + "gone.jpg")
    states, summary = told(verify("--json", **keys))
    assert states == {"a.jpg": ["held"], "gone.jpg": ["held", "source gone"]}
    assert summary["checked"] == 2
    states, summary = told(verify("--json", VEIL_RECEIPT_KEY="o" * 32))
    assert states == {key: ["unknown key", "held"] for key in ("a.jpg", "gone.jpg")}
    assert summary["checked"] == 2


def test_the_source_of_a_picture_that_was_held_since_is_kept(make, verify, raw, place):
    for key in ("held since.png", "released.png"):
        make(key)
        assert make(key, boxes=(), hold=True, region="full").status == "held"
    make("released.png", extra=[[0, 0, 5, 5]])
    make("held first.png", boxes=(), hold=True)
    make("held first.png")

    done = verify("--delete-source", "--yes", "--json")

    assert (done.returncode, told(done)[0]) == (
        0,
        {
            "held since.png": ["ok", "source kept: later receipt"],
            "released.png": ["ok", "source deleted"],
            "held first.png": ["ok", "source deleted"],
        },
    )
    assert raw.keys(place) == [place + "held since.png"]


def at_once():
    return Disposal(timedelta(0), is_rehearsal=False, compare=comparison(WorkerSettings()))


def test_a_source_that_is_replaced_at_the_last_moment_is_kept(make, store, raw, place, route):
    make("a.jpg")

    class Busy(ObjectStore):
        """A store in which somebody else uploads the source again just before it is deleted."""

        def delete_version(self, uri, etag):
            if not uri.key.endswith("probe"):
                raw.put(place + "a.jpg", picture(4))
            return store.delete_version(uri, etag)

    audit = Audit(
        Busy(raw.client),
        Routes((route,)),
        SECONDS,
        disposal=Disposal(timedelta(0), is_rehearsal=False, compare=comparison(WorkerSettings())),
    )
    assert [verdict.states for verdict in audit.verdicts(str(route.destination))] == [
        ("source changed",)
    ]
    assert raw.get(place + "a.jpg") == picture(4)


def test_a_store_that_ignores_conditions_loses_nothing(make, raw, place, route):
    make("a.jpg")

    class Careless(ObjectStore):
        """A store that deletes in spite of the condition."""

        def delete_version(self, uri, etag):
            self.delete(uri)
            return True

    audit = Audit(
        Careless(raw.client),
        Routes((route,)),
        SECONDS,
        disposal=Disposal(timedelta(0), is_rehearsal=False, compare=comparison(WorkerSettings())),
    )
    with pytest.raises(StorageRejected, match="lifecycle rule"):
        list(audit.verdicts(str(route.destination)))
    assert raw.keys(place) == [place + "a.jpg"]


def as_written(form, pixels, **options):
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, form, **options)
    return target.getvalue()


def smooth(size=(60, 80)):
    y, x = np.mgrid[: size[0], : size[1]]
    return np.stack([x * 3, y * 4, x + y], axis=-1).clip(0, 255).astype(np.uint8)


def white_is_zero(pixels):
    """Return a gray TIFF of 16 bits in which 0 is white."""
    content = deep.write_tiff([65535 - pixels.astype(np.uint16) * 257], None)
    entry = struct.pack("<HHI", 262, 3, 1)
    at = content.index(entry) + len(entry)
    return content[:at] + struct.pack("<H", 0) + content[at + 2 :]


def raw_with_thumbnail():
    """Return a TIFF that other programs show as 80 x 60, and a simple reader as 16 x 12."""
    small = bytearray(deep.write_tiff([smooth((12, 16))], None))
    large = deep.write_tiff([smooth()], None)
    at = len(small) + len(small) % 2
    shifted = bytearray(large)
    (directory,) = struct.unpack_from("<I", large, 4)
    (count,) = struct.unpack_from("<H", large, directory)
    for number in range(count):
        place = directory + 2 + 12 * number
        tag, kind, amount, value = struct.unpack_from("<HHII", large, place)
        if tag == 273 or amount * {3: 2, 4: 4}[kind] > 4:
            struct.pack_into("<I", shifted, place + 8, value + at)
    (first,) = struct.unpack_from("<I", small, 4)
    (count,) = struct.unpack_from("<H", small, first)
    entries = bytes(small[first + 2 : first + 2 + 12 * count]) + struct.pack(
        "<HHII", 330, 4, 1, at + directory
    )
    content = bytes(small).ljust(at, b"\0") + bytes(shifted)
    content += struct.pack("<H", count + 1) + entries + bytes(4)
    return content[:4] + struct.pack("<I", len(content) - len(entries) - 6) + content[8:]


@pytest.fixture
def publish(raw, clean, place, route):
    """Store a source and an output with a receipt of both, as a faulty worker would."""

    def stored(key, source, output, boxes=(), **more):
        raw.put(place + key, source)
        etag = raw.head(place + key)["ETag"].strip('"')
        made = receipts.ReceiptName.of(key, recipe_of_settings(), etag)
        fields = {
            "status": "anonymized",
            "created": "",
            "format": "",
            "width": 1,
            "height": 1,
            "seconds": {},
        }
        fields |= {
            "source_etag": etag,
            "source_bytes": len(source),
            "output_bytes": len(output),
            "recipe": recipe_of_settings(),
        }
        fields |= {"source_sha256": hashlib.sha256(source).hexdigest(), "made_with": {}}
        fields |= {"output_sha256": hashlib.sha256(output).hexdigest()}
        receipt = Receipt(
            **fields, faces=[{"box_xyxy": box, "score": 0.9} for box in boxes], **more
        )
        clean.put(receipts.uri(route.destination, made).key, receipt.to_bytes())
        metadata = {
            receipts.SOURCE: Marks([]).source(ObjectUri.parse(raw.uri(place + key))),
            receipts.SOURCE_ETAG: etag,
            receipts.RECIPE: recipe_of_settings(),
            receipts.FACES: str(len(boxes)),
        }
        clean.put(place + key, output, Metadata=metadata)

    return stored


def test_the_source_of_an_output_that_does_not_show_it_is_kept(publish, verify, raw, clean, place):
    pixels, gray = smooth(), smooth()[..., 1]
    png, jpeg = as_written("PNG", pixels), as_written("JPEG", pixels)
    face = [20, 15, 40, 35]
    filled = pixels.copy()
    filled[15:35, 20:40] = 0
    publish("alike.png", png, png)
    publish("alike.jpg", jpeg, as_written("JPEG", pixels, quality=60))
    publish("hidden.png", png, as_written("PNG", filled), boxes=[face])
    publish("asked.png", png, as_written("PNG", filled), options={"extra": [face]})
    kept = {
        "black.png": (png, as_written("PNG", pixels * 0)),
        "black.jpg": (jpeg, as_written("JPEG", pixels * 0)),
        "negative.jpg": (jpeg, as_written("JPEG", 255 - pixels)),
        "negative.tif": (
            white_is_zero(gray), deep.write_tiff([65535 - gray * np.uint16(257)], None)
        ),
        "thumbnail.png": (png, as_written("PNG", smooth((12, 16)))),
        "thumbnail.dng": (raw_with_thumbnail(), deep.write_tiff([smooth((12, 16))], None)),
        "a page less.tif": (
            deep.write_tiff([pixels, pixels], None), deep.write_tiff([pixels], None)
        ),
        "hidden elsewhere.png": (png, as_written("PNG", filled)),
        "no picture.png": (png, b"no picture"),
        "another format.png": (png, jpeg),
    }  # fmt: skip
    for key, (source, output) in kept.items():
        publish(key, source, output)

    plain = told(verify("--json"))[0]
    rehearsed = verify("--delete-source", "--dry-run", "--json")
    done = verify("--delete-source", "--yes", "--json")

    alike = {"alike.png", "alike.jpg", "hidden.png", "asked.png"}
    assert {key for key, states in plain.items() if states == ["ok"]} == alike | set(kept)
    unlike = {key: ["output unlike source"] for key in kept}
    assert told(rehearsed)[0] == unlike | {key: ["ok", "source due"] for key in alike}
    states, summary = told(done)
    assert states == unlike | {key: ["ok", "source deleted"] for key in alike}
    assert (done.returncode, summary["good"]) == (1, len(alike))
    assert {key.removeprefix(place) for key in raw.keys(place)} == set(kept)
    assert set(kept) <= {key.removeprefix(place) for key in clean.keys(place)}


def test_a_download_that_breaks_off_does_not_end_the_command(make, store, raw, clean, place, route):
    for key in ("a.jpg", "b.jpg"):
        make(key)
    broken = []

    class Disturbed(ObjectStore):
        """A store that answers once that it is unavailable, for each output and each source."""

        def open(self, uri):
            if uri not in broken:
                broken.append(uri)
                raise StorageUnavailable(f"{uri}: 1 of 9 bytes arrived")
            return store.open(uri)

    audit = Audit(Disturbed(raw.client), Routes((route,)), SECONDS, disposal=at_once())
    states = [verdict.states for verdict in audit.verdicts(str(route.destination))]
    assert states == [("ok", "source deleted")] * 2
    assert len(broken) > 4


def test_an_output_that_is_replaced_at_the_last_moment_keeps_its_source(
    make, store, raw, clean, place, route
):
    make("a.jpg")

    def compare(output, source, receipt):
        raise AssertionError("an output that is not that of its receipt is compared with nothing")

    class Busy(ObjectStore):
        """A store in which somebody else replaces the output after it was verified."""

        def open(self, uri):
            if uri.bucket == "raw":
                clean.put(
                    place + "a.jpg", picture(5), Metadata=clean.head(place + "a.jpg")["Metadata"]
                )
            return store.open(uri)

    audit = Audit(
        Busy(raw.client), Routes((route,)), SECONDS, disposal=Disposal(timedelta(0), False, compare)
    )
    assert [verdict.states for verdict in audit.verdicts(str(route.destination))] == [
        ("output differs",)
    ]
    assert raw.keys(place)


@pytest.mark.parametrize("arguments", [("--dry-run",), ("--older-than", 3), ("--yes",)])
def test_a_flag_of_deletion_alone_is_refused(verify, arguments):
    done = verify(*arguments)
    assert done.returncode == 2
    assert "--delete-source" in done.stderr


class Simulated(ObjectStore):
    """A store of `count` outputs that match their receipts, and whose sources are gone."""

    def __init__(self, count):
        super().__init__(None)
        self.count = count
        self.source = "0" * 64

    def list(self, bucket, prefix="", after=""):
        for number in range(self.count):
            key = f"{number:09}.jpg"
            yield StoredObject(
                ObjectUri(bucket, f"{prefix}{key}.{RECIPE}.e.json" if prefix else key), "e", 1
            )

    @contextlib.contextmanager
    def open(self, uri):
        if uri.key.endswith(".json"):
            sha256 = hashlib.sha256(b"x").hexdigest()
            fields = {
                "status": "anonymized",
                "created": "",
                "source_etag": "e",
                "source_sha256": "",
                "source_bytes": 1,
            }
            fields |= {
                "output_sha256": sha256,
                "output_bytes": 1,
                "format": "PNG",
                "width": 1,
                "height": 1,
            }
            content = Receipt(
                **fields, recipe=RECIPE, faces=[], seconds={}, made_with={}
            ).to_bytes()
        else:
            content = b"x"
        metadata = {receipts.RECIPE: RECIPE, receipts.SOURCE_ETAG: "e", receipts.FACES: "0"}
        stored = StoredObject(uri, "e", len(content), metadata)
        yield OpenObject(stored, lambda *_: content, lambda _: hashlib.sha256(content).hexdigest())


def test_memory_does_not_grow_with_the_number_of_outputs():
    peaks = []
    for count in (150, 500, 2_000):  # The first run fills caches.
        audit = Audit(Simulated(count), Routes.parse("s3://raw=s3://clean"), SECONDS, threads=4)
        tracemalloc.start()
        checked = 0
        for verdict in audit.verdicts("s3://clean"):
            checked += verdict.is_good
            if checked % 250 == 0:
                gc.collect()  # The JSON encoder leaves a random number of cycles.
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert checked == count
    assert peaks[2] < 1.5 * peaks[1]
