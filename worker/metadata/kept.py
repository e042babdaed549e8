"""The choices of what outputs keep of their sources."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Gps = Literal["false", "rounded", "true"]
HeifOutput = Literal["jpeg", "avif", "refuse"]
XMP_SCHEMAS = ("GPano",)


@dataclass(frozen=True)
class Kept:
    """The metadata that outputs keep, and the format in which HEIC is kept.

    `exif` names fields of KEEPABLE in worker.metadata.exif_fields, `xmp` schemas of XMP_SCHEMAS.
    `gps` keeps the position where a picture was taken: not at all, rounded to a kilometre, or
    exactly. `heif` is the format of the outputs of HEIC.
    """

    exif: tuple[str, ...] = ()
    xmp: tuple[str, ...] = ()
    gps: Gps = "false"
    heif: HeifOutput = "jpeg"

    def in_recipe(self) -> Mapping[str, Any]:
        """Return what a recipe says of the choices. Those that keep nothing are left out."""
        stated: dict[str, Any] = {"keep_exif": sorted(self.exif)}
        if self.xmp:
            stated["keep_xmp"] = sorted(self.xmp)
        if self.gps != "false":
            stated["keep_gps"] = self.gps
        if self.heif != "jpeg":
            stated["heif_output"] = self.heif
        return stated

    def without_metadata(self) -> "Kept":
        return Kept(heif=self.heif)


NOTHING = Kept()


def known_schema(name: str) -> str:
    """Return the XMP schema `name`, which may be in any case; raise ValueError for others."""
    for schema in XMP_SCHEMAS:
        if schema.lower() == name.lower():
            return schema
    raise ValueError(f"{name} is no schema that may be kept: choose from {', '.join(XMP_SCHEMAS)}")
