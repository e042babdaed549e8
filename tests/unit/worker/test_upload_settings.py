"""The settings of uploads: what they send with outputs and receipts, and which are refused."""

import pytest

from tasks.errors import InvalidRequest, SettingsInvalid
from tasks.storage.upload_headers import UploadHeaders
from worker.settings import WorkerSettings

KEY = "arn:aws:kms:eu-central-1:123456789012:key/1234"


@pytest.fixture
def uploads(monkeypatch):
    """Return a function that returns the uploads for ``VEIL_`` variables."""

    def load(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(f"VEIL_{name.upper()}", value)
        return WorkerSettings.load().uploads()

    return load


def test_uploads_have_no_further_headers_by_default(uploads):
    plain = uploads()
    assert plain.output.arguments() == plain.receipt.arguments() == {}
    assert (plain.kept.metadata, plain.kept.tags, plain.kept.cache_control) == ((), False, False)


def test_every_setting_is_a_header_of_outputs(uploads):
    headers = uploads(
        upload_encryption="aws:kms",
        upload_kms_key=KEY,
        upload_bucket_key="true",
        upload_storage_class="STANDARD_IA",
        upload_tags="team=faces, cost centre=a=b+c",
        upload_acl="bucket-owner-full-control",
        upload_cache_control="max-age=60",
        upload_content_disposition="inline",
        upload_checksum="SHA256",
    )
    assert headers.output.arguments() == {
        "ServerSideEncryption": "aws:kms",
        "SSEKMSKeyId": KEY,
        "BucketKeyEnabled": True,
        "StorageClass": "STANDARD_IA",
        "Tagging": "team=faces&cost+centre=a%3Db%2Bc",
        "ACL": "bucket-owner-full-control",
        "CacheControl": "max-age=60",
        "ContentDisposition": "inline",
        "ChecksumAlgorithm": "SHA256",
    }
    assert headers.receipt.arguments() == {
        "ServerSideEncryption": "aws:kms",
        "SSEKMSKeyId": KEY,
        "BucketKeyEnabled": True,
        "Tagging": "team=faces&cost+centre=a%3Db%2Bc",
        "ChecksumAlgorithm": "SHA256",
    }


def test_receipts_may_differ_from_outputs(uploads):
    headers = uploads(
        upload_encryption="aws:kms",
        upload_kms_key=KEY,
        upload_tags="team=faces",
        receipt_encryption="AES256",
        receipt_tags="",
        receipt_storage_class="GLACIER_IR",
        receipt_acl="private",
    )
    assert headers.receipt.arguments() == {
        "ServerSideEncryption": "AES256",
        "Tagging": "team=faces",
        "StorageClass": "GLACIER_IR",
        "ACL": "private",
    }
    other = uploads(receipt_encryption="", receipt_kms_key="other", receipt_tags="kind=receipt")
    assert other.receipt.arguments()["SSEKMSKeyId"] == "other"
    assert other.receipt.arguments()["Tagging"] == "kind=receipt"


@pytest.mark.parametrize(
    ("variables", "complaint"),
    [
        ({"upload_encryption": "aes"}, "VEIL_UPLOAD_ENCRYPTION"),
        ({"upload_kms_key": KEY}, "a KMS key needs"),
        ({"upload_encryption": "AES256", "upload_kms_key": KEY}, "a KMS key needs"),
        ({"upload_encryption": "aws:kms:dsse", "upload_bucket_key": "1"}, "a bucket key needs"),
        (
            {"receipt_encryption": "AES256", "receipt_kms_key": KEY},
            "VEIL_RECEIPT_ENCRYPTION",
        ),
        ({"upload_storage_class": "DEEP_ARCHIVE"}, "can't be read at once"),
        ({"receipt_acl": "public-read"}, "VEIL_RECEIPT_ACL"),
        ({"receipt_acl": "authenticated-read"}, "VEIL_RECEIPT_ACL"),
        ({"receipt_storage_class": "two words"}, "VEIL_RECEIPT_STORAGE_CLASS"),
        ({"upload_storage_class": "standard"}, "in capitals, like STANDARD_IA"),
        ({"upload_tags": "team"}, "'team' is no tag"),
        ({"upload_tags": "aws:team=a"}, "reserved"),
        ({"upload_tags": "a=1,a=2"}, "given twice"),
        ({"upload_tags": ",".join(f"t{n}=1" for n in range(11))}, "11 tags: S3 allows 10"),
        ({"upload_acl": "everybody"}, "VEIL_UPLOAD_ACL"),
        ({"upload_cache_control": "a\nb"}, "on one line"),
        ({"upload_checksum": "MD5"}, "VEIL_UPLOAD_CHECKSUM"),
        ({"keep_metadata": "veil-source-etag"}, "Veil's own"),
        ({"keep_metadata": "two words"}, "no name of user metadata"),
        ({"s3_source_owner": "123"}, "12 digits"),
        ({"s3_output_role": "veil"}, "must be an ARN"),
        ({"s3_external_id": "abc"}, "needs VEIL_S3_SOURCE_ROLE"),
        ({"s3_requester_pays": "everybody"}, "VEIL_S3_REQUESTER_PAYS"),
    ],
)
def test_wrong_and_contradictory_settings_are_refused_by_name(uploads, variables, complaint):
    with pytest.raises(SettingsInvalid, match=complaint):
        uploads(**variables)


def test_names_of_metadata_are_those_of_s3(uploads):
    kept = uploads(keep_metadata="Camera, x-amz-meta-Place,camera").kept
    assert kept.metadata == ("camera", "place")


def test_tags_of_the_settings_take_precedence_over_those_of_the_source():
    headers = UploadHeaders(tags=(("team", "faces"),))
    merged = headers.with_tags({"team": "other", "year": "2026", "aws:cloudformation:id": "x"})
    assert dict(merged.tags) == {"team": "faces", "year": "2026"}


def test_more_tags_than_s3_allows_are_refused():
    headers = UploadHeaders(tags=(("team", "faces"),))
    with pytest.raises(InvalidRequest, match="has 10 tags, and VEIL_UPLOAD_TAGS adds 1"):
        headers.with_tags({f"t{n}": "1" for n in range(10)})
