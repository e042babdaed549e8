"""The policy in docs/policies/worker.json is enough for workers: enforced by moto and SeaweedFS."""

import json
from contextlib import contextmanager
from pathlib import Path

import boto3
import moto.settings
import pytest
from structlog.testing import capture_logs

from tasks.errors import DestinationUnavailable, ObjectNotFound
from tasks.storage.s3 import ObjectStore
from tests.integration.storage.test_storing import OLDER_RECIPE, RECIPE, Site, picture

POLICY = Path(__file__).resolve().parents[3] / "docs" / "policies" / "worker.json"


def documented(site):
    """Return the policy of the documentation for the route of `site`."""
    text = POLICY.read_text()
    text = text.replace("camera-uploads/", str(site.route.source).removeprefix("s3://"))
    text = text.replace("camera-clean/", str(site.route.destination).removeprefix("s3://"))
    return json.loads(text.replace("camera-uploads", "raw").replace("camera-clean", "clean"))


def without(policy, sid, action=None):
    """Return `policy` without an action of the statement `sid`, or without the statement."""
    statements = []
    for statement in policy["Statement"]:
        if statement["Sid"] != sid:
            statements.append(statement)
        elif action:
            actions = [name for name in statement["Action"] if name != action]
            statements.append({**statement, "Action": actions})
    return {**policy, "Statement": statements}


class Policed(Site):
    """A site on moto whose workers have the permissions of a policy only."""

    def __init__(self, client, place):
        super().__init__(client, f"s3://raw/{place}=s3://clean/{place}", place)
        options = {
            "endpoint_url": client.meta.endpoint_url,
            "region_name": "us-east-1",
        }
        self.user = place.rstrip("/")
        self.iam = boto3.client(
            "iam", aws_access_key_id="any", aws_secret_access_key="any", **options
        )
        self.iam.create_user(UserName=self.user)
        key = self.iam.create_access_key(UserName=self.user)["AccessKey"]
        self.worker_store = ObjectStore(
            boto3.client(
                "s3",
                aws_access_key_id=key["AccessKeyId"],
                aws_secret_access_key=key["SecretAccessKey"],
                **options,
            )
        )

    @contextmanager
    def enforced(self, policy):
        """Enforce `policy` for the block, for every request to moto."""
        self.iam.put_user_policy(
            UserName=self.user, PolicyName="worker", PolicyDocument=json.dumps(policy)
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(moto.settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0.0)
            yield

    def work(self, policy, **options):
        with self.enforced(policy):
            return self.run(store=self.worker_store, **options)


@pytest.fixture
def policed(by_bytes, place):
    site = Policed(by_bytes, place)
    site.raw.put(place + "a.png", picture())
    return site


def test_the_documented_policy_is_enough_for_a_worker(policed, place):
    policy = documented(policed)
    with capture_logs() as lines:
        assert policed.work(policy, recipe=OLDER_RECIPE).status == "anonymized"
        report = policed.work(policy)
        assert policed.work(policy).status == "skipped"
    assert (report.status, report.warning) == ("anonymized", None)
    assert lines == []
    assert len(policed.receipts()) == 1
    assert policed.verified() == {place + "a.png": ("ok",)}


def test_the_documented_policy_is_enough_to_withdraw_a_receipt(policed, place):
    policed.run(recipe=OLDER_RECIPE)
    before = policed.clean.keys(place)

    def delete():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(moto.settings, "INITIAL_NO_AUTH_ACTION_COUNT", float("inf"))
            policed.client.delete_object(Bucket="raw", Key=place + "a.png")

    with pytest.raises(ObjectNotFound, match="was deleted while it was in work"):
        policed.work(documented(policed), confirm=delete)
    assert policed.clean.keys(place) == before


@pytest.mark.parametrize("action", ["s3:GetObject", "s3:PutObject"])
def test_a_worker_needs_to_read_and_write_outputs(policed, action):
    policy = without(documented(policed), "ReadAndWriteOutputs", action)
    with pytest.raises(DestinationUnavailable, match="denies access"):
        policed.work(policy)


@pytest.mark.parametrize("sid", ["DeleteReceipts", "ListOutputs"])
def test_a_refused_deletion_of_an_older_receipt_is_a_warning(policed, place, sid):
    policy = documented(policed)
    assert policed.work(policy, recipe=OLDER_RECIPE).status == "anonymized"
    with capture_logs() as lines:
        report = policed.work(without(policy, sid))

    assert report.status == "anonymized"
    assert report.warning.startswith("older receipts stay: s3://clean/")
    (line,) = lines
    assert (line["event"], line["log_level"], line["error"]) == (
        "older receipts stay", "warning", "AccessDenied",
    )  # fmt: skip
    assert line["output"] == policed.clean.uri(place + "a.png")
    assert len(policed.receipts()) == 2
    assert policed.clean.head(place + "a.png")["Metadata"]["veil-recipe"] == RECIPE
    assert policed.verified() == {place + "a.png": ("ok",)}
    assert policed.states() == {"a.png": "current"}
    assert policed.work(policy).status == "skipped"


def test_a_receipt_that_may_not_be_withdrawn_does_not_hide_the_reason(policed, place):
    def delete():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(moto.settings, "INITIAL_NO_AUTH_ACTION_COUNT", float("inf"))
            policed.client.delete_object(Bucket="raw", Key=place + "a.png")

    with (
        capture_logs() as lines,
        pytest.raises(ObjectNotFound, match="was deleted while it was in work"),
    ):
        policed.work(without(documented(policed), "DeleteReceipts"), confirm=delete)
    assert [line["event"] for line in lines] == ["receipt without an output stays"]
    assert policed.clean.head(place + "a.png") is None


@pytest.fixture
def retaining(s3, place):
    """A site on SeaweedFS with a destination whose policy forbids to delete receipts."""
    bucket = place.rstrip("/")
    client = s3.client()
    client.create_bucket(Bucket=bucket)
    site = Site(client, f"s3://raw/{place}=s3://{bucket}", place)
    site.raw.put(place + "a.png", picture())
    statement = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:DeleteObject",
        "Resource": f"arn:aws:s3:::{bucket}/.veil/receipts*",
    }
    policy = {"Version": "2012-10-17", "Statement": [statement]}
    client.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
    yield site
    client.delete_bucket_policy(Bucket=bucket)


def test_a_bucket_that_keeps_every_receipt_gets_the_new_output(retaining):
    assert retaining.run(recipe=OLDER_RECIPE).warning is None
    report = retaining.run()
    assert report.status == "anonymized"
    assert "S3 denies access" in report.warning
    assert len(retaining.receipts()) == 2
    assert retaining.verified() == {"a.png": ("ok",)}
    assert retaining.states() == {"a.png": "current"}
    assert retaining.run().status == "skipped"
