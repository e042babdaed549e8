"""The keys of outputs: those of their sources, but for HEIC by `VEIL_HEIF_SUFFIX`.

An output's key follows from the key of its source alone, because commands over whole buckets only
see keys.
"""

# The suffixes of HEIC, as cameras write them.
HEIF_SUFFIXES = (".heic", ".HEIC", ".heif", ".HEIF", ".hif", ".HIF")


def output_key(source_key: str, heif_suffix: str) -> str:
    """Return the key of the output of `source_key`, with `heif_suffix` in place of that of HEIC.

    An empty `heif_suffix` changes nothing.
    """
    if heif_suffix and source_key.endswith(HEIF_SUFFIXES):
        return source_key[: source_key.rindex(".")] + heif_suffix
    return source_key


def source_keys(output_key: str, heif_suffix: str) -> list[str]:
    """Return the keys of the sources that the output `output_key` may have, `output_key` first."""
    found = [output_key]
    if heif_suffix and output_key.endswith(heif_suffix):
        start = output_key.removesuffix(heif_suffix)
        found += [start + suffix for suffix in HEIF_SUFFIXES]
    return found
