"""S3 objects on a real SeaweedFS: stored content comes back, and each failure has its error."""

import contextlib
import hashlib
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tasks.addresses import MAX_KEY_BYTES, ObjectUri, PrefixUri
from tasks.backoff import TRIES
from tasks.errors import (
    AccessDenied,
    CredentialsRefused,
    ImageTooLarge,
    ObjectNotFound,
    StorageUnavailable,
)
from tasks.storage.s3 import ObjectStore
from tools.chaos.faults import Faulty
from tools.local.servers import HOST, start_s3

SECONDS = 30.0
DOMAIN = "store.test"  # of the server that takes BUCKET.store.test for a bucket


def content_of(store, uri, max_bytes=1 << 20, seconds=SECONDS):
    with store.open(uri) as opened:
        return opened.read(max_bytes, seconds)


@pytest.mark.parametrize(
    "key",
    [
        "plain.jpg",
        "with space and  two.jpg",
        "plus+plus.jpg",
        "100%.jpg",
        "already%20quoted%2Fkey.jpg",
        "ünïcödé/写真 №5.jpg",
        "question?mark#hash&amp;=.jpg",
        "quote'\"<>.jpg",
    ],
)
def test_an_object_under_any_key_comes_back_as_it_was_put(store, place, key):
    uri = ObjectUri("raw", place + key)
    content = key.encode() * 3

    store.put(uri, content, "image/jpeg", {"veil-recipe": "0123456789abcdef"})

    assert content_of(store, uri) == content
    stored = store.head(uri)
    assert stored.size == len(content)
    assert stored.metadata == {"veil-recipe": "0123456789abcdef"}
    assert [found.uri for found in store.list("raw", place)] == [uri]


@pytest.fixture(scope="module")
def by_host(clean_environment, tmp_path_factory):
    """A server that finds the bucket in the host or in the path, and a record of the paths."""
    started = start_s3(tmp_path_factory.mktemp("by-host"), ("raw",), domain=DOMAIN)
    way = Faulty(int(started.endpoint.rpartition(":")[2]))
    yield started, way
    way.close()
    started.server.stop()


@pytest.fixture
def resolving(monkeypatch):
    """Resolve every host below DOMAIN to this machine, as a wildcard in DNS does."""
    getaddrinfo = socket.getaddrinfo

    def resolve(host, *arguments, **options):
        is_ours = isinstance(host, str) and host.endswith(DOMAIN)
        return getaddrinfo(HOST if is_ours else host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


@pytest.mark.parametrize("addressing", ["auto", "path", "virtual"])
def test_every_call_works_with_the_bucket_in_the_path_and_in_the_host(
    by_host, resolving, store_at, place, addressing
):
    server, way = by_host
    way.paths.clear()
    endpoint = way.endpoint.replace(HOST, DOMAIN)
    store = store_at(server, endpoint, s3_addressing=addressing)
    place = f"{addressing}/{place}"
    uri = ObjectUri("raw", place + "a+ü.jpg")

    assert store.put_in_place_of(None, uri, b"one", "image/jpeg", {})
    first = store.head(uri)
    assert store.put_in_place_of(first, uri, b"two", "image/jpeg", {})
    assert not store.put_in_place_of(first, uri, b"three", "image/jpeg", {})
    assert content_of(store, uri) == b"two"
    assert [found.uri for found in store.list("raw", place)] == [uri]
    assert not store.delete_version(uri, first.etag)
    store.delete(uri)
    assert store.head(uri) is None

    has_bucket_in_path = {path.startswith("/raw") for path in way.paths}
    assert has_bucket_in_path == {addressing != "virtual"}


@pytest.mark.parametrize(("addressing", "is_named"), [("virtual", True), ("path", False)])
def test_a_bucket_whose_host_does_not_resolve_names_the_setting(s3, store_at, addressing, is_named):
    store = store_at(s3, "http://store.invalid:8333", s3_addressing=addressing)
    host = "raw.store.invalid:8333" if is_named else "store.invalid:8333"
    with pytest.raises(StorageUnavailable, match=f"can't be reached at {host}") as raised:
        store.head(ObjectUri("raw", "a.jpg"))
    assert ("VEIL_S3_ADDRESSING=path" in str(raised.value)) == is_named
    assert "VEIL_S3_ENDPOINT" in str(raised.value)


def test_the_digest_of_an_object_is_known_without_keeping_it(store, place):
    uri = ObjectUri("raw", place + "a.jpg")
    content = bytes(range(256)) * 1000
    store.put(uri, content, "image/jpeg", {})
    with store.open(uri) as opened:
        assert opened.digest(SECONDS) == hashlib.sha256(content).hexdigest()
    with store.open(uri) as opened, pytest.raises(StorageUnavailable, match="did not arrive"):
        opened.digest(0)


@pytest.mark.parametrize("key", ["a.jpg", "ü +%20.jpg"])
def test_an_object_is_deleted_only_as_the_version_that_is_meant(listing_client, place, key):
    store = ObjectStore(listing_client)
    uri = ObjectUri("raw", place + key)
    store.put(uri, b"one", "image/jpeg", {})
    first = store.head(uri).etag
    store.put(uri, b"two", "image/jpeg", {})
    assert not store.delete_version(uri, first)
    assert content_of(store, uri) == b"two"
    assert store.delete_version(uri, store.head(uri).etag)
    assert store.head(uri) is None
    assert not store.delete_version(uri, first)


def test_a_bucket_with_versions_keeps_what_was_deleted(listing_client, place):
    store, bucket = ObjectStore(listing_client), place.rstrip("/")
    listing_client.create_bucket(Bucket=bucket)
    listing_client.put_bucket_versioning(
        Bucket=bucket, VersioningConfiguration={"Status": "Enabled"}
    )
    uri = ObjectUri(bucket, "a.jpg")
    store.put(uri, b"one", "image/jpeg", {})
    assert store.delete_version(uri, store.head(uri).etag)
    assert store.head(uri) is None
    assert len(listing_client.list_object_versions(Bucket=bucket)["Versions"]) == 1


def test_the_longest_key_that_s3_allows_comes_back(store, place):
    folders = place + ("k" * 60 + "/") * 16
    key = folders + "e" * (MAX_KEY_BYTES - len(folders) - 4) + ".jpg"
    assert len(key.encode()) == MAX_KEY_BYTES
    uri = ObjectUri.parse(f"s3://raw/{key}")

    store.put(uri, b"content", "image/jpeg", {})

    assert content_of(store, uri) == b"content"


def test_the_etag_is_the_same_by_every_call_and_changes_with_the_content(store, place):
    uri = ObjectUri("raw", place + "a.jpg")
    store.put(uri, b"one", "image/jpeg", {})
    with store.open(uri) as opened:
        first = opened.stored.etag
    (listed,) = store.list("raw", place)
    assert first == store.head(uri).etag == listed.etag
    assert '"' not in first

    store.put(uri, b"two", "image/jpeg", {})

    assert store.head(uri).etag != first


def test_a_listing_of_more_than_one_page_is_complete_ordered_and_without_folder_markers(
    store, raw, place
):
    expected = [f"{place}{number:04}.jpg" for number in range(1005)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda key: raw.put(key, b"x"), expected))
    raw.put(place + "folder/", b"")

    found = [stored.uri.key for stored in store.list("raw", place)]

    assert found == expected


def test_a_listing_below_a_prefix_leaves_out_its_neighbours(store, raw, place):
    for key in ("a/1.jpg", "ab/2.jpg", "a.jpg"):
        raw.put(place + key, b"x")

    found = [
        str(stored.uri)
        for stored in store.list("raw", PrefixUri.parse(f"s3://raw/{place}a").prefix)
    ]

    assert found == [f"s3://raw/{place}a/1.jpg"]


@pytest.fixture
def answering(s3, store_at):
    """``answering(*answers)`` returns a store whose listings are these answers in XML, in turn."""
    with socket.create_server((HOST, 0)) as listener:

        def answer(pages):
            for page in pages:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    body = f"<ListBucketResult>{page}</ListBucketResult>".encode()
                    head = (
                        f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n"
                        "Connection: close\r\n\r\n"
                    )
                    connection.sendall(head.encode() + body)

        def make(*pages):
            threading.Thread(target=answer, args=(pages,), daemon=True).start()
            return store_at(s3, endpoint=f"http://{HOST}:{listener.getsockname()[1]}")

        yield make


MORE = "<IsTruncated>true</IsTruncated><NextContinuationToken>{}</NextContinuationToken>"
ITEM = (
    "<Contents><Key>{}</Key><ETag>e</ETag><Size>1</Size>"
    "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
)
END = "<IsTruncated>false</IsTruncated>"
CUT = ITEM.format("lost")  # an answer that does not say whether it is the last


def test_a_listing_goes_on_after_an_empty_page_that_is_not_the_last(answering):
    store = answering(
        MORE.format(1), MORE.format(2) + ITEM.format("a/"), MORE.format(3) + ITEM.format("b"), END
    )
    assert [stored.uri.key for stored in store.list("raw")] == ["b"]


def test_a_listing_that_does_not_say_how_it_goes_on_has_not_ended(answering):
    store = answering("<IsTruncated>true</IsTruncated>" + ITEM.format("a"))
    with pytest.raises(StorageUnavailable, match="NextContinuationToken"):
        list(store.list("raw"))


@pytest.mark.parametrize("failures", [1, TRIES - 1])
def test_a_store_that_is_away_between_two_pages_is_waited_for(answering, monkeypatch, failures):
    monkeypatch.setattr("tasks.backoff.FIRST_TRY_SECONDS", 0.001)
    store = answering(MORE.format(1) + ITEM.format("a"), *[CUT] * failures, END + ITEM.format("b"))
    assert [stored.uri.key for stored in store.list("raw")] == ["a", "b"]


def test_a_store_that_stays_away_ends_the_listing(answering, monkeypatch):
    monkeypatch.setattr("tasks.backoff.FIRST_TRY_SECONDS", 0.001)
    listed = answering(MORE.format(1) + ITEM.format("a"), *[CUT] * TRIES).list("raw")
    assert next(listed).uri.key == "a"
    with pytest.raises(StorageUnavailable):
        next(listed)


def test_a_store_that_is_away_at_the_first_page_is_not_waited_for(answering):
    with pytest.raises(StorageUnavailable):
        list(answering(CUT).list("raw"))


def test_a_missing_object_is_named(store, place):
    uri = ObjectUri("raw", place + "missing.jpg")
    with pytest.raises(ObjectNotFound, match=r"missing\.jpg does not exist"), store.open(uri):
        pass
    assert store.head(uri) is None


def test_a_missing_object_that_may_be_a_prefix_is_named_with_the_way_to_enqueue_one(store, place):
    for key, end in (("2026", "; for what is below a prefix: veil enqueue --prefix"), ("a.b", "")):
        uri = ObjectUri("raw", place + key)
        with pytest.raises(ObjectNotFound) as raised, store.open(uri):
            pass
        assert str(raised.value) == f"{uri} does not exist{end}"


def test_a_missing_bucket_is_named(store):
    uri = ObjectUri("no-such-bucket", "a.jpg")
    with pytest.raises(ObjectNotFound, match="bucket does not exist"), store.open(uri):
        pass
    with pytest.raises(ObjectNotFound, match="bucket does not exist"):
        store.put(uri, b"x", "image/jpeg", {})
    with pytest.raises(ObjectNotFound, match="bucket does not exist"):
        list(store.list("no-such-bucket"))


CALLS = {
    "open": lambda store, uri: content_of(store, uri),
    "head": lambda store, uri: store.head(uri),
    "put": lambda store, uri: store.put(uri, b"x", "image/jpeg", {}),
    "list": lambda store, uri: list(store.list(uri.bucket)),
}


@pytest.mark.parametrize("call", CALLS)
def test_wrong_keys_are_refused_and_not_told(s3, store_at, raw, place, call):
    raw.put(place + "a.jpg", b"x")
    wrong = "not-the-secret-of-this-run"
    stranger = store_at(s3, secret=wrong)

    # The answer to a HEAD has no body, so it gives no reason.
    with pytest.raises(
        AccessDenied if call == "head" else CredentialsRefused, match="credentials"
    ) as raised:
        CALLS[call](stranger, ObjectUri("raw", place + "a.jpg"))

    assert wrong not in str(raised.value)


@pytest.mark.parametrize("call", ["open", "put"])
def test_no_server_is_storage_unavailable(s3, store_at, quiet_port, call):
    nowhere = store_at(s3, endpoint=f"http://{HOST}:{quiet_port}")
    with pytest.raises(StorageUnavailable, match="can't be reached"):
        CALLS[call](nowhere, ObjectUri("raw", "a.jpg"))


@pytest.mark.parametrize("call", ["open", "put"])
def test_an_endpoint_with_https_at_a_port_without_tls_is_told_so(s3, store_at, call):
    wrong = store_at(s3, endpoint=s3.endpoint.replace("http:", "https:"))
    with pytest.raises(StorageUnavailable, match="does not speak TLS: use http:// in VEIL_S3"):
        CALLS[call](wrong, ObjectUri("raw", "a.jpg"))


# What servers with TLS answer to a request without it.
REFUSALS_OF_HTTP = {
    "nothing": b"",
    "Go": b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n",
    "nginx": b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/html\r\nContent-Length: 13\r\n"
    b"Connection: close\r\n\r\n<html></html>",
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("answer", REFUSALS_OF_HTTP)
def test_an_endpoint_with_http_at_a_port_with_tls_is_told_so(s3, store_at, call, answer):
    with socket.create_server((HOST, 0)) as server:

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection:
                        connection.recv(65536)
                        connection.sendall(REFUSALS_OF_HTTP[answer])

        threading.Thread(target=serve, daemon=True).start()
        wrong = store_at(s3, endpoint=f"http://{HOST}:{server.getsockname()[1]}")
        with pytest.raises(
            StorageUnavailable, match="begins with https:// if this port speaks TLS"
        ):
            CALLS[call](wrong, ObjectUri("raw", "a.jpg"))
        server.shutdown(socket.SHUT_RDWR)


def test_a_server_that_never_answers_is_storage_unavailable(s3, store_at, line):
    line.download = 0
    silent = store_at(s3, endpoint=line.endpoint, s3_read_seconds=0.3)
    with pytest.raises(StorageUnavailable, match="can't be reached"):
        CALLS["open"](silent, ObjectUri("raw", "a.jpg"))


@pytest.mark.parametrize("cut", [False, True], ids=["hangs", "is cut"])
def test_a_download_that_stops_in_the_middle_is_storage_unavailable(
    s3, store_at, line, raw, place, cut
):
    raw.put(place + "large.jpg", b"x" * 600_000)
    line.download, line.cut = 200_000, cut
    stalled = store_at(s3, endpoint=line.endpoint, s3_read_seconds=0.5)

    with pytest.raises(StorageUnavailable):
        CALLS["open"](stalled, ObjectUri("raw", place + "large.jpg"))


@pytest.mark.parametrize(
    ("call", "arrived"), [*(("list", n) for n in (17, 60, 200, 400)), ("head", 17), ("head", 60)]
)
def test_an_answer_that_is_cut_off_early_is_not_taken_for_one_without_content(
    s3, store_at, line, raw, place, call, arrived
):
    raw.put(place + "a.jpg", b"x")
    line.download, line.cut = arrived, True
    unlucky = store_at(s3, endpoint=line.endpoint)

    with pytest.raises(StorageUnavailable):
        CALLS[call](unlucky, ObjectUri("raw", place + "a.jpg"))


def test_a_slow_download_is_given_up_at_its_deadline_and_not_at_its_end(s3, store_at):
    size, piece = 400_000, 4_000
    sent = 0

    def drip(listener):
        nonlocal sent
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            head = (
                f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n"
                'ETag: "e"\r\nContent-Type: image/jpeg\r\n\r\n'
            )
            connection.sendall(head.encode())
            while sent < size and not given_up.wait(0.02):
                try:
                    connection.sendall(b"x" * piece)
                except OSError:
                    return
                sent += piece

    given_up = threading.Event()
    with socket.create_server((HOST, 0)) as listener:
        server = threading.Thread(target=drip, args=(listener,), daemon=True)
        server.start()
        slow = store_at(
            s3, endpoint=f"http://{HOST}:{listener.getsockname()[1]}", s3_read_seconds=5
        )
        with pytest.raises(StorageUnavailable, match=r"did not arrive within 0\.2 s"):
            content_of(slow, ObjectUri("raw", "slow.jpg"), seconds=0.2)
        given_up.set()
        server.join(5)

    assert 0 < sent < size


def test_an_object_over_the_limit_is_refused_before_its_bytes_arrive(
    s3, store_at, line, raw, place
):
    raw.put(place + "large.jpg", b"x" * 600_000)
    line.download = 4_000  # Enough for the header of the answer.
    patient = store_at(s3, endpoint=line.endpoint, s3_read_seconds=60)

    with pytest.raises(ImageTooLarge, match="600,000 bytes, the limit is 599,999"):
        content_of(patient, ObjectUri("raw", place + "large.jpg"), max_bytes=599_999)


def test_an_object_of_just_the_limit_is_read(store, raw, place):
    raw.put(place + "a.jpg", b"x" * 5_000)
    assert content_of(store, ObjectUri("raw", place + "a.jpg"), max_bytes=5_000) == b"x" * 5_000


def test_an_upload_that_is_cut_leaves_no_object_and_an_older_one_as_it_was(
    s3, store_at, line, clean, place
):
    line.upload, line.cut = 200_000, True
    unlucky = store_at(s3, endpoint=line.endpoint, s3_read_seconds=2)
    clean.put(place + "older.jpg", b"older")
    older = clean.head(place + "older.jpg")

    for name in ("older.jpg", "new.jpg"):
        with pytest.raises(StorageUnavailable):
            unlucky.put(ObjectUri("clean", place + name), b"x" * 600_000, "image/jpeg", {})

    assert clean.keys(place) == [place + "older.jpg"]
    assert clean.get(place + "older.jpg") == b"older"
    assert clean.head(place + "older.jpg")["LastModified"] == older["LastModified"]
