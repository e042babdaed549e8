"""Stores accept the lifecycle rules and the policy of docs/privacy.md as they are printed."""

import json
import re
import urllib.request
from urllib.error import HTTPError

import pytest

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


def test_the_policy_publishes_outputs_and_nothing_else(s3, repository, place):
    text = (repository / "docs" / "privacy.md").read_text()
    (policy,) = re.findall(r"<!-- policy: outputs -->\n```json\n(.+?)```", text, re.DOTALL)
    client, bucket = s3.client(), place.rstrip("/")
    client.create_bucket(Bucket=bucket)
    receipt = f"{receipts.FOLDER}a.jpg.json"
    for key in ("a.jpg", receipt):
        client.put_object(Bucket=bucket, Key=key, Body=b"x")
    client.put_bucket_policy(Bucket=bucket, Policy=policy.replace("camera-clean", bucket))

    def answer(path):
        try:
            with urllib.request.urlopen(f"{s3.endpoint}/{bucket}/{path}") as found:
                return found.status
        except HTTPError as error:
            return error.code

    assert (answer("a.jpg"), answer(receipt), answer("?list-type=2")) == (200, 403, 403)
    # Workers can read it.
    assert client.head_object(Bucket=bucket, Key=receipt)["ContentLength"] == 1
