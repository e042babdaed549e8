"""Objects beside the outputs are not trusted: they make no worker reveal or sign anything."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from tasks.bulk.backfill import Selection, new_run, rehearse
from tasks.bulk.places import Places
from tasks.bulk.reconcile import Only, Reconciliation
from tasks.bulk.verify import Audit
from tasks.errors import DestinationTaken, ImageTooLarge, OptionsUnusable
from tasks.messages import AnonymizeRequest
from tasks.routes import Route, Routes
from tasks.signatures import Key
from tasks.storage import receipts
from tasks.storage.receipts import Receipt, ReceiptName
from tests.pipelines import run as run_pipeline
from worker.anonymizer import Anonymizer, Limits
from worker.detection.faces import Detections
from worker.masking.regions import MaskStyle
from worker.pipeline import Pipeline

RECIPE, OLDER_RECIPE = "5a38d4c65c2c5ab0", "fedcba9876543210"
SECONDS = 30.0
TAKEN = "{} is in its output's place: remove it, or choose another destination"
KEY, OTHER = Key.parse("k" * 32), Key.parse("o" * 32)
EVERYTHING = Only()
FACE = (8, 8, 32, 32)
WHOLE = [[0, 0, 1000, 1000]]
FORGED_OPTIONS = [
    {"exempt": WHOLE},
    {"exempt": WHOLE, "extra": [[0, 0, 4, 4]]},
    {"method": "pixelate"},
    {"region": 0.5},
    {"release": "etag"},
]


class Finds:
    """A detector that finds the same boxes in every picture."""

    def __init__(self, *boxes):
        self.boxes = np.array(boxes, np.float32).reshape(-1, 4)

    def detect(self, picture):
        return Detections(self.boxes, np.full(len(self.boxes), 0.9, np.float32))


def picture(seed=0):
    target = io.BytesIO()
    noise = np.random.default_rng(seed).integers(1, 255, (40, 40, 3), np.uint8)
    Image.fromarray(noise).save(target, "PNG")
    return target.getvalue()


class Site:
    """Sources and outputs below a prefix, and the workers and commands that use them."""

    def __init__(self, store, raw, clean, place, redis):
        self.store, self.raw, self.clean, self.place, self.redis = store, raw, clean, place, redis
        self.route = Route.parse(f"s3://raw/{place}=s3://clean/{place}")

    def source(self, key="a.png", content=None):
        self.raw.put(self.place + key, picture() if content is None else content)
        return self.raw.head(self.place + key)["ETag"].strip('"')

    def run(
        self,
        key="a.png",
        *,
        sign=None,
        boxes=(FACE,),
        hold=False,
        options=None,
        recipe=RECIPE,
        **style,
    ):
        pipeline = Pipeline(
            store=self.store,
            anonymizer=Anonymizer(
                detector=Finds(*boxes),
                style=MaskStyle("fill", style.get("region", 0.7), 0.0),
                limits=Limits(1 << 22, 1 << 20, SECONDS),
                hold_without_faces=hold,
                recipe=recipe,
            ),
            routes=Routes((self.route,)),
            keys=[sign] if sign else [],
        )
        return run_pipeline(
            pipeline, AnonymizeRequest.parse(source=self.raw.uri(self.place + key), options=options)
        )

    def receipt_at(self, key="a.png"):
        """Return the keys of the receipts of an output."""
        listed = self.clean.keys(self.place + receipts.FOLDER)
        return [
            name
            for name in listed
            if receipts.parse(name.removeprefix(self.place + receipts.FOLDER)).key == key
        ]

    def receipt(self, key="a.png"):
        (name,) = self.receipt_at(key)
        return json.loads(self.clean.get(name))

    def write(self, fields, name):
        self.clean.put(name, fields if isinstance(fields, bytes) else json.dumps(fields).encode())

    def output(self, content, key="a.png", **metadata):
        """Replace an output, and keep or change its metadata."""
        kept = self.clean.head(self.place + key)["Metadata"]
        self.clean.put(self.place + key, content, Metadata=kept | metadata)

    def reconciliation(self, *keys, only=EVERYTHING, sources_deleted=False, recipe=RECIPE):
        places = Places.find(str(self.route.source), None, Routes((self.route,)), keys)
        return Reconciliation(self.store, places, recipe, self.redis, only, sources_deleted)

    def states(self, *keys, **more):
        """Return the finding about each picture that is not current."""
        return {
            finding.source.key.removeprefix(self.place): (finding.state, finding.reason)
            for finding in self.reconciliation(*keys, **more).findings()
        }

    def verified(self, *keys):
        audit = Audit(self.store, Routes((self.route,)), SECONDS, keys)
        return {
            verdict.output.key.removeprefix(self.place): verdict.states
            for verdict in audit.verdicts(str(self.route.destination))
        }

    def wanted(self, *keys):
        """Return the number of pictures that a backfill would put on the queue."""
        places = Places.find(str(self.route.source), None, Routes((self.route,)), keys)
        *_, run = rehearse(self.store, places, Selection(), new_run(places, Selection(), RECIPE))
        return run.enqueued

    def is_hidden(self, key="a.png"):
        """Return whether the upper part of the face is black in the output."""
        pixels = np.asarray(self.clean.open(self.place + key).convert("RGB"))
        return not pixels[FACE[1] : FACE[1] + 12, FACE[0] : FACE[2]].any()

    def forge(self, options, key="a.png", sign=None, **fields):
        """Store a receipt with `options`, and an output that refers to it.

        Anybody without the key who can write to the destination can do this.
        """
        name = self.receipt_at(key)[0]
        made = receipts.parse(name.removeprefix(self.place + receipts.FOLDER))
        recipe = f"{OLDER_RECIPE}-00000000"
        forged = json.loads(self.clean.get(name)) | {"options": options, "recipe": recipe} | fields
        if sign:
            forged["signature"] = sign.sign(forged)
        self.output(b"anything", key, **{receipts.RECIPE: recipe})
        self.write(forged, f"{self.place}{receipts.FOLDER}{key}.{recipe}.{made.etag}.json")


@pytest.fixture
def site(store, raw, clean, place, unattended):
    return Site(store, raw, clean, place, unattended.client)


# --- options


@pytest.mark.parametrize("options", FORGED_OPTIONS)
@pytest.mark.parametrize("signer", [None, OTHER])
def test_with_a_key_no_option_is_taken_from_a_receipt_that_it_did_not_sign(site, options, signer):
    etag = site.source()
    options = {name: etag if value == "etag" else value for name, value in options.items()}
    site.run(sign=KEY)
    site.forge(options, sign=signer, signature=None)
    before = site.clean.get(site.place + "a.png")
    with pytest.raises(OptionsUnusable, match="send the options again"):
        site.run(sign=KEY)
    assert site.clean.get(site.place + "a.png") == before
    assert site.run(sign=KEY, options={}).status == "anonymized"
    assert site.is_hidden()
    assert site.verified(KEY) == {"a.png": ("ok",)}


@pytest.mark.parametrize(("key", "status"), [(KEY, "anonymized"), (None, "held")])
def test_a_request_that_only_hides_more_keeps_the_release_of_a_signed_receipt(site, key, status):
    etag = site.source()
    holding = {"sign": key, "boxes": (), "hold": True}
    assert site.run(**holding, options={"release": etag}).status == "anonymized"
    rules = {"FACE": {"hold": True}}
    face = {"sign": key, "options": {"extra": [[1, 1, 9, 9]], "rules": rules}}
    held = site.run(**face)
    assert (held.status, "still published" in held.warning) == ("held", True)
    assert site.run(sign=key, options={"rules": rules, "release": etag}).status == "anonymized"
    assert site.run(**face).status == status
    # A request without further areas is a new one: so a release is taken back.
    assert site.run(sign=key, options={"rules": rules}).status == "held"


def test_with_a_key_a_changed_receipt_or_another_pictures_gives_no_options(site):
    site.source()
    site.source("b.png")  # The same bytes, so that only the place differs.
    site.run(sign=KEY)
    site.run("b.png", sign=KEY, options={"exempt": WHOLE})
    moved = site.receipt("b.png")
    site.forge(
        moved["options"],
        **{name: moved[name] for name in ("output_mark", "source_mark", "signature")},
    )
    with pytest.raises(OptionsUnusable, match="not signed by a known key"):
        site.run(sign=KEY)
    site.output(b"anything", **{receipts.RECIPE: moved["recipe"]})
    made = receipts.parse(site.receipt_at()[0].removeprefix(site.place + receipts.FOLDER))
    site.write(moved, f"{site.place}{receipts.FOLDER}a.png.{moved['recipe']}.{made.etag}.json")
    with pytest.raises(OptionsUnusable):
        site.run(sign=KEY)


def test_with_a_key_a_signed_receipt_still_gives_its_options(site):
    site.source()
    asked = {"extra": [[0, 0, 4, 4]], "exempt": WHOLE}
    first = site.run(sign=KEY, options=asked)
    assert site.run(sign=KEY).status == "skipped"
    again = site.run(sign=KEY, recipe=OLDER_RECIPE)
    assert (again.status, again.options) == ("anonymized", first.options)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"exempt": WHOLE}, None),
        ({"method": "pixelate"}, None),
        ({"method": "surround"}, {"method": "surround"}),
        ({"region": 0.5}, None),
        ({"region": 0.9}, {"region": 0.9}),
        ({"release": "etag"}, None),
        ({"exempt": WHOLE, "extra": [[0, 0, 4, 4]], "release": "etag"}, {"extra": [[0, 0, 4, 4]]}),
    ],
)
def test_without_a_key_a_receipt_can_only_have_more_hidden(site, options, kept):
    etag = site.source()
    site.run()
    site.forge({name: etag if value == "etag" else value for name, value in options.items()})
    report = site.run()
    assert (report.status, report.options) == ("anonymized", kept)
    assert report.recipe == AnonymizeRequest.parse(
        source="s3://raw/a", options=kept or {}
    ).options.recipe(RECIPE)
    if kept != {"method": "surround"}:
        assert site.is_hidden()


def test_without_a_key_an_output_made_with_options_is_kept_until_it_has_to_be_made_anew(site):
    site.source()
    site.run(options={"exempt": WHOLE, "extra": [[0, 0, 4, 4]]})
    assert site.run().status == "skipped"
    assert site.run(recipe=OLDER_RECIPE).options == {"extra": [[0, 0, 4, 4]]}
    assert site.is_hidden()


# --- is it done?


@pytest.mark.parametrize("content", [None, b"{}"])
def test_an_output_whose_receipt_is_gone_or_damaged_is_made_again_with_one(site, content):
    site.source()
    site.run()
    (name,) = site.receipt_at()
    if content is None:
        site.clean.client.delete_object(Bucket="clean", Key=name)
        assert site.states()["a.png"][0] == "stale"
    else:
        site.clean.put(name, content)
    assert site.run().status == "anonymized"
    assert site.verified() == {"a.png": ("ok",)}
    assert site.states() == {}
    assert site.run().status == "skipped"


@pytest.mark.parametrize("change", ["unsigned", "gone", "smaller", "held"])
def test_with_a_key_only_a_signed_receipt_says_that_a_picture_is_done(site, change):
    site.source()
    site.run(sign=KEY)
    (name,) = site.receipt_at()
    if change == "gone":
        site.clean.client.delete_object(Bucket="clean", Key=name)
    elif change == "smaller":
        site.output(b"less")
    else:
        fields = {"unsigned": {"signature": None}, "held": {"status": "held"}}[change]
        site.write(site.receipt() | fields, name)
    if change != "unsigned":
        assert set(site.states(KEY)) == ({"a.png"} if change != "held" else set())
    assert site.run(sign=KEY).status == "anonymized"
    assert site.verified(KEY) == {"a.png": ("ok",)}
    assert site.run(sign=KEY).status == "skipped"


def test_metadata_do_not_publish_what_would_be_held(site):
    site.source()
    site.run(sign=KEY, boxes=())
    content = site.clean.get(site.place + "a.png")
    site.output(content, **{receipts.FACES: "3"})
    assert site.run(sign=KEY, boxes=(), hold=True).status == "held"


def test_an_object_with_the_outputs_metadata_is_replaced(site):
    site.source()
    site.run()
    site.output(picture(7))
    assert site.states() == {"a.png": ("missing", "something else is in its place")}
    assert site.run().status == "anonymized"
    assert site.verified() == {"a.png": ("ok",)}


@pytest.mark.parametrize("recipe", ["../../x", "r" * 1500, "", "5a38d4c65c2c5ab0.x"])
def test_metadata_that_hold_no_recipe_end_nothing(site, recipe):
    site.source()
    site.run()
    site.output(b"x", **{receipts.RECIPE: recipe})
    assert site.verified() == {"a.png": ("no receipt",)}
    assert set(site.states()) == {"a.png"}
    assert site.run().status == "anonymized"


# --- places


def test_another_pictures_output_and_receipt_are_not_taken_for_this_ones(site):
    site.source()
    site.source("b.png", picture(1))
    site.run(sign=KEY)
    site.run("b.png", sign=KEY)
    (name,) = site.receipt_at()
    metadata = site.clean.head(site.place + "b.png")["Metadata"]
    mark = metadata[receipts.SOURCE_ETAG]
    content = site.clean.get(site.place + "b.png")
    moved = receipts.uri(
        site.route.destination, ReceiptName.of("a.png", RECIPE, mark, len(content))
    )
    site.write(site.receipt("b.png"), moved.key)
    for also in (
        {},
        {receipts.SOURCE: site.clean.head(site.place + "a.png")["Metadata"][receipts.SOURCE]},
    ):
        site.clean.put(site.place + "a.png", content, Metadata=metadata | also)
        assert "misplaced" in site.verified(KEY)["a.png"]
    assert site.states(KEY)["a.png"][0] in ("missing", "stale")
    site.clean.client.delete_object(Bucket="clean", Key=name)


def test_changed_metadata_do_not_hide_which_source_an_output_is_of(site):
    site.source()
    site.run(sign=KEY)
    site.output(site.clean.get(site.place + "a.png"), **{receipts.SOURCE: "0" * 64})
    assert "metadata differs" in site.verified(KEY)["a.png"]


def test_an_older_pair_is_of_another_version_of_the_source(site):
    site.source()
    site.run(sign=KEY)
    content, metadata = (
        site.clean.get(site.place + "a.png"),
        site.clean.head(site.place + "a.png")["Metadata"],
    )
    ((name, receipt),) = [(name, site.clean.get(name)) for name in site.receipt_at()]
    site.source(content=picture(1))
    site.run(sign=KEY)
    site.clean.put(name, receipt)
    site.clean.put(site.place + "a.png", content, Metadata=metadata)
    assert site.verified(KEY) == {"a.png": ("source changed",)}
    assert site.states(KEY) == {"a.png": ("stale", "source changed")}


def test_receipts_signed_by_a_version_that_knew_no_places_are_ok_and_unplaced(site):
    site.source()
    site.run(sign=KEY)
    fields = site.receipt()
    del fields["output_mark"], fields["source_mark"]
    fields["signature"] = KEY.sign(fields)
    (name,) = site.receipt_at()
    site.write(fields, name)
    assert site.verified(KEY) == {"a.png": ("ok", "unplaced")}
    assert site.run(sign=KEY).status == "skipped"


def test_a_receipt_reveals_no_address(site):
    site.source()
    site.run(sign=KEY)
    assert site.place.rstrip("/") not in json.dumps(site.receipt())
    site.source("b.png")
    site.run("b.png")
    assert (site.receipt("b.png")["output_mark"], site.receipt("b.png")["source_mark"]) == (
        None,
        None,
    )


# --- what is no receipt

FACES = [{"box_xyxy": [0, 0, 2, 2], "score": 0.5}]
BAD_FIELDS = [
    {"faces": None}, {"faces": [1]}, {"faces": [{}]},
    {"faces": [{"box_xyxy": [0, 0, 2], "score": 0.5}]},
    {"faces": [{"box_xyxy": [-1, 0, 2, 2], "score": 0.5}]},
    {"faces": [{"box_xyxy": [0, 0, 2, 10**30], "score": 0.5}]},
    {"faces": [{"box_xyxy": [0, 0, 2, 2], "score": "0.5"}]},
    {"faces": [{"box_xyxy": [0, 0, 2, 2], "score": None}]},
    {"faces": [{"box_xyxy": [0, 0, 2, True], "score": 0.5}]},
    {"faces": {"box_xyxy": 1}}, {"faces": "x"},
    {"left_xyxy": 5}, {"left_xyxy": [[1]]}, {"found_by_check": [[0, 0, 1, "1"]]}, {"options": []},
    {"options": {"exempt": 5}}, {"options": {"hide_more": 1}},
    {"options": {"extra": [[4, 4, 1, 1]]}}, {"status": "done"}, {"status": ["held"]},
    {"output_bytes": "7"}, {"output_bytes": -1}, {"output_bytes": [7]}, {"output_bytes": 10**40},
    {"recipe": 5}, {"reason": {}}, {"check": 1}, {"seconds": [1]}, {"made_with": None},
    {"signature": "x"}, {"signature": {"key": 5}}, {"source_etag": None}, {"created": 5},
    {"format": "\ud800"},
    {"options": {"release": "\ud800"}}, {"output_mark": 7}, {"source_mark": []},
]  # fmt: skip
BAD_FILES = [
    b"", b"null", b"[]", b"5", b'"x"', b"{}", b"\xff\xfe{}", b"[" * 100_000,
    b'{"a":' * 100_000, b"NaN", b'{"seconds": NaN}', b'{"source_bytes": 1' + b"0" * 5000 + b"}",
    b"{" + b" " * receipts.MAX_BYTES + b"}",
]  # fmt: skip


def scores(content):
    """Yield receipts with numbers that are none."""
    for number in (b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-0.5", b"2"):
        yield content.replace(b'"score": 0.9', b'"score": ' + number)


@pytest.mark.parametrize("keys", [(), (KEY,)])
def test_what_is_no_receipt_ends_nothing_and_counts_as_none(site, keys):
    sign = next(iter(keys), None)
    site.source()
    site.source("held.png", picture(1))
    site.run(sign=sign)
    site.run("held.png", sign=sign, boxes=(), hold=True)
    (name,), (held,) = site.receipt_at(), site.receipt_at("held.png")
    good = site.receipt()
    bad = [json.dumps(good | fields).encode() for fields in BAD_FIELDS]
    for content in [*bad, *BAD_FILES, *scores(json.dumps(good).encode())]:
        site.clean.put(name, content)
        site.clean.put(held, content)
        told = content[:300]
        assert site.verified(*keys) == {"a.png": ("bad receipt",), "held.png": ("bad receipt",)}, (
            told
        )
        found = site.states(*keys, only=Only(below_score=0.1))
        assert found["a.png"] == ("current", "faces with low scores"), told
        assert site.states(*keys) == {"held.png": ("missing", "no output")}, told
    site.raw.client.delete_object(Bucket="raw", Key=site.place + "a.png")
    assert site.states(*keys, sources_deleted=True)["a.png"][0] == "orphan"
    site.source()
    assert site.run(sign=sign).status == "anonymized"


def test_fields_of_a_later_version_are_ignored_and_signed(site):
    site.source()
    site.run(sign=KEY)
    fields = site.receipt() | {"later": {"deeply": [None, 1.5]}}
    fields["signature"] = KEY.sign(fields)
    (name,) = site.receipt_at()
    site.write(fields, name)
    assert site.verified(KEY) == {"a.png": ("ok",)}
    site.write(fields | {"later": 1}, name)
    assert site.verified(KEY) == {"a.png": ("bad signature",)}


def test_a_picture_of_ten_thousand_faces_has_a_receipt_that_is_read(site):
    site.source()
    boxes = [(8, 8, 20 + n % 20, 20 + n // 1000) for n in range(10_000)]
    assert site.run(sign=KEY).status == "anonymized"
    (name,) = site.receipt_at()
    fields = site.receipt() | {"faces": [{"box_xyxy": box, "score": 0.1234} for box in boxes]}
    fields |= {"found_by_check": boxes}
    fields["signature"] = KEY.sign(json.loads(json.dumps(fields)))
    site.write(fields, name)
    site.output(site.clean.get(site.place + "a.png"), **{receipts.FACES: "10000"})
    assert site.verified(KEY) == {"a.png": ("ok",)}
    assert len(Receipt.from_bytes(site.clean.get(name)).faces) == 10_000


def test_a_receipt_that_nobody_would_read_is_not_written(site, monkeypatch):
    site.source()
    monkeypatch.setattr(receipts, "MAX_BYTES", 100)
    with pytest.raises(ImageTooLarge, match="the receipt of 1 faces"):
        site.run()
    assert site.clean.keys(site.place) == []


# --- held


@pytest.mark.parametrize("signer", [None, OTHER])
def test_with_a_key_a_forged_held_receipt_hides_no_missing_output(site, signer):
    site.source()
    site.run(sign=KEY)
    (name,) = site.receipt_at()
    forged = site.receipt() | {"status": "held", "signature": None}
    if signer:
        forged["signature"] = signer.sign(forged)
    site.write(forged, name)
    site.clean.client.delete_object(Bucket="clean", Key=site.place + "a.png")
    assert site.states(KEY) == {"a.png": ("missing", "no output")}


def test_with_a_key_another_pictures_held_receipt_hides_no_missing_output(site):
    site.source()
    site.source("b.png")
    site.run("b.png", sign=KEY, boxes=(), hold=True)
    marks = Places.find(str(site.route.source), None, Routes((site.route,)), (KEY,)).marks
    version = marks.version(site.route.source.join("a.png"), site.receipt("b.png")["source_etag"])
    made = ReceiptName.of("a.png", RECIPE, version, 0)
    site.write(site.receipt("b.png"), receipts.uri(site.route.destination, made).key)
    assert site.states(KEY) == {
        "a.png": ("missing", "no output"),
        "b.png": ("held", "no face found"),
    }


def test_a_picture_that_was_released_and_whose_output_is_gone_is_missing(site):
    etag = site.source()
    site.run(sign=KEY, boxes=(), hold=True)
    assert site.states(KEY) == {"a.png": ("held", "no face found")}
    assert site.run(sign=KEY, boxes=(), hold=True, options={"release": etag}).status == "anonymized"
    site.clean.client.delete_object(Bucket="clean", Key=site.place + "a.png")
    assert site.states(KEY) == {"a.png": ("missing", "no output")}


@pytest.mark.parametrize("keys", [(), (KEY,)])
def test_an_object_in_place_of_a_held_picture_is_told(site, keys):
    site.source()
    site.run(sign=next(iter(keys), None), boxes=(), hold=True)
    for content in (b"", b"x", picture()):
        site.clean.put(site.place + "a.png", content)
        what = "the original" if content == picture() else "an object that is not its output"
        assert site.states(*keys) == {"a.png": ("taken", TAKEN.format(what))}


def test_the_output_of_another_source_is_told_as_one_to_keep(site):
    """Two sources may have one key of outputs, such as a.heic and a.jpg with a suffix for HEIF."""
    site.source()
    site.clean.put(site.place + "a.png", b"x", Metadata={receipts.SOURCE: "0" * 64})
    ((state, reason),) = site.states().values()
    assert state == "taken"
    assert "do not remove it" in reason
    with pytest.raises(DestinationTaken, match="do not remove it"):
        site.run()
    assert site.clean.get(site.place + "a.png") == b"x"


# --- listings


@pytest.mark.parametrize("keys", [(), (KEY,)])
@pytest.mark.parametrize("metadata", ["kept", "none"])
@pytest.mark.parametrize(
    ("over", "named"),
    [
        ("original", "with its size"),
        ("other", "with its size"),
        ("original", "as by an earlier version"),
    ],
)
def test_what_was_put_over_an_output_is_not_taken_for_it(site, keys, metadata, over, named):
    site.source()
    site.run(sign=next(iter(keys), None))
    if named != "with its size":
        rename(site)
    assert (site.states(*keys), site.wanted(*keys)) == ({}, 0)
    content = picture() if over == "original" else b"anything"
    kept = site.clean.head(site.place + "a.png")["Metadata"] if metadata == "kept" else {}
    site.clean.put(site.place + "a.png", content, Metadata=kept)
    what = "the original" if over == "original" else "an object that is not its output"
    assert site.states(*keys) == {
        "a.png": (
            ("missing", "something else is in its place")
            if metadata == "kept"
            else ("taken", TAKEN.format(what))
        )
    }
    assert site.wanted(*keys) == 1
    request = {"sign": next(iter(keys), None)}
    if metadata == "kept":
        assert site.run(**request).status == "anonymized"
    else:
        with pytest.raises(DestinationTaken):
            site.run(**request)


def rename(site, key="a.png"):
    """Name a receipt as earlier versions did."""
    (name,) = site.receipt_at(key)
    site.clean.put(name.rpartition("=")[0].rstrip("=") + ".json", site.clean.get(name))
    site.clean.client.delete_object(Bucket="clean", Key=name)


def test_the_original_over_an_output_of_the_same_size_is_told(site):
    site.source()
    site.run()
    content = picture(3)
    (name,) = site.receipt_at()
    etag = site.source(content=content)
    fields = site.receipt() | {"source_etag": etag, "output_bytes": len(content)}
    uri = receipts.uri(site.route.destination, ReceiptName.of("a.png", RECIPE, etag, len(content)))
    site.clean.client.delete_object(Bucket="clean", Key=name)
    site.write(fields, uri.key)
    site.output(b"y" * len(content), **{receipts.SOURCE_ETAG: etag})
    assert site.states() == {}
    site.output(content)
    assert site.states() == {"a.png": ("missing", "something else is in its place")}


@pytest.mark.parametrize("keys", [(), (KEY,)])
def test_an_output_that_is_bit_for_bit_its_source_is_current_without_a_request(
    site, keys, monkeypatch
):
    target = io.BytesIO()
    Image.fromarray(np.full((40, 40, 3), 9, np.uint8)).save(target, "JPEG")
    site.source("a.jpg", target.getvalue())
    site.run("a.jpg", sign=next(iter(keys), None), boxes=())
    assert site.clean.get(site.place + "a.jpg") == target.getvalue(), "else this test shows nothing"
    asked = []
    with monkeypatch.context() as patched:
        patched.setattr(site.store, "head", asked.append)
        assert (site.states(*keys), site.wanted(*keys), asked) == ({}, 0, [])
    assert site.verified(*keys) == {"a.jpg": ("ok",)}
    assert site.run("a.jpg", sign=next(iter(keys), None), boxes=()).status == "skipped"
    rename(site, "a.jpg")
    assert site.states(*keys) == {}


def test_a_receipt_of_an_earlier_version_is_found_by_verify_and_by_workers(site):
    site.source()
    site.run(sign=KEY, options={"extra": [[0, 0, 4, 4]]})
    rename(site)
    assert site.states(KEY) == {}
    assert site.verified(KEY) == {"a.png": ("ok",)}
    assert site.run(sign=KEY).status == "skipped"
    assert site.run(sign=KEY, recipe=OLDER_RECIPE).options == {"extra": [[0, 0, 4, 4]]}
    assert len(site.receipt_at()) == 1
