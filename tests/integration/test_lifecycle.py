"""The lifecycle rules of docs/privacy.md: stores take them as they stand there."""

import json
import re

import pytest

from tasks import receipts

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
    listing_client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration=examples[name])
    (kept,) = listing_client.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    (given,) = examples[name]["Rules"]
    assert {field: kept.get(field) for field in given} == given


def test_outputs_do_not_outlive_their_receipts(examples):
    (rule,) = examples["outputs and receipts"]["Rules"]
    assert receipts.FOLDER.startswith(rule["Filter"]["Prefix"])
    assert receipts.FOLDER_OF_LONG_KEYS.startswith(rule["Filter"]["Prefix"])


def test_what_is_deleted_is_gone_in_a_bucket_with_versions_too(examples):
    for example in examples.values():
        assert all(rule["NoncurrentVersionExpiration"]["NoncurrentDays"] <= 1 for rule in example["Rules"])
