"""What goes with an upload, on a real server: headers, checksums, and the causes of refusals."""

import json
import sys
from dataclasses import replace

import boto3
import pytest
from botocore.exceptions import ClientError
from structlog.testing import capture_logs

from tasks.addresses import ObjectUri
from tasks.errors import (
    AccessDenied,
    CredentialsRefused,
    DestinationUnavailable,
    InvalidRequest,
    StorageUnavailable,
    UnsupportedImage,
)
from tasks.settings import Settings
from tasks.storage.aws_errors import status
from tasks.storage.s3 import ObjectStore
from tasks.storage.upload_headers import Kept, UploadHeaders, Uploads
from tests.integration.storage.test_storing import FOREIGN, Site, picture
from tools.local.servers import HOST, Server, free_port

OWNER = "123456789012"  # the account of moto
HEADERS = UploadHeaders(
    encryption="aws:kms",
    kms_key="alias/veil",
    bucket_key=True,
    storage_class="STANDARD_IA",
    tags=(("team", "faces and places"),),
    acl="public-read",
    cache_control="max-age=60",
    content_disposition="inline",
    checksum="SHA256",
)
RECEIPT = UploadHeaders(encryption="AES256", tags=(("kind", "receipt"),), checksum="SHA256")
ALL_KEPT = Kept(metadata=("camera", "place"), tags=True, cache_control=True)


@pytest.fixture
def amazon(by_bytes, place):
    """A place on a server with the headers of Amazon S3."""
    site = Site(by_bytes, f"s3://raw/{place}=s3://clean/{place}", place)
    site.raw.put(
        place + "a.png",
        picture(),
        Metadata={"camera": "left", "secret": "no", "veil-recipe": "f" * 16},
        Tagging="year=2026",
        CacheControl="no-store",
    )
    return site


def tags_of(site, key):
    answer = site.client.get_object_tagging(Bucket="clean", Key=key)
    return {tag["Key"]: tag["Value"] for tag in answer["TagSet"]}


def test_outputs_and_receipts_have_their_own_headers(amazon, place):
    amazon.uploads = Uploads(output=HEADERS, receipt=RECEIPT)
    amazon.pipeline().check_store(amazon.route)
    assert amazon.run().status == "anonymized"

    output = amazon.client.head_object(Bucket="clean", Key=place + "a.png", ChecksumMode="ENABLED")
    assert output["ServerSideEncryption"] == "aws:kms"
    assert output["SSEKMSKeyId"].endswith("alias/veil")
    assert output["BucketKeyEnabled"] is True
    assert output["StorageClass"] == "STANDARD_IA"
    assert output["CacheControl"] == "max-age=60"
    assert output["ContentDisposition"] == "inline"
    assert output["ChecksumSHA256"]
    assert "camera" not in output["Metadata"]
    assert tags_of(amazon, place + "a.png") == {"team": "faces and places"}
    grants = amazon.client.get_object_acl(Bucket="clean", Key=place + "a.png")["Grants"]
    assert any("AllUsers" in grant["Grantee"].get("URI", "") for grant in grants)

    (receipt,) = amazon.receipts()
    stored = amazon.client.head_object(Bucket="clean", Key=receipt)
    assert stored["ServerSideEncryption"] == "AES256"
    assert "StorageClass" not in stored
    assert "CacheControl" not in stored
    assert tags_of(amazon, receipt) == {"kind": "receipt"}
    assert amazon.run().status == "skipped"
    assert amazon.verified() == {place + "a.png": ("ok",)}


def test_outputs_keep_of_their_sources_what_is_asked_for(amazon, place):
    fixed = UploadHeaders(tags=(("team", "faces"),), cache_control="max-age=60")
    amazon.uploads = Uploads(output=fixed, kept=ALL_KEPT)
    amazon.run()
    output = amazon.clean.head(place + "a.png")
    assert output["CacheControl"] == "no-store"
    assert output["Metadata"]["camera"] == "left"
    assert output["Metadata"]["veil-recipe"] != "f" * 16
    assert "secret" not in output["Metadata"]
    assert tags_of(amazon, place + "a.png") == {"team": "faces", "year": "2026"}
    assert amazon.run().status == "skipped"


def test_a_source_without_metadata_and_tags_gives_none(amazon, place):
    amazon.raw.put(place + "b.png", picture(1))
    amazon.uploads = Uploads(output=UploadHeaders(cache_control="max-age=60"), kept=ALL_KEPT)
    amazon.run("b.png")
    assert amazon.clean.head(place + "b.png")["CacheControl"] == "max-age=60"
    assert tags_of(amazon, place + "b.png") == {}


def test_metadata_of_another_alphabet_is_kept_as_s3_writes_it(amazon, place):
    uploads = Uploads(kept=Kept(metadata=("place",)))
    amazon.uploads = uploads
    pipeline = amazon.pipeline()
    stored = replace(
        amazon.store.head(ObjectUri("raw", place + "a.png")), metadata={"place": "Zürich 写真" * 9}
    )
    (kept,) = pipeline._outputs._kept_metadata(stored).values()
    assert kept.isascii()
    assert "\n" not in kept


def test_a_source_with_too_many_tags_is_refused_by_name(amazon, place):
    tags = "&".join(f"t{number}=1" for number in range(10))
    amazon.raw.put(place + "b.png", picture(1), Tagging=tags)
    amazon.uploads = Uploads(output=UploadHeaders(tags=(("team", "faces"),)), kept=Kept(tags=True))
    with pytest.raises(InvalidRequest, match="S3 allows 10"):
        amazon.run("b.png")
    assert amazon.clean.keys(place + "b.png") == []


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "br", "aws-chunked, gzip"])
def test_a_source_that_is_stored_compressed_is_refused_by_name(amazon, place, encoding):
    amazon.raw.put(place + "b.png", picture(1), ContentEncoding=encoding)
    name = encoding.lower().split(", ")[-1]
    with pytest.raises(UnsupportedImage, match=f"Content-Encoding: {name}: store it without"):
        amazon.run("b.png")
    assert amazon.clean.keys(place + "b.png") == []


@pytest.mark.parametrize("encoding", ["aws-chunked", "identity", ""])
def test_other_encodings_change_nothing(amazon, place, encoding):
    amazon.raw.put(place + "b.png", picture(1), ContentEncoding=encoding)
    assert amazon.run("b.png").status == "anonymized"


def refusals(client, code, message, http=403, only=lambda params: True):
    """Let `client` answer the PUTs for whose arguments `only` is true with a refusal."""
    original = client.put_object

    def refuse(**arguments):
        if only(arguments):
            answer = {
                "Error": {"Code": code, "Message": message},
                "ResponseMetadata": {"HTTPStatusCode": http},
            }
            raise ClientError(answer, "PutObject")
        return original(**arguments)

    client.put_object = refuse


def refusing(amazon, code, message, http):
    """Return a client of the store of `amazon` whose PUTs are answered with a refusal."""
    client = boto3.client(
        "s3",
        endpoint_url=amazon.client.meta.endpoint_url,
        region_name="us-east-1",
        aws_access_key_id="any",
        aws_secret_access_key="any",
    )
    refusals(client, code, message, http)
    return client


@pytest.mark.parametrize(
    ("code", "message", "http", "headers", "cause"),
    [
        ("AccessDenied", "explicit deny in a resource-based policy", 403, UploadHeaders(),
         "a bucket policy may demand encryption (VEIL_UPLOAD_ENCRYPTION)"),
        ("AccessDenied", "is not authorized to perform: kms:GenerateDataKey", 403, HEADERS,
         "the key policy of alias/veil, and that of the worker, must allow kms:GenerateDataKey"),
        ("AccessDenied", "Access Denied", 403, HEADERS, "tags need s3:PutObjectTagging"),
        ("AccessDenied", "not authorized to perform: s3:PutObjectTagging", 403, HEADERS,
         "must allow s3:PutObjectTagging"),
        ("AccessDenied", "not authorized to perform: s3:PutObjectAcl", 403, HEADERS,
         "must allow s3:PutObjectAcl"),
        ("KMS.NotFoundException", "Invalid keyId", 400, HEADERS, "the key policy of alias/veil"),
        ("AccessControlListNotSupported", "The bucket does not allow ACLs", 400, HEADERS,
         "leave VEIL_UPLOAD_ACL empty"),
        ("InvalidStorageClass", "The storage class is not valid", 400, HEADERS,
         "VEIL_UPLOAD_STORAGE_CLASS"),
    ],
)  # fmt: skip
def test_a_refused_upload_names_the_likely_cause_and_costs_no_picture(
    amazon, place, code, message, http, headers, cause
):
    client = refusing(amazon, code, message, http)
    amazon.uploads = Uploads(output=headers, receipt=headers)
    pipeline = amazon.pipeline(store=ObjectStore(client))
    with pytest.raises(DestinationUnavailable) as raised:
        pipeline.check_store(amazon.route)
    assert message in str(raised.value)
    assert cause in str(raised.value)
    with pytest.raises(DestinationUnavailable):
        amazon.run(store=ObjectStore(client))
    assert amazon.clean.head(place + "a.png") is None


@pytest.mark.parametrize(
    ("code", "http", "headers", "cause"),
    [
        ("InternalError", 500, HEADERS, "a store without KMS can't encrypt with aws:kms"),
        ("InternalError", 500, UploadHeaders(encryption="AES256"), None),
        ("NotImplemented", 501, HEADERS, "the store does not know a header of VEIL_UPLOAD_…"),
        ("SlowDown", 503, HEADERS, None),
    ],
)
def test_a_store_that_answers_headers_as_if_it_were_unavailable_is_one_and_has_a_likely_cause(
    amazon, place, code, http, headers, cause
):
    client = refusing(amazon, code, "We encountered an internal error", http)
    amazon.uploads = Uploads(output=headers, receipt=headers)
    with pytest.raises(StorageUnavailable) as raised:
        amazon.pipeline(store=ObjectStore(client)).check_store(amazon.route)
    assert status(raised.value.__cause__) == http
    if cause is None:
        assert "likely cause" not in str(raised.value)
    else:
        assert f"; likely cause: {cause}" in str(raised.value)


def test_a_refusal_of_one_object_is_no_matter_of_the_destination(amazon, place):
    client = refusing(amazon, "MetadataTooLarge", "Your metadata headers exceed the size", 400)
    with pytest.raises(Exception, match="MetadataTooLarge") as raised:
        amazon.run(store=ObjectStore(client))
    assert type(raised.value).__name__ == "StorageRejected"


def connected(site, **settings):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "any")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "any")
        return ObjectStore.connect(
            Settings(
                s3_endpoint=site.client.meta.endpoint_url, routes=(str(site.route),), **settings
            )
        )


def test_calls_say_whose_buckets_they_expect_and_who_pays(amazon, place):
    store = connected(
        amazon,
        s3_source_owner=OWNER,
        s3_output_owner="210987654321",
        s3_requester_pays="sources",
    )
    sources, outputs = store._accesses.sources, store._accesses._outputs
    sent = []
    for name, access in (("sources", sources), ("outputs", outputs)):
        access.client.meta.events.register(
            "before-parameter-build.s3",
            lambda params, name=name, **_: sent.append((name, dict(params))),
        )
    amazon.run(store=store)
    assert {name for name, _ in sent} == {"sources", "outputs"}
    for name, params in sent:
        is_source = name == "sources"
        assert params["ExpectedBucketOwner"] == (OWNER if is_source else "210987654321")
        assert params.get("RequestPayer") == ("requester" if is_source else None)
        assert params["Bucket"] == ("raw" if is_source else "clean")


@pytest.fixture
def proxy(s3, tmp_path, store_at, wait_until, case_file):
    """``proxy(mode)`` returns a store behind a proxy that answers as others do, and its log."""
    program = case_file("s3_checksum_proxy.py")
    servers = []

    def start(mode, **settings):
        port = free_port()
        log = tmp_path / f"{mode}.log"
        server = Server(
            "proxy",
            [sys.executable, program, str(port), mode],
            log,
            {"VEIL_S3_ENDPOINT": s3.endpoint},
        )
        server.start()
        servers.append(server)
        store = store_at(s3, f"http://{HOST}:{port}", **settings)
        wait_until(lambda: _answers(store), 30)
        return store, log

    yield start
    for server in servers:
        server.stop()


def _answers(store):
    try:
        store.head(ObjectUri("raw", "absent.jpg"))
    except StorageUnavailable as error:
        return "can't be reached" not in str(error)
    except (AccessDenied, CredentialsRefused):
        pass
    return True


@pytest.mark.parametrize("mode", ["r2", "b2", "gcs"])
def test_a_store_that_refuses_checksum_headers_works_and_is_remembered(proxy, place, mode):
    store, log = proxy(mode)
    with capture_logs() as lines:
        for number in range(3):
            store.put(ObjectUri("clean", f"{place}{number}"), FOREIGN, "image/png", {})
        assert store.put_in_place_of(
            None, ObjectUri("clean", f"{place}new"), FOREIGN, "image/png", {}
        )
    assert [line["event"] for line in lines] == ["store refuses checksum headers"]
    puts = [line for line in log.read_text().splitlines() if line.startswith("PUT ")]
    assert len(puts) == 5
    assert ["checksum-crc32" in line for line in puts] == [True, False, False, False, False]
    with store.open(ObjectUri("clean", f"{place}2")) as opened:
        assert opened.read(1 << 20, 30) == FOREIGN


@pytest.mark.parametrize(("mode", "words"), [
    ("b2", "Unsupported header 'x-amz-checksum-crc32'"),
    ("r2", "not implemented"),
])  # fmt: skip
def test_a_checksum_that_was_chosen_is_never_left_out(proxy, place, mode, words):
    store, _ = proxy(mode)
    headers = UploadHeaders(checksum="SHA256")
    with pytest.raises(Exception, match=words):
        store.put(ObjectUri("clean", place + "a"), FOREIGN, "image/png", {}, headers)
    assert store.head(ObjectUri("clean", place + "a")) is None


def test_a_store_that_knows_checksums_is_asked_once(s3, store_at, place):
    store = store_at(s3)
    store.put(ObjectUri("clean", place + "a"), FOREIGN, "image/png", {})
    assert store._accesses.sources.without_checksums is None


@pytest.mark.parametrize(
    ("mode", "error", "words"),
    [
        ("quota", AccessDenied, "QuotaExceeded: Quota exceeded"),
        ("full507", StorageUnavailable, "minimum free drive threshold"),
        ("slowdown", StorageUnavailable, "SlowDown: Please reduce your request rate"),
        ("ratelimit429", StorageUnavailable, "TooManyRequests: rate"),
        ("skew", CredentialsRefused, "refuses the clock of this machine (RequestTimeTooSkewed"),
        ("redirect301", StorageUnavailable, "set VEIL_S3_REGION"),
    ],
)
def test_the_words_of_the_store_are_part_of_the_error(proxy, place, mode, error, words):
    store, _ = proxy(mode)
    with pytest.raises(error) as raised:
        store.put(ObjectUri("clean", place + "a"), FOREIGN, "image/png", {})
    assert words in str(raised.value)


@pytest.fixture
def denying(s3, place):
    """``denying(condition)`` returns a place in a bucket whose policy denies such uploads.

    SeaweedFS enforces bucket policies.
    """
    bucket = place.rstrip("/")
    client = s3.client()
    client.create_bucket(Bucket=bucket)

    def deny(condition):
        statement = {
            "Effect": "Deny",
            "Principal": "*",
            "Action": "s3:PutObject",
            "Resource": f"arn:aws:s3:::{bucket}/*",
            "Condition": condition,
        }
        policy = {"Version": "2012-10-17", "Statement": [statement]}
        client.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
        site = Site(client, f"s3://raw/{place}=s3://{bucket}", place)
        site.raw.put(place + "a.png", picture())
        return site

    yield deny
    client.delete_bucket_policy(Bucket=bucket)


def test_a_bucket_policy_that_demands_encryption_is_named(denying):
    site = denying({"StringNotEquals": {"s3:x-amz-server-side-encryption": "AES256"}})
    with pytest.raises(DestinationUnavailable, match="VEIL_UPLOAD_ENCRYPTION"):
        site.pipeline().check_store(site.route)


def test_a_kms_key_that_is_denied_is_named_and_costs_no_picture(denying, place):
    headers = UploadHeaders(encryption="aws:kms", kms_key="alias/denied")
    key = "s3:x-amz-server-side-encryption-aws-kms-key-id"
    site = denying({"StringEquals": {key: headers.kms_key}})
    site.uploads = Uploads(output=headers, receipt=headers)
    with pytest.raises(DestinationUnavailable, match="the key policy of alias/denied"):
        site.pipeline().check_store(site.route)
    with pytest.raises(DestinationUnavailable):
        site.run("a.png")
    assert site.clean.head("a.png") is None
