"""Storing: no output of a deleted source, no overwritten foreign object, no confused keys."""

import io
import threading
from contextlib import suppress

import numpy as np
import pytest
from botocore.awsrequest import AWSResponse
from PIL import Image

from tasks.addresses import ObjectUri
from tasks.bulk.backfill import Selection, new_run, rehearse
from tasks.bulk.comparison import compare, settle
from tasks.bulk.places import Places
from tasks.bulk.verify import Audit
from tasks.errors import (
    DestinationTaken,
    DestinationUnavailable,
    InvalidRequest,
    ObjectNotFound,
    SettingsInvalid,
    SourceChanged,
    StorageRejected,
    StorageUnavailable,
)
from tasks.messages import AnonymizeRequest
from tasks.routes import Route, Routes
from tasks.signatures import Key
from tasks.storage import decisions, receipts
from tasks.storage.decisions import Decision
from tasks.storage.s3 import ObjectStore
from tasks.storage.upload_headers import PLAIN_UPLOADS
from tests.integration.conftest import Bucket
from tests.pipelines import run as run_pipeline
from tools.local.servers import start_s3
from worker.anonymizer import Anonymizer, Limits
from worker.detection.faces import Detections
from worker.masking.regions import MaskStyle
from worker.pipeline import Pipeline

RECIPE, OLDER_RECIPE = "5a38d4c65c2c5ab0", "fedcba9876543210"
SECONDS = 30.0
FOREIGN = b"somebody else's only copy"
NEW, OLD = Key.parse("n" * 32), Key.parse("o" * 32)


class Finds:
    """A detector that finds the same boxes in every picture."""

    def __init__(self, *boxes):
        self.boxes = np.array(boxes, np.float32).reshape(-1, 4)

    def detect(self, picture):
        return Detections(self.boxes, np.full(len(self.boxes), 0.9, np.float32))


def picture(seed=0):
    target = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 255, (40, 40, 3), np.uint8)
    Image.fromarray(noise).save(target, "PNG")
    return target.getvalue()


class Site:
    """Two buckets of a store, with workers and commands that have given keys."""

    def __init__(self, client, route, place):
        self.client, self.route, self.place = client, Route.parse(route), place
        self.raw, self.clean = Bucket(client, "raw"), Bucket(client, self.route.destination.bucket)
        self.store = ObjectStore(client)

    uploads = PLAIN_UPLOADS

    def pipeline(self, keys=(), hold=False, recipe=RECIPE, box=(5, 5, 20, 25), store=None):
        return Pipeline(
            store=store or self.store,
            anonymizer=Anonymizer(
                detector=Finds(*([box] if box else [])),
                style=MaskStyle("surround", 1.0, 0.0),
                limits=Limits(1 << 20, 1 << 20, SECONDS),
                hold_without_faces=hold,
                recipe=recipe,
            ),
            routes=Routes((self.route,)),
            keys=keys,
            uploads=self.uploads,
        )

    def run(
        self,
        key="a.png",
        confirm=lambda: None,
        keys=(),
        hold=False,
        recipe=RECIPE,
        box=(5, 5, 20, 25),
        store=None,
        **more,
    ):
        pipeline = self.pipeline(keys, hold, recipe, box, store)
        request = AnonymizeRequest.parse(source=self.raw.uri(self.place + key), **more)
        return run_pipeline(pipeline, request, confirm=confirm)

    def states(self, *keys):
        places = Places.find(str(self.route.source), None, Routes((self.route,)), keys)
        found = {}
        for compared in compare(self.store, places, RECIPE):
            settled = None if compared.is_current else settle(self.store, places, RECIPE, compared)
            found[compared.key] = "current" if compared.is_current else settled and settled.state
        return found

    def verified(self, *keys):
        audit = Audit(self.store, Routes((self.route,)), SECONDS, keys)
        return {
            verdict.output.key: verdict.states
            for verdict in audit.verdicts(str(self.route.destination))
        }

    def receipts(self):
        return self.clean.keys(f"{self.route.destination.prefix}{receipts.FOLDER}")


@pytest.fixture
def site(listing_client, place):
    """A place on each kind of server."""
    made = Site(listing_client, f"s3://raw/{place}=s3://clean/{place}", place)
    made.raw.put(place + "a.png", picture())
    return made


@pytest.fixture
def versioned(listing_client, place):
    """A place like `site`, with a destination that keeps every version."""
    bucket = place.rstrip("/")
    listing_client.create_bucket(Bucket=bucket)
    listing_client.put_bucket_versioning(
        Bucket=bucket, VersioningConfiguration={"Status": "Enabled"}
    )
    made = Site(listing_client, f"s3://raw/{place}=s3://{bucket}/{place}", place)
    made.raw.put(place + "a.png", picture())
    return made


def versions(site):
    found = site.client.list_object_versions(
        Bucket=site.clean.name, Prefix=f"{site.place}a.png"
    ).get("Versions", ())
    return len(found)


def test_what_is_put_at_the_destination_meanwhile_stays(site, place):
    with pytest.raises(DestinationTaken, match="remove it, or choose another destination"):
        site.run(confirm=lambda: site.clean.put(place + "a.png", FOREIGN))
    assert site.clean.get(place + "a.png") == FOREIGN
    assert site.receipts() == []


def test_the_output_of_another_source_stays_and_nobody_is_told_to_remove_it(site, place):
    mark = {"veil-source-sha256": "0" * 64}
    site.clean.put(place + "a.png", FOREIGN, Metadata=mark)
    with pytest.raises(DestinationTaken, match="output of another source, so do not remove it"):
        site.run()
    assert site.clean.get(place + "a.png") == FOREIGN


def test_what_takes_the_place_of_an_older_output_meanwhile_stays(site, place):
    site.run(recipe=OLDER_RECIPE)
    with pytest.raises(DestinationTaken):
        site.run(confirm=lambda: site.clean.put(place + "a.png", FOREIGN))
    assert site.clean.get(place + "a.png") == FOREIGN
    assert [name for name in site.receipts() if RECIPE in name] == []


def test_an_output_that_goes_meanwhile_is_made_all_the_same(site, place):
    site.run(recipe=OLDER_RECIPE)
    delete = iter([lambda: site.clean.client.delete_object(Bucket="clean", Key=place + "a.png")])
    report = site.run(confirm=lambda: next(delete, lambda: None)())
    assert report.status == "anonymized"
    assert site.verified()[place + "a.png"] == ("ok",)


def test_two_workers_at_one_picture_leave_one_version_and_one_receipt(versioned, place):
    other = iter([lambda: versioned.run()])
    report = versioned.run(confirm=lambda: next(other, lambda: None)())
    assert report.status == "anonymized"
    assert versions(versioned) == 1
    assert len(versioned.receipts()) == 1
    assert versioned.verified() == {place + "a.png": ("ok",)}
    assert versioned.run().status == "skipped"


def test_two_workers_that_do_not_agree_leave_an_output_with_its_own_receipt(site, place):
    other = iter([lambda: site.run(box=(1, 1, 9, 9))])
    site.run(confirm=lambda: next(other, lambda: None)())
    assert site.verified() == {place + "a.png": ("ok",)}
    assert len(site.receipts()) == 1


def test_what_was_published_for_an_area_of_its_request_is_not_made_again(versioned, place):
    options = {"extra": [[0, 0, 5, 5]]}
    assert versioned.run(hold=True, box=None).status == "held"
    assert versioned.run(hold=True, box=None, options=options).status == "anonymized"
    for more in ({}, {"options": options}):
        assert versioned.run(hold=True, box=None, **more).status == "skipped"
    assert versions(versioned) == 1


@pytest.mark.parametrize("keys", [(), (NEW,)])
@pytest.mark.parametrize("published", [False, True])
def test_what_was_asked_for_a_held_picture_is_not_forgotten(site, keys, published):
    """A repeated event or a backfill has no options."""
    hold = {"hold": True, "box": None, "keys": keys}
    if published:
        site.run(box=None, keys=keys)
        site.raw.put(site.place + "a.png", picture(2))
    asked = {"method": "fill"}
    assert site.run(options=asked, **hold).status == "held"
    again = site.run(**hold)
    assert (again.status, again.options) == ("held", asked)
    assert site.run(options={}, **hold).options is None
    assert site.run(**hold).options is None

    site.raw.put(site.place + "a.png", picture(1))
    assert site.run(**hold).options is None


def test_a_copy_that_was_held_before_has_its_own_receipt(versioned, place):
    """A JPEG without a face is published as it is, with the recipe by which it was held."""
    target = io.BytesIO()
    Image.new("RGB", (40, 40), "red").save(target, "JPEG")
    versioned.raw.put(place + "a.jpg", target.getvalue())
    versioned.client.delete_object(Bucket="raw", Key=place + "a.png")
    assert versioned.run("a.jpg", hold=True, box=None).status == "held"
    assert versioned.run("a.jpg", box=None).status == "anonymized"
    assert versioned.clean.get(place + "a.jpg") == target.getvalue()
    assert versioned.verified() == {place + "a.jpg": ("ok",)}
    assert versioned.states() == {"a.jpg": "current"}
    assert versioned.run("a.jpg", box=None).status == "skipped"


@pytest.mark.parametrize("hold", [False, True])
def test_a_missing_bucket_of_outputs_costs_no_picture(site, hold):
    site.route = Route.parse(f"s3://raw/{site.place}=s3://no-such-bucket")
    with pytest.raises(DestinationUnavailable):
        site.run(hold=hold, box=None)


def test_many_workers_at_once_end_well(site, place):
    failures, barrier = [], threading.Barrier(4)

    def work():
        try:
            site.run(confirm=barrier.wait)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert site.verified() == {place + "a.png": ("ok",)}


@pytest.mark.parametrize("replaced", [False, True])
def test_an_output_whose_confirmation_was_lost_is_ones_own(versioned, replaced, place):
    if replaced:
        versioned.run(recipe=OLDER_RECIPE, box=(1, 1, 9, 9))
    lost = []

    def retry_once(request_dict, **_):
        """Send a conditional PUT again although it succeeded, as after a lost answer."""
        headers = {name.lower() for name in request_dict["headers"]}
        if not lost and headers & {"if-match", "if-none-match"}:
            lost.append(request_dict)
            return 0
        return None

    events = versioned.client.meta.events
    events.register_first("needs-retry.s3.PutObject", retry_once)
    try:
        report = versioned.run()
    finally:
        events.unregister("needs-retry.s3.PutObject", retry_once)
    assert lost
    assert report.status == "anonymized"
    assert versions(versioned) == 1 + replaced
    assert len(versioned.receipts()) == 1
    assert versioned.verified() == {place + "a.png": ("ok",)}


@pytest.fixture
def refusing(site):
    """``refusing(status, code, of_all)`` makes the store refuse conditional PUTs, or all PUTs.

    The refusals are counted.
    """
    handlers = []

    def start(status, code, of_all=False):
        refused = []

        def answer(request, **_):
            names = {name.lower() for name in request.headers}
            if not of_all and not names & {"if-match", "if-none-match"}:
                return None
            refused.append(request.url)
            body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
            raw = io.BytesIO(body)
            raw.stream = lambda *_, **__: iter([body])
            return AWSResponse(request.url, status, {"content-length": str(len(body))}, raw)

        site.client.meta.events.register("before-send.s3.PutObject", answer)
        handlers.append(answer)
        return refused

    yield start
    for handler in handlers:
        site.client.meta.events.unregister("before-send.s3.PutObject", handler)


@pytest.mark.parametrize(
    ("status", "code"), [(501, "NotImplemented"), (400, "InvalidArgument"), (400, "")]
)
def test_a_store_without_conditional_writes_is_asked_once_and_looked_at_instead(
    site, refusing, place, status, code
):
    refused = refusing(status, code)
    for recipe in (OLDER_RECIPE, RECIPE):
        assert site.run(recipe=recipe).status == "anonymized"
    assert len(refused) == 1
    assert site.verified() == {place + "a.png": ("ok",)}
    with pytest.raises(DestinationTaken):
        site.run(recipe=OLDER_RECIPE, confirm=lambda: site.clean.put(place + "a.png", FOREIGN))
    assert site.clean.get(place + "a.png") == FOREIGN


def test_a_store_without_conditional_writes_keeps_decisions(site, refusing):
    refusing(501, "NotImplemented")
    output = site.route.destination.join("a.png")
    decision = Decision("redo", "ana", decisions.now(), None)
    decisions.record(site.store, site.route.destination, output, None, decision, [])
    outputs = site.route.destination
    assert [name.output for name in decisions.names(site.store, outputs, outputs)] == [output]


def test_a_refusal_of_the_object_is_none_of_the_condition(site, refusing):
    uri = ObjectUri("clean", site.place + "b.png")
    refused = refusing(400, "EntityTooLarge", of_all=True)
    for attempts in (2, 4):
        with pytest.raises(StorageRejected):
            site.store.put_in_place_of(None, uri, b"x", "image/png", {})
        assert len(refused) == attempts


@pytest.mark.parametrize(
    ("status", "code"), [(409, "ConditionalRequestConflict"), (409, "OperationAborted")]
)
def test_contention_is_tried_again_and_leaves_no_receipt(site, refusing, status, code):
    refusing(status, code)
    with pytest.raises(StorageUnavailable):
        site.run()
    assert site.receipts() == []


def test_a_missing_bucket_is_not_taken_for_an_output_that_is_gone(site):
    uri = ObjectUri("no-such-bucket", "a.png")
    with pytest.raises(ObjectNotFound, match="bucket does not exist"):
        site.store.put_in_place_of(None, uri, b"x", "image/png", {})
    there = site.store.head(ObjectUri("raw", site.place + "a.png"))
    with suppress(ObjectNotFound):
        assert not site.store.put_in_place_of(there, uri, b"x", "image/png", {})


def test_a_store_that_takes_names_but_no_contents_is_away(tmp_path):
    own = start_s3(tmp_path, ("raw", "clean"))
    try:
        whole = Site(own.client(), "s3://raw=s3://clean", "")
        whole.pipeline().check_store(whole.route)
        own.server.stop()
        # Without a second server for the copies, it refuses every content but an empty one.
        own.server.command = [*own.server.command, "-master.defaultReplication=001"]
        own.restart()
        client = own.client(retries={"total_max_attempts": 1}, read_timeout=3)
        client.put_object(Bucket="clean", Key="empty", Body=b"")
        half = Site(client, "s3://raw=s3://clean", "")
        with pytest.raises(StorageUnavailable):
            half.pipeline().check_store(half.route)
    finally:
        own.server.kill()  # it would wait for its copies


class Meddled(ObjectStore):
    """A store in which something happens right after a receipt was written."""

    def __init__(self, client, happens):
        super().__init__(client)
        self.happens = happens

    def put(self, uri, *arguments, **condition):
        super().put(uri, *arguments, **condition)
        if receipts.FOLDER in uri.key:
            self.happens()


@pytest.mark.parametrize("hold", [False, True])
@pytest.mark.parametrize("moment", ["before the receipt", "after the receipt"])
def test_a_source_that_is_deleted_in_work_gets_no_output_and_no_receipt(site, place, moment, hold):
    def delete():
        site.client.delete_object(Bucket="raw", Key=place + "a.png")

    meddled = (
        {"confirm": delete}
        if moment == "before the receipt"
        else {"store": Meddled(site.client, delete)}
    )
    with pytest.raises(ObjectNotFound, match=r"a\.png was deleted while it was in work"):
        site.run(**meddled, **({"hold": True, "box": None} if hold else {}))
    assert site.clean.keys(place) == []


def test_an_older_output_and_its_receipt_stay_as_they_were_when_the_source_goes(site, place):
    site.run(recipe=OLDER_RECIPE)
    before = {key: site.clean.get(key) for key in site.clean.keys(place)}
    with pytest.raises(ObjectNotFound):
        site.run(confirm=lambda: site.client.delete_object(Bucket="raw", Key=place + "a.png"))
    assert {key: site.clean.get(key) for key in site.clean.keys(place)} == before


def test_a_source_that_is_replaced_in_work_is_tried_again_and_the_older_version_never_published(
    versioned, place
):
    replace = iter([lambda: versioned.raw.put(place + "a.png", picture(1))])
    with pytest.raises(SourceChanged, match="was replaced"):
        versioned.run(confirm=lambda: next(replace)())
    assert versioned.clean.keys(place) == []
    report = versioned.run()
    assert (report.status, report.source_etag) == (
        "anonymized",
        versioned.raw.head(place + "a.png")["ETag"].strip('"'),
    )
    assert versions(versioned) == 1


def test_a_worker_that_was_frozen_before_it_stored_does_not_replace_a_newer_output(site, place):
    site.run(recipe=OLDER_RECIPE)

    class Frozen(ObjectStore):
        def put_in_place_of(self, known, uri, *arguments):
            """Store only after another worker has stored the output of a newer version."""
            if known.etag == older:
                site.raw.put(place + "a.png", picture(1))
                site.run()
            return super().put_in_place_of(known, uri, *arguments)

    older = site.clean.head(place + "a.png")["ETag"].strip('"')
    with pytest.raises(SourceChanged):
        site.run(store=Frozen(site.client))
    assert site.states() == {"a.png": "current"}
    assert site.verified() == {place + "a.png": ("ok",)}
    assert len(site.receipts()) == 1


def test_a_worker_that_was_frozen_after_it_stored_leaves_the_receipt_of_a_newer_output(site, place):
    site.run(recipe=OLDER_RECIPE)

    class Frozen(ObjectStore):
        def put_in_place_of(self, *arguments):
            """Return only after another worker has stored the output of a newer version."""
            is_written = super().put_in_place_of(*arguments)
            site.raw.put(place + "a.png", picture(1))
            site.run()
            return is_written

    site.run(store=Frozen(site.client))
    assert site.verified() == {place + "a.png": ("ok",)}
    assert site.states() == {"a.png": "current"}
    assert len(site.receipts()) == 1


def test_the_receipt_of_what_another_worker_stored_stays_when_the_source_goes(site, place):
    class Frozen(ObjectStore):
        def put(self, *arguments):
            """Return only after another worker has made the output, and the source is deleted."""
            super().put(*arguments)
            site.run()
            site.client.delete_object(Bucket="raw", Key=place + "a.png")

    with pytest.raises(ObjectNotFound):
        site.run(store=Frozen(site.client))
    assert site.verified() == {place + "a.png": ("ok", "source gone")}


def test_public_metadata_and_names_tell_nothing_of_the_original(site, place):
    etag = site.raw.head(place + "a.png")["ETag"].strip('"')
    site.run(keys=(NEW,), options={"release": etag})
    public = str(site.clean.head(place + "a.png")["Metadata"]) + str(site.clean.keys(place))
    assert etag not in public
    recipe = AnonymizeRequest.parse(
        source="s3://raw/a", options={"release": "another"}
    ).options.recipe(RECIPE)
    assert site.clean.head(place + "a.png")["Metadata"]["veil-recipe"] == recipe


def rehearsed(store, places):
    """Yield a new run of these places page by page, without publishing anything."""
    return rehearse(store, places, Selection(), new_run(places, Selection(), RECIPE))


@pytest.mark.parametrize("before", [(), (OLD,), (NEW, OLD)])
@pytest.mark.parametrize("options", [None, {"extra": [[0, 0, 9, 9]]}])
def test_an_archive_is_done_again_for_a_key_only_where_no_known_key_signed_it(
    site, place, before, options
):
    site.run(keys=before, options=options)
    if before:
        assert site.run(keys=(NEW, OLD)).status == "skipped"
    assert site.states(NEW, OLD) == {"a.png": "current" if before else "stale"}
    expected = ("ok",) if before else ("unsigned",)
    assert site.verified(NEW, OLD) == {place + "a.png": expected}
    places = Places.find(str(site.route.source), None, Routes((site.route,)), (NEW, OLD))
    *_, run = rehearsed(site.store, places)
    assert (run.skipped, run.enqueued) == ((1, 0) if before else (0, 1))
    site.raw.put(place + "a.png", picture(1))
    assert site.states(NEW, OLD) == {"a.png": "stale"}
    assert site.run(keys=(NEW, OLD)).status == "anonymized"
    assert len(site.receipts()) == 1


@pytest.mark.parametrize("keys", [(), (NEW,)])
def test_where_the_key_is_not_known_that_is_said(site, place, keys):
    site.run(keys=(OLD,))
    with pytest.raises(SettingsInvalid, match=f"the key {OLD.id}: add it to VEIL_RECEIPT_KEY"):
        site.run(keys=keys)
    assert site.states(*keys) == {"a.png": "unknown key"}
    assert site.verified(*keys) == {place + "a.png": ("unknown key",)}
    places = Places.find(str(site.route.source), None, Routes((site.route,)), keys)
    if keys:  # A worker decides.
        *_, run = rehearsed(site.store, places)
        assert run.enqueued == 1
    else:
        with pytest.raises(SettingsInvalid, match=f"by the key {OLD.id}: set VEIL_RECEIPT_KEY"):
            list(rehearsed(site.store, places))


def test_commands_say_which_key_they_need(veil, s3, place, store, new_queue, tmp_path):
    site = Site(s3.client(), f"s3://raw/{place}=s3://clean/{place}", place)
    for key in ("a.png", "held.png"):
        site.raw.put(place + key, picture())
    site.run(keys=(NEW,))
    assert site.run("held.png", keys=(NEW,), hold=True, box=None).status == "held"
    output, advice = str(site.route.destination), f"add the key {NEW.id} to VEIL_RECEIPT_KEY"
    known = {**s3.environment(), **new_queue().environment, "VEIL_ROUTES": str(site.route)}
    keys = {"VEIL_RECEIPT_KEY": NEW.secret.decode()}
    boxes = tmp_path / "boxes.jsonl"
    done = veil("receipt", "export", output, "-o", boxes, environment=known | keys)
    assert done.returncode == 0, done.stderr
    for environment in (known, known | {"VEIL_RECEIPT_KEY": OLD.secret.decode()}):
        reconcile = ("reconcile", str(site.route.source), "--recipe", RECIPE)
        done = veil(*reconcile, environment=environment)
        assert done.returncode == 1
        assert done.stdout.count(advice) == 2
        assert "0 missing, 0 stale, 0 orphan, 2 unknown key" in done.stderr
        assert "unknown key: add the key to VEIL_RECEIPT_KEY" in done.stderr
        imported = veil("receipt", "import", boxes, "--dry-run", environment=environment)
        assert (imported.returncode, imported.stdout) == (1, "")
        assert f"signed by an unknown key: {advice}" in imported.stderr
    done = veil("receipt", "export", output, environment=environment)
    assert done.returncode == 1
    assert "1 signed by an unknown key left out (add the key to VEIL_RECEIPT_KEY)" in done.stderr
    done = veil("backfill", str(site.route.source), "--dry-run", environment=known)
    assert done.returncode != 0
    assert f"by the key {NEW.id}: set VEIL_RECEIPT_KEY" in done.stderr
    done = veil(*reconcile, environment=known | keys)
    assert done.returncode == 0, done.stdout


ALIASES = ["x//b.png", "/b.png", "x\\b.png", "x///b.png", "x/\\b.png"]


@pytest.fixture
def by_folder(s3, place):
    """A place in a store that keeps files."""
    return Site(s3.client(), f"s3://raw/{place}=s3://clean/{place}", place)


@pytest.mark.parametrize("key", ALIASES)
def test_a_store_that_keeps_keys_apart_has_pictures_under_all_of_them(by_bytes, place, key):
    site = Site(by_bytes, f"s3://raw/{place}=s3://clean/{place}", place)
    for number, name in enumerate((key, "x/b.png", "b.png")):
        site.raw.put(place + name, picture(number))
        assert site.run(name).status == "anonymized"
    assert site.run(key).status == "skipped"
    assert set(site.states().values()) == {"current"}
    assert site.verified() == dict.fromkeys(
        (place + key, place + "x/b.png", place + "b.png"), ("ok",)
    )


def test_a_leading_slash_is_part_of_a_key_where_the_store_keeps_it(by_bytes, s3, place):
    key = f"/{place}a.png"
    for client, is_kept in ((by_bytes, True), (s3.client(), False)):
        site = Site(client, "s3://raw=s3://clean", "")
        site.raw.put(key, picture())
        if is_kept:
            assert site.run(key).status == "anonymized"
        else:
            with pytest.raises(
                InvalidRequest, match=f"a slash at the beginning .*: use s3://raw/{place}a.png"
            ):
                site.run(key)


@pytest.mark.parametrize("key", ALIASES)
def test_a_store_that_takes_a_key_for_another_refuses_it_by_name(by_folder, place, key):
    site = by_folder
    site.raw.put(place + key, picture())
    (listed,) = site.raw.keys(place)
    with pytest.raises(InvalidRequest, match="does not tell") as raised:
        site.run(key)
    assert str(raised.value).endswith(f"use s3://raw/{listed}")
    assert site.clean.keys(place) == []
    assert site.run(listed.removeprefix(place)).status == "anonymized"
    assert set(site.states().values()) == {"current"}
    assert site.verified() == {listed: ("ok",)}
    with pytest.raises(InvalidRequest, match="does not tell"):
        list(
            Audit(site.store, Routes((site.route,)), SECONDS).verdicts(site.clean.uri(place + key))
        )


@pytest.mark.parametrize("key", ALIASES)
def test_such_a_destination_is_refused_before_anything_is_stored(by_folder, place, key):
    by_folder.raw.put(place + "a.png", picture())
    with pytest.raises(InvalidRequest, match="does not tell"):
        by_folder.run(destination=by_folder.clean.uri(place + key))
    assert by_folder.clean.keys(place) == []


def test_such_a_place_is_refused_and_not_taken_for_an_empty_one(by_folder, by_bytes, place):
    for client in (by_folder.client, by_bytes):
        client.put_object(Bucket="raw", Key=f"{place}x//b.png", Body=picture())
    place = f"{place}x//"
    for client in (by_folder.client, by_bytes):
        site = Site(client, f"s3://raw/{place}a=s3://clean/{place}a", place)
        if client is by_bytes:
            assert list(site.store.list("raw", place))
        else:
            for read in (
                site.states,
                site.verified,
                lambda at=site: list(at.store.list("raw", place)),
            ):
                with pytest.raises(InvalidRequest, match="does not tell"):
                    read()


def test_a_listed_key_that_the_store_takes_for_another_is_told_and_ends_nothing(by_folder, place):
    by_folder.raw.put(place + "plain.png", picture())

    class Listing(ObjectStore):
        """A store whose listing has a file under a name that asks for another one."""

        def list(self, bucket, prefix="", after=""):
            for stored in super().list(bucket, prefix, after):
                yield stored
                if bucket == "raw":
                    yield type(stored)(ObjectUri(bucket, f"{place}x\\y.png"), "e", 1)

    by_folder.store = Listing(by_folder.client)
    by_folder.run("plain.png", store=ObjectStore(by_folder.client))
    assert by_folder.states() == {"plain.png": "current", "x\\y.png": "refused"}
