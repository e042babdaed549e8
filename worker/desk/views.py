"""What reviewers see: outputs, kept in memory for a while, and sources, which are never kept."""

import threading
from collections import OrderedDict
from dataclasses import dataclass

from tasks.addresses import ObjectUri
from tasks.errors import ObjectNotFound
from tasks.storage.s3 import ObjectStore
from worker.anonymizer import FileAnonymizer
from worker.images.viewing import View
from worker.settings import WorkerSettings

MAX_KEPT_BYTES = 128 << 20


@dataclass(frozen=True)
class Shown:
    """A JPEG of a picture, the size of the picture in pixels, and the version that it shows.

    `note` says of which of several frames it is; empty if the picture has one.
    """

    jpeg: bytes
    width: int
    height: int
    etag: str
    note: str = ""


class Views:
    """Makes views of outputs and sources in picture processes. Threads share one object."""

    def __init__(
        self, store: ObjectStore, viewer: FileAnonymizer, settings: WorkerSettings
    ) -> None:
        self._store = store
        self._viewer = viewer
        self._settings = settings
        self._kept: OrderedDict[tuple[str, str, View], Shown] = OrderedDict()
        self._kept_bytes = 0
        self._lock = threading.Lock()

    def output(self, uri: ObjectUri, view: View) -> Shown:
        """Return a view of an output. Raises ObjectNotFound, and the errors of decoding."""
        stored = self._store.head(uri)
        if stored is None:
            raise ObjectNotFound(f"{uri} does not exist")
        key = (str(uri), stored.etag, view)
        with self._lock:
            if known := self._kept.get(key):
                self._kept.move_to_end(key)
                return known
        shown = self._view(uri, view)
        if shown.etag == stored.etag:
            self._keep(key, shown)
        return shown

    def source(self, uri: ObjectUri, view: View) -> Shown:
        """Return a view of a source, which is a clear picture: it is not kept."""
        return self._view(uri, view)

    def _view(self, uri: ObjectUri, view: View) -> Shown:
        with self._store.open(uri) as opened:
            content = opened.read(self._settings.max_bytes, self._settings.fetch_seconds)
            etag = opened.stored.etag
        seen = self._viewer.view(content, view)
        assert seen.content is not None
        return Shown(seen.content, seen.width, seen.height, etag, "; ".join(seen.notes))

    def _keep(self, key: tuple[str, str, View], shown: Shown) -> None:
        with self._lock:
            if key in self._kept:
                return
            self._kept[key] = shown
            self._kept_bytes += len(shown.jpeg)
            while self._kept_bytes > MAX_KEPT_BYTES:
                _, oldest = self._kept.popitem(last=False)
                self._kept_bytes -= len(oldest.jpeg)
