"""The keys of outputs: those of their sources, or keyed digests of them.

An output's key follows from the key of its source alone, because commands over whole buckets only
see keys. With `VEIL_HEIF_SUFFIX`, an output of HEIC has another suffix than its source. A digest
does not lead back to its source: that takes the key, and a list of the sources.
"""

import re
from dataclasses import dataclass

from .signatures import Key

# The suffixes of HEIC, as cameras write them.
HEIF_SUFFIXES = (".heic", ".HEIC", ".heif", ".HEIF", ".hif", ".HIF")
# The suffixes that an output with a digest for its name keeps. Others may be part of a name, as in
# "photo of J. Smith".
PICTURE_SUFFIXES = (
    ".apng", ".avif", ".bmp", ".gif", ".heic", ".heif", ".hif", ".j2k", ".jfif", ".jp2", ".jpe",
    ".jpeg", ".jpg", ".jpx", ".mpo", ".png", ".tif", ".tiff", ".webp",
)  # fmt: skip
DIGITS = 32  # hexadecimal digits of a digest, 128 bits
DIGEST = re.compile(r"[0-9a-f]{32}[^/]*")
DOMAIN = b"output name\0"  # begins the messages of the digests


@dataclass(frozen=True)
class OutputNames:
    """The keys of the outputs of one route.

    With `heif_suffix`, an output of HEIC has this suffix in place of its source's. With `hash_key`,
    keys are digests, each with the suffix of its source in lower case. `suffixes` are suffixes that
    digests keep besides those of pictures, in lower case.
    """

    heif_suffix: str = ""
    hash_key: Key | None = None
    suffixes: tuple[str, ...] = ()

    @property
    def are_hashed(self) -> bool:
        return self.hash_key is not None

    def output_key(self, source_key: str) -> str:
        """Return the key of the output of `source_key`.

        With a `hash_key`, `source_key` must be relative to the source of the route.
        """
        if self.hash_key is None:
            return with_heif_suffix(source_key, self.heif_suffix)
        message = DOMAIN + source_key.encode()
        suffix = with_heif_suffix(self._kept_suffix(source_key), self.heif_suffix)
        return self.hash_key.digest(message)[:DIGITS] + suffix

    def source_keys(self, output_key: str) -> list[str]:
        """Return the keys of the sources that an output without a hashed name may have.

        The likeliest is the first. Outputs from before a route hashed its names have such names.
        """
        found = [output_key]
        if self.heif_suffix and output_key.endswith(self.heif_suffix):
            start = output_key.removesuffix(self.heif_suffix)
            found += [start + suffix for suffix in HEIF_SUFFIXES]
        return found

    def may_be_default(self, output_key: str) -> bool:
        """Return whether `output_key` can be the key that this gives the output of any source."""
        return not self.are_hashed or DIGEST.fullmatch(output_key) is not None

    def _kept_suffix(self, source_key: str) -> str:
        lower = source_key.lower()
        known = (*self.suffixes, *PICTURE_SUFFIXES)
        return next((suffix for suffix in known if lower.endswith(suffix)), "")


def with_heif_suffix(source_key: str, heif_suffix: str) -> str:
    """Return `source_key`, with `heif_suffix` in place of that of HEIC unless it is empty."""
    if heif_suffix and source_key.endswith(HEIF_SUFFIXES):
        return source_key[: source_key.rindex(".")] + heif_suffix
    return source_key
