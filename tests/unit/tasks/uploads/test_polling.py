"""The progress of listings: its bytes in Redis, and the start of the next listing."""

import pytest

from tasks.addresses import PrefixUri
from tasks.uploads.polling import Progress

PREFIX = PrefixUri("raw", "2026/")
KEY = "veil:poll:s3://raw/2026/"
# Hashes as version 0.2.0 writes them; later ones write `since` too if there is one.
STORED = [
    (
        {b"newest": b"", b"begun": b"1764408000.25", b"so_far": b"0.0", b"after": b""},
        Progress(begun=1764408000.25),
    ),
    (
        {b"newest": b"1764407999.0", b"begun": b"", b"so_far": b"0.0", b"after": b""},
        Progress(newest=1764407999.0),
    ),
    (
        {
            b"newest": b"1.5",
            b"begun": b"2.0",
            b"so_far": b"1e+16",
            b"after": b"\xed\xa0\x80\n\0\xc3\xbc",
        },
        Progress(newest=1.5, begun=2.0, so_far=1e16, after="\ud800\n\0ü"),
    ),
    (
        {
            b"newest": b"",
            b"begun": b"1764408000.25",
            b"so_far": b"0.0",
            b"after": b"",
            b"since": b"1764408000.0",
        },
        Progress(begun=1764408000.25, since=1764408000.0),
    ),
]


class Hashes(dict):
    """The two commands of Redis that store and read hashes."""

    def hset(self, key, mapping):
        self[key] = {name.encode(): value for name, value in mapping.items()}

    def hgetall(self, key):
        return self.get(key, {})


@pytest.mark.parametrize(("stored", "progress"), STORED)
def test_progress_is_stored_in_the_same_bytes_by_all_versions(stored, progress):
    redis = Hashes({KEY: stored})
    assert Progress.read(redis, PREFIX) == progress
    written = Hashes()
    progress.write(written, PREFIX)
    assert written == {KEY: stored}


def test_a_prefix_without_progress_has_not_been_listed():
    assert Progress.read(Hashes(), PREFIX) == Progress()


@pytest.mark.parametrize(
    ("progress", "newest"),
    [
        (Progress(), 0.0),
        (Progress(begun=100.0, so_far=90.0), 90.0),
        (Progress(begun=100.0, so_far=120.0), 100.0),  # uploaded while the listing ran
        (Progress(newest=95.0, begun=100.0, so_far=90.0), 95.0),
    ],
)
def test_the_next_listing_starts_no_later_than_this_one_began(progress, newest):
    assert progress.newest_if_ended() == newest
