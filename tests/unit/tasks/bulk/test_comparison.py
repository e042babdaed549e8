"""What listings have as outputs, and the address of a source if it or its output is missing."""

import pytest

from tasks.addresses import ObjectUri
from tasks.bulk.comparison import Settled, list_outputs
from tasks.bulk.places import Places
from tasks.routes import Routes
from tasks.storage.receipts import SOURCE
from tasks.storage.s3 import StoredObject

ROUTES = Routes.parse("s3://raw=s3://clean").with_heif_suffix(".jpg")
PLACES = Places.find("s3://raw/in", None, ROUTES)
HEIC, JPEG = ObjectUri("raw", "in/a.heic"), ObjectUri("raw", "in/a.jpg")


def output_of(source):
    metadata = {SOURCE: PLACES.marks.source(source)}
    return StoredObject(PLACES.destination("a.jpg"), "etag", 1, metadata)


@pytest.mark.parametrize(
    ("source", "output", "address"),
    [
        (StoredObject(HEIC, "etag", 1), None, HEIC),
        (StoredObject(HEIC, "etag", 1), output_of(JPEG), HEIC),
        (None, output_of(HEIC), HEIC),
        (None, output_of(JPEG), JPEG),
        (None, output_of(ObjectUri("raw", "another/b.heic")), JPEG),
        (None, None, JPEG),
    ],
)
def test_a_source_has_its_own_address_or_else_the_one_that_its_output_is_marked_with(
    source, output, address
):
    assert Settled("a.jpg", "orphan", source, output).source_uri(None, PLACES) == address


def test_receipts_are_no_outputs_nor_are_those_of_a_destination_below():
    keys = [
        ".veil/receipts/a.jpg.json",
        "a.jpg",
        "ml/.veil/decisions/c.json",
        "ml/.veil/receipts/c.jpg.json",
        "ml/b.veil/c.jpg",
        "ml/c.jpg",
    ]

    class Store:
        def listing(self, bucket, prefix, after):
            found = [key for key in keys if key.startswith(prefix) and key > after]
            return (StoredObject(ObjectUri(bucket, key), "etag", 1) for key in found)

    places = Places.find("s3://raw", None, Routes.parse("s3://raw=s3://clean"))

    outputs = [stored.uri.key for stored in list_outputs(Store(), places)]

    assert outputs == ["a.jpg", "ml/b.veil/c.jpg", "ml/c.jpg"]
