"""The part of XMP that an output keeps on request: how a panorama is projected (GPano).

Properties are read without a parser of XML, checked, and written anew.
"""

import re
from collections.abc import Collection

GPANO = b"http://ns.google.com/photos/1.0/panorama/"
NUMBER = re.compile(rb"-?\d{1,9}(\.\d{1,9})?")
PROJECTION = re.compile(rb"equirectangular|cylindrical", re.IGNORECASE)
BOOLEAN = re.compile(rb"true|false", re.IGNORECASE)
# The properties that say how to show a panorama. Others name programs, dates and cameras.
PROPERTIES = {b"ProjectionType": PROJECTION, b"UsePanoramaViewer": BOOLEAN} | dict.fromkeys(
    (
        b"CroppedAreaImageWidthPixels",
        b"CroppedAreaImageHeightPixels",
        b"FullPanoWidthPixels",
        b"FullPanoHeightPixels",
        b"CroppedAreaLeftPixels",
        b"CroppedAreaTopPixels",
        b"PoseHeadingDegrees",
        b"PosePitchDegrees",
        b"PoseRollDegrees",
        b"InitialViewHeadingDegrees",
        b"InitialViewPitchDegrees",
        b"InitialViewRollDegrees",
        b"InitialHorizontalFOVDegrees",
    ),
    NUMBER,
)
PROPERTY = re.compile(
    rb"GPano:(?P<name>\w{1,40})\s*"
    rb"(?:=\s*[\"'](?P<attribute>[^\"'<]{1,40})[\"']|>(?P<element>[^<]{1,40})<)"
)
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF")  # the formats whose outputs can hold XMP
MAX_BYTES = 1 << 20  # of a packet that is read


def kept(packet: bytes | str | None, schemas: Collection[str]) -> bytes | None:
    """Return an XMP packet with the properties of `schemas` in `packet`, or None without any."""
    if not packet or "GPano" not in schemas:
        return None
    content = packet.encode() if isinstance(packet, str) else packet
    found: dict[bytes, bytes] = {}
    for match in PROPERTY.finditer(content[:MAX_BYTES]):
        name, value = match["name"], (match["attribute"] or match["element"]).strip()
        if name in PROPERTIES and PROPERTIES[name].fullmatch(value):
            found.setdefault(name, value)
    if b"ProjectionType" not in found:
        return None
    attributes = b"".join(b' GPano:%s="%s"' % pair for pair in sorted(found.items()))
    return (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/">'
        b'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        b'<rdf:Description rdf:about="" xmlns:GPano="' + GPANO + b'"' + attributes + b"/>"
        b"</rdf:RDF></x:xmpmeta>"
    )
