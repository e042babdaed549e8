"""Stores accept the lifecycle rules and the policies of docs/privacy.md as they are printed."""

import json
import re
import urllib.request
from urllib.error import HTTPError

import pytest
from botocore.exceptions import ClientError

from tasks.storage import receipts

RULES = ("sources", "outputs and receipts")


@pytest.fixture(scope="module")
def examples(repository):
    text = (repository / "docs" / "privacy.md").read_text()
    found = re.findall(r"<!-- lifecycle: (.+?) -->\n```json\n(.+?)```", text, re.DOTALL)
    return {name: json.loads(rule) for name, rule in found}


def test_there_is_a_rule_for_sources_and_one_for_outputs(examples):
    assert tuple(examples) == RULES


@pytest.mark.parametrize("name", RULES)
def test_a_store_takes_the_rule_as_it_stands(listing_client, examples, place, name):
    bucket = place.rstrip("/")
    listing_client.create_bucket(Bucket=bucket)
    listing_client.put_bucket_lifecycle_configuration(
        Bucket=bucket, LifecycleConfiguration=examples[name]
    )
    (kept,) = listing_client.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    (given,) = examples[name]["Rules"]
    assert {field: kept.get(field) for field in given} == given


def test_outputs_do_not_outlive_their_receipts(examples):
    (rule,) = examples["outputs and receipts"]["Rules"]
    assert receipts.FOLDER.startswith(rule["Filter"]["Prefix"])
    assert receipts.FOLDER_OF_LONG_KEYS.startswith(rule["Filter"]["Prefix"])


def test_what_is_deleted_is_gone_in_a_bucket_with_versions_too(examples):
    for example in examples.values():
        assert all(
            rule["NoncurrentVersionExpiration"]["NoncurrentDays"] <= 1 for rule in example["Rules"]
        )


RECEIPT = f"{receipts.FOLDER}a.jpg.json"
OF_LONG_KEY = f"{receipts.FOLDER_OF_LONG_KEYS}{'0' * 64}/a"


@pytest.fixture
def publish(s3, repository, place):
    """Return a function that stores keys in a bucket with a policy of the page.

    It returns the client, the bucket, and what the public gets: an HTTP status by path.
    """
    text = (repository / "docs" / "privacy.md").read_text()
    client, bucket = s3.client(), place.rstrip("/")

    def answer(path):
        try:
            with urllib.request.urlopen(f"{s3.endpoint}/{bucket}/{path}") as found:
                return found.status
        except HTTPError as error:
            return error.code

    def publish(name, documented, keys):
        (policy,) = re.findall(rf"<!-- policy: {name} -->\n```json\n(.+?)```", text, re.DOTALL)
        client.create_bucket(Bucket=bucket)
        for key in keys:
            client.put_object(Bucket=bucket, Key=key, Body=b"x")
        client.put_bucket_policy(
            Bucket=bucket, Policy=policy.replace(f":::{documented}/", f":::{bucket}/")
        )
        return client, bucket, {path: answer(path) for path in (*keys, "?list-type=2")}

    return publish


@pytest.mark.parametrize("destinations", [("",), ("one/", "deep/two/")])
def test_the_policy_publishes_the_outputs_of_all_routes_and_nothing_else(publish, destinations):
    outputs = [f"{prefix}{key}" for prefix in destinations for key in ("a.jpg", "b/c.veil/d.jpg")]
    private = [f"{prefix}{key}" for prefix in destinations for key in (RECEIPT, OF_LONG_KEY)]
    client, bucket, answers = publish("outputs", "camera-clean", [*outputs, *private])
    assert answers == {
        **dict.fromkeys(outputs, 200),
        **dict.fromkeys([*private, "?list-type=2"], 403),
    }
    for key in private:  # Workers can read them.
        assert client.head_object(Bucket=bucket, Key=key)["ContentLength"] == 1


def test_the_policy_for_a_shared_bucket_publishes_no_source_and_no_receipt(publish):
    keys = ["raw/a.jpg", "clean/a.jpg", f"clean/{RECEIPT}", f"clean/{OF_LONG_KEY}", "other/a.jpg"]
    client, bucket, answers = publish("outputs beside sources", "pictures", keys)
    assert [path for path, status in answers.items() if status != 403] == ["clean/a.jpg"]
    # The page says that this store denies them to everybody.
    with pytest.raises(ClientError, match="403"):
        client.head_object(Bucket=bucket, Key=f"clean/{RECEIPT}")
