"""The pictures of a preview: objects below a prefix or files in a folder, from one listing."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tasks.addresses import ObjectUri, PrefixUri
from tasks.errors import NothingFound
from tasks.routes import reserved_folder
from tasks.storage.s3 import ObjectStore
from worker.local_files import read_picture
from worker.sampling.drawing import StratifiedSample

# The sizes by which pictures are told apart, in bytes: the upper limit of each and its name.
SIZES = (
    (100_000, "below 100 kB"),
    (1_000_000, "100 kB to 1 MB"),
    (10_000_000, "1 to 10 MB"),
)
LARGEST = "above 10 MB"
MAX_PREFIXES = 50  # that are told apart; the pictures of further ones count together
OTHER_PREFIXES = "others"


@dataclass(frozen=True)
class SourcePicture:
    """A picture that can be read: its address or path, its name below the place, and its size.

    `read` returns its content. It raises a VeilError, or OSError for a file.
    """

    address: str
    name: str
    size: int
    read: Callable[[], bytes]


class Strata:
    """Tells pictures apart by their prefix, the first part of their name, and by their size."""

    def __init__(self) -> None:
        self._prefixes: set[str] = set()

    def of(self, picture: SourcePicture) -> tuple[str, str]:
        folder, slash, _ = picture.name.partition("/")
        prefix = folder + slash if slash else ""
        if prefix not in self._prefixes:
            if len(self._prefixes) >= MAX_PREFIXES:
                prefix = OTHER_PREFIXES
            self._prefixes.add(prefix)
        return prefix, size_class(picture.size)


def size_class(size: int) -> str:
    """Return the name of the class of a file of `size` bytes."""
    for limit, name in SIZES:
        if size < limit:
            return name
    return LARGEST


def draw(
    pictures: Iterator[SourcePicture], size: int, seed: int, place: str
) -> StratifiedSample[SourcePicture]:
    """Return a sample of `pictures`. Raises NothingFound if there is none at `place`."""
    sample: StratifiedSample[SourcePicture] = StratifiedSample(size, seed, Strata().of)
    for picture in pictures:
        sample.add(picture.name, picture, picture.size)
    if not sample.count:
        raise NothingFound(f"no picture at {place}: correct the address")
    return sample


def objects(
    store: ObjectStore, address: str, suffixes: list[str], max_bytes: int, seconds: float
) -> Iterator[SourcePicture]:
    """Yield the objects below the prefix `address`, or the one at it, as backfills list them."""
    place = PrefixUri.parse(address)
    endings = tuple(suffix.lower() for suffix in suffixes)

    def picture(uri: ObjectUri, name: str, size: int) -> SourcePicture:
        def read() -> bytes:
            with store.open(uri) as opened:
                return opened.read(max_bytes, seconds)

        return SourcePicture(str(uri), name, size, read)

    is_empty = True
    for stored in store.list(place.bucket, place.prefix):
        is_empty = False
        name = place.relative(stored.uri)
        is_wanted = not endings or name.lower().endswith(endings)
        if is_wanted and not reserved_folder(name):
            yield picture(stored.uri, name, stored.size)
    if is_empty and place.prefix and not address.endswith("/"):
        single = store.head(ObjectUri.parse(address))
        if single is not None:
            yield picture(single.uri, single.uri.key.rpartition("/")[2], single.size)


def files(folder: Path, paths: Iterator[Path], max_bytes: int) -> Iterator[SourcePicture]:
    """Yield the files at `paths`, which lie in `folder`."""
    for path in paths:
        name = path.relative_to(folder).as_posix()
        read = partial(read_picture, path, max_bytes)
        yield SourcePicture(str(path), name, path.stat().st_size, read)
