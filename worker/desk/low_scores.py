"""Find the outputs with a face below a score, by their receipts."""

import time
from collections import Counter
from collections.abc import Iterator

from tasks.bulk.comparison import find_receipt, list_outputs
from tasks.bulk.places import Places
from tasks.messages import FACE
from tasks.storage.receipts import Receipt, ReceiptName
from tasks.storage.s3 import ObjectStore, StoredObject
from worker.desk.items import Item, id_of


def search(store: ObjectStore, places: Places, below: float, limit: int) -> Iterator[Item]:
    """Yield the outputs of `places` whose lowest score is `below`, at most `limit` of them."""
    found = 0
    for listed in list_outputs(store, places):
        output = store.head(listed.uri)
        if output is None:
            continue
        key = places.output.relative(output.uri)
        stated = find_receipt(store, places, ReceiptName.of_output(key, output))
        receipt = stated.accepted if stated else None
        if receipt is None or receipt.lowest_score is None or receipt.lowest_score >= below:
            continue
        yield _item(store, places, key, output, receipt)
        found += 1
        if found >= limit:
            return


def _item(
    store: ObjectStore, places: Places, key: str, output: StoredObject, receipt: Receipt
) -> Item:
    source = places.source_of(store, key, output.metadata)
    labels = Counter(receipt.labels)
    has_others = bool(labels.keys() - {FACE})
    asked = places.asked_destination(key)
    return Item(
        id=id_of("low", str(output.uri)),
        state="low score",
        source=None if source is None else str(source),
        output=str(output.uri),
        destination=None if asked is None else str(asked),
        etag=receipt.source_etag,
        reason=f"lowest score {receipt.lowest_score:.2f}",
        time=time.time() if output.modified is None else output.modified.timestamp(),
        boxes_xyxy=[face["box_xyxy"] for face in receipt.faces],
        options=receipt.options,
        faces=labels[FACE],
        labels=dict(labels) if has_others else None,
        box_labels=receipt.labels if has_others else None,
        output_etag=output.etag,
        width=receipt.width,
        height=receipt.height,
    )
