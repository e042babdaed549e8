"""Inventories in place of listings, for the commands on whole buckets."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Annotated

import typer

from tasks.addresses import ObjectUri
from tasks.bulk.inventory import Inventory
from tasks.bulk.places import Places
from tasks.errors import InvalidRequest
from tasks.storage.s3 import ObjectStore

Inventories = Annotated[
    list[str] | None,
    typer.Option(
        "--inventory",
        metavar="s3://BUCKET/KEY",
        help="Manifest of an S3 inventory (.json), or a manifest of Batch Operations (.csv), to "
        "read in place of listing its bucket; repeatable for sources and outputs.",
    ),
]


@contextmanager
def listed_from(
    store: ObjectStore, addresses: Sequence[str] | None, places: Places
) -> Iterator[list[Inventory]]:
    """Read inventories of the buckets of `places`, and have `store` list from them in the block.

    Raises InvalidRequest for two inventories of one bucket, and the errors of Inventory.read.
    """
    buckets = (places.source.bucket, places.output.bucket)
    read: dict[str, Inventory] = {}
    with ExitStack() as stack:
        for address in addresses or ():
            inventory = Inventory.read(store, ObjectUri.parse(address), buckets)
            stack.enter_context(closing(inventory))
            if inventory.bucket in read:
                raise InvalidRequest(f"two inventories of {inventory.bucket}: give one")
            read[inventory.bucket] = inventory
        for bucket, inventory in read.items():
            store.list_as(bucket, inventory.list)
        yield list(read.values())
