"""Refuse camera raws, and other TIFFs that hold a larger picture than the pages that are read.

A reader of plain TIFFs shows only a preview of a camera raw (TIFF/EP; DNG 1.7).
"""

from collections.abc import Iterator
from dataclasses import dataclass

from tasks.errors import ImageTooLarge, UnreadableImage, UnsupportedImage
from worker.images.tiff.directories import SIGNATURES, DirectoryReader, Tag

ADVICE = "develop it, and save it as TIFF, PNG or JPEG"

# Camera raws whose signature is not that of a TIFF, at the start of the file.
SIGNATURES_AT_START = (
    b"IIU\0",  # Panasonic RW2
    b"IIRO",  # Olympus ORF
    b"IIRS",
    b"MMOR",
    b"FUJIFILMCCD-RAW",
    b"FOVb",  # Sigma X3F
    b"\0MRM",  # Minolta MRW
    b"II\x1a\0\0\0HEAPCCDR",  # Canon CRW
)
CR3 = b"ftypcrx "  # the file type box of a Canon CR3, at byte 4
# Camera raws that are TIFFs with a second signature at byte 8: Canon CR2, Phase One IIQ.
SIGNATURES_AT_8 = (b"CR\x02", b"IIII", b"MMMM")

# Each directory takes 50 microseconds.
MAX_DIRECTORIES = 10_000

RAW_TAGS = (Tag.CFA_REPEAT_PATTERN_DIM, Tag.CFA_PATTERN, Tag.DNG_VERSION)
RAW_PHOTOMETRICS = (32803, 34892)  # CFA (TIFF/EP), LinearRaw (DNG)
OLD_JPEG = 6  # a value of Compression
REDUCED = 1  # the bit of NewSubfileType for a smaller version of another picture in the file
OLD_REDUCED = 2  # the same, as a value of SubfileType
TAGS = (
    Tag.NEW_SUBFILE_TYPE,
    Tag.SUBFILE_TYPE,
    Tag.IMAGE_WIDTH,
    Tag.IMAGE_LENGTH,
    Tag.COMPRESSION,
    Tag.PHOTOMETRIC_INTERPRETATION,
    Tag.SUB_IFDS,
    Tag.JPEG_INTERCHANGE_FORMAT,
    *RAW_TAGS,
)


@dataclass(frozen=True)
class TiffImage:
    """The picture that one directory describes, by the values of its tags."""

    values: dict[int, tuple[int, ...]]
    next_offset: int | None

    def first(self, tag: int, default: int = 0) -> int:
        return (*self.values.get(tag, ()), default)[0]

    @property
    def is_raw(self) -> bool:
        if self.first(Tag.PHOTOMETRIC_INTERPRETATION) in RAW_PHOTOMETRICS:
            return True
        return any(tag in self.values for tag in RAW_TAGS)

    @property
    def is_reduced(self) -> bool:
        """Return whether this is a smaller version of another picture in the file."""
        is_reduced = bool(self.first(Tag.NEW_SUBFILE_TYPE) & REDUCED)
        return is_reduced or self.first(Tag.SUBFILE_TYPE) == OLD_REDUCED

    @property
    def has_second_picture(self) -> bool:
        """Return whether there is a JPEG besides the strips or tiles.

        Old-style JPEG has the JPEG in place of them.
        """
        has_jpeg = Tag.JPEG_INTERCHANGE_FORMAT in self.values
        return has_jpeg and self.first(Tag.COMPRESSION) != OLD_JPEG

    @property
    def size(self) -> tuple[int, int]:
        return self.first(Tag.IMAGE_WIDTH), self.first(Tag.IMAGE_LENGTH)

    def is_larger_than(self, other: "TiffImage") -> bool:
        return self.size[0] > other.size[0] or self.size[1] > other.size[1]


def check(content: bytes) -> None:
    """Raise UnsupportedImage for a camera raw, and for a TIFF that shows only part of its pictures.

    Raises UnreadableImage for directories that are damaged, and ImageTooLarge for too many.
    """
    if content.startswith(SIGNATURES_AT_START) or content[4:12] == CR3:
        raise UnsupportedImage(f"camera raws are not handled: {ADVICE}")
    if not content.startswith(SIGNATURES):
        return
    tiff = _TiffImages(content)
    pages = list(tiff.pages())
    below = [list(tiff.below(page)) for page in pages]
    if content.startswith(SIGNATURES_AT_8, 8) or _has_raw(pages, *below):
        raise UnsupportedImage(f"camera raws are not handled: {ADVICE}")
    for page, images in zip(pages, below, strict=True):
        if page.has_second_picture or not all(_is_preview(image, page) for image in images):
            raise UnsupportedImage(
                f"this TIFF has further pictures beside its pages, as camera raws do: {ADVICE}"
            )
    if pages and all(page.is_reduced for page in pages):
        raise UnsupportedImage(
            f"this TIFF has only previews of a picture, as camera raws do: {ADVICE}"
        )


def previews(content: bytes) -> frozenset[int]:
    """Return the numbers of the pages of the TIFF `content` that are smaller versions of another.

    Such a page says so, and is no larger than a page that does not.
    """
    pages = list(_TiffImages(content).pages())
    whole = [page for page in pages if not page.is_reduced]
    found = set()
    for number, page in enumerate(pages):
        if page.is_reduced and any(not page.is_larger_than(other) for other in whole):
            found.add(number)
    return frozenset(found)


def kind(content: bytes) -> str | None:
    """Return the kind of the TIFF `content` in words.

    Returns None for other files, and for TIFFs whose first directory describes no picture.
    """
    if not content.startswith(SIGNATURES):
        return None
    page = next(_TiffImages(content).pages(), None)
    if page is None or 0 in page.size or Tag.PHOTOMETRIC_INTERPRETATION not in page.values:
        return None
    return f"PhotometricInterpretation {page.first(Tag.PHOTOMETRIC_INTERPRETATION)}"


def _has_raw(*groups: list[TiffImage]) -> bool:
    return any(any(image.is_raw for image in group) for group in groups)


def _is_preview(image: TiffImage, page: TiffImage) -> bool:
    """Return whether `image` is a smaller version of `page`."""
    return image.is_reduced and not image.is_larger_than(page)


class _TiffImages:
    """The pictures in a TIFF. Each directory is read once.

    All directories and their values together must be no larger than the file. Without this bound,
    directories that share values would keep the walk busy for minutes.
    """

    def __init__(self, content: bytes) -> None:
        self._reader = DirectoryReader(content)
        self._remaining_bytes = len(content)
        self._visited: set[int] = set()

    def pages(self) -> Iterator[TiffImage]:
        """Yield the pages, up to the first that is incomplete or was read before."""
        offset = self._reader.first_offset
        while offset and offset not in self._visited:
            page = self._image(offset)
            if page is None:
                return
            yield page
            offset = page.next_offset

    def below(self, page: TiffImage) -> Iterator[TiffImage]:
        """Yield all pictures below `page`; raise UnreadableImage if one is not in the file."""
        offsets: list[int | None] = list(page.values.get(Tag.SUB_IFDS, ()))
        while offsets:
            offset = offsets.pop()
            if not offset or offset in self._visited:
                continue
            image = self._image(offset)
            if image is None:
                raise UnreadableImage(
                    "this TIFF is cut short: a picture below one of its pages is missing"
                )
            yield image
            offsets += (image.next_offset, *image.values.get(Tag.SUB_IFDS, ()))

    def _image(self, offset: int) -> TiffImage | None:
        """Return the picture of the directory at `offset`, or None if the file ends before it."""
        directory = self._reader.directory(offset, TAGS)
        if directory is None:
            return None
        self._visited.add(offset)
        if len(self._visited) > MAX_DIRECTORIES:
            raise ImageTooLarge(
                f"this TIFF has over {MAX_DIRECTORIES:,} pages and pictures below them: split it up"
            )
        self._spend(directory.size)
        values = {}
        for entry in directory.entries:
            values[entry.tag] = self._reader.values(entry)
            if entry.is_elsewhere and values[entry.tag]:
                self._spend(entry.size)
        if values.get(Tag.SUB_IFDS) == ():
            raise UnreadableImage(
                "this TIFF is damaged: the pictures below one of its pages are missing"
            )
        return TiffImage(values, directory.next_offset)

    def _spend(self, size: int) -> None:
        self._remaining_bytes -= size
        if self._remaining_bytes < 0:
            raise UnreadableImage("this TIFF is damaged: its directories overlap")
