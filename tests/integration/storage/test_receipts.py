"""Every output in a real store has a receipt that is true of it."""

import hashlib

from tasks.records import dead_letters
from tasks.storage import receipts
from tasks.storage.receipts import Receipt, ReceiptName


def stored(bucket, key):
    """Return the receipts of an output by name."""
    found = {}
    for name in bucket.keys(receipts.FOLDER + key):
        made = receipts.parse(name.removeprefix(receipts.FOLDER))
        if made and made.key == key:
            found[made] = Receipt.from_bytes(bucket.get(name))
    return found


def etag(bucket, key):
    return bucket.head(key)["ETag"].strip('"')


def test_an_output_has_a_receipt_that_tells_its_digests_and_faces(
    worker, queue, raw, clean, place, portrait
):
    report = queue.report(raw.put(place + "a.jpg", portrait))
    ((made, receipt),) = stored(clean, place + "a.jpg").items()
    assert made == ReceiptName(place + "a.jpg", report["recipe"], etag(raw, place + "a.jpg"))
    assert receipt.source_sha256 == hashlib.sha256(portrait).hexdigest()
    assert receipt.output_sha256 == hashlib.sha256(clean.get(place + "a.jpg")).hexdigest()
    assert receipt.output_bytes == report["bytes_out"]
    assert [face["box_xyxy"] for face in receipt.faces] == report["boxes_xyxy"]
    assert receipt.lowest_score == report["lowest_score"]
    assert len(receipt.made_with["model"]) == 64
    assert "veil" in receipt.made_with


def test_a_source_that_changes_leaves_one_receipt(worker, queue, raw, clean, place, portrait):
    uri = raw.put(place + "a.jpg", portrait)
    neighbour = raw.put(place + "a.jpg.bak", portrait)
    assert [queue.report(uri)["status"], queue.report(neighbour)["status"]] == [
        "anonymized",
        "anonymized",
    ]
    raw.put(place + "a.jpg", portrait + b"trailing")
    assert queue.report(uri)["status"] == "anonymized"
    assert [made.etag for made in stored(clean, place + "a.jpg")] == [etag(raw, place + "a.jpg")]
    assert len(stored(clean, place + "a.jpg.bak")) == 1


def test_what_was_asked_to_be_hidden_stays_hidden_when_nobody_says_otherwise(
    worker, queue, raw, clean, place, portrait
):
    uri = raw.put(place + "a.jpg", portrait)
    asked = {"extra": [[0, 0, 12, 9]]}
    report = queue.report(uri, options=asked)
    ((made, receipt),) = stored(clean, place + "a.jpg").items()
    assert (made.recipe, receipt.options) == (report["recipe"], asked)

    assert queue.report(uri)["status"] == "skipped"
    # As if a worker of another version had made it.
    older = made.recipe[:-1] + ("0" if made.recipe[-1] != "0" else "1")
    metadata = {**clean.head(place + "a.jpg")["Metadata"], receipts.RECIPE: older}
    content = clean.get(place + "a.jpg")
    clean.put(place + "a.jpg", content, Metadata=metadata)
    clean.put(
        receipts.FOLDER + f"{place}a.jpg.{older}.{made.etag}.json",
        receipt.model_copy(update={"recipe": older}).to_bytes(),
    )
    again = queue.report(uri)
    assert (again["status"], again["recipe"]) == ("anonymized", report["recipe"])
    assert list(stored(clean, place + "a.jpg")) == [made]

    (name,) = clean.keys(receipts.FOLDER + f"{place}a.jpg.{made.recipe}.")
    clean.client.delete_object(Bucket=clean.name, Key=name)
    state, error = queue.outcome(queue.send(uri))
    assert (state, type(error).__name__) == ("FAILURE", "OptionsUnusable")
    assert "its receipt is gone" in str(error)
    # The letter is that of the output, so that `veil reconcile` finds it.
    assert dead_letters.LETTERS.find(queue.client, [uri])[uri].error == "OptionsUnusable"


def test_keys_too_long_for_a_receipt_beside_them_have_one_by_digest(
    worker, queue, raw, clean, place, portrait
):
    key = place + "k" * 230 + ".jpg"
    report = queue.report(raw.put(key, portrait))
    (name,) = clean.keys(receipts.FOLDER_OF_LONG_KEYS + hashlib.sha256(key.encode()).hexdigest())
    assert Receipt.from_bytes(clean.get(name)).output_bytes == report["bytes_out"]


def test_no_output_goes_where_receipts_are_kept(worker, queue, raw, portrait):
    state, error = queue.outcome(queue.send(raw.put(".veil/receipts/a.jpg", portrait)))
    assert (state, type(error).__name__) == ("FAILURE", "InvalidRequest")
