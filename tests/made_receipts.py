"""Receipts of outputs that no worker has made."""

from tasks.storage.receipts import Receipt


def anonymized(width, height, boxes=(), **fields):
    """Return the receipt of an output of this size, in which the faces in `boxes` are hidden."""
    return Receipt(
        status="anonymized",
        created="2026-01-01T00:00:00.000+00:00",
        source_etag="e",
        source_sha256="0" * 64,
        source_bytes=10,
        output_sha256="1" * 64,
        output_bytes=9,
        width=width,
        height=height,
        recipe="5a38d4c65c2c5ab0",
        faces=[{"box_xyxy": list(box), "score": 0.5} for box in boxes],
        seconds={},
        made_with={},
        **{"format": "JPEG", **fields},
    )
