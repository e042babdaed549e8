"""The policies in docs/policies: each allows its program to work, and has no action too many.

moto enforces them. Each test removes one action of a policy, and the program must miss it.
"""

import json
import re
from contextlib import contextmanager
from pathlib import Path

import boto3
import moto.settings
import pytest

from tasks.errors import CredentialsRefused, DestinationUnavailable, VeilError
from tasks.settings import Settings
from tasks.storage.s3 import ObjectStore
from tasks.uploads.sqs import EventQueue
from tests.integration.storage.test_storing import OLDER_RECIPE, Site, picture

FOLDER = Path(__file__).resolve().parents[3] / "docs" / "policies"
# moto checks the names of the calls. Amazon has one permission for a call and for its batch.
NAMES_IN_MOTO = {
    "sqs:DeleteMessage": "sqs:DeleteMessageBatch",
    "sqs:ChangeMessageVisibility": "sqs:ChangeMessageVisibilityBatch",
}
MISSED = re.compile("denies access")
# Amazon S3 answers 403 in place of 404 without the permission to list keys. moto does not.
UNSEEN_BY_MOTO = [("worker", "ListSources"), ("receipt-verify", "ListSources")]
SECONDS = re.compile(r"[\d.]+ s\b|\"seconds\": [\d.]+")


def policy_of(name):
    return json.loads((FOLDER / f"{name}.json").read_text())


def actions_of(statement):
    actions = statement["Action"]
    return [actions] if isinstance(actions, str) else actions


def every_action(*names):
    """Return the policies with each of their actions, by the id of its statement."""
    cases = []
    for name in names:
        for statement in policy_of(name)["Statement"]:
            cases += [(name, statement["Sid"], action) for action in actions_of(statement)]
    return cases


class Account:
    """A user of moto with a policy only, and two buckets of its own."""

    def __init__(self, client, name):
        self.options = {
            "endpoint_url": client.meta.endpoint_url,
            "region_name": "us-east-1",
        }
        self.client, self.name = client, name
        self.raw, self.clean = f"raw-{name}", f"clean-{name}"
        for bucket in (self.raw, self.clean, f"inventory-{name}"):
            client.create_bucket(Bucket=bucket)
        self.site = Site(client, f"s3://{self.raw}=s3://{self.clean}", "")
        self.site.raw.name = self.raw
        self.iam = self.connect("iam", "any", "any")
        self.iam.create_user(UserName=name)
        key = self.iam.create_access_key(UserName=name)["AccessKey"]
        self.keys = (key["AccessKeyId"], key["SecretAccessKey"])
        self.environment = {
            "VEIL_S3_ENDPOINT": client.meta.endpoint_url,
            "VEIL_ROUTES": str(self.site.route),
            "AWS_ACCESS_KEY_ID": self.keys[0],
            "AWS_SECRET_ACCESS_KEY": self.keys[1],
        }

    def connect(self, service, key=None, secret=None):
        return boto3.client(
            service,
            aws_access_key_id=key or self.keys[0],
            aws_secret_access_key=secret or self.keys[1],
            **self.options,
        )

    def store(self):
        return ObjectStore(self.connect("s3"))

    def adapted(self, name, sid=None, removed=None):
        """Return the text of a policy for these buckets, without an action of a statement."""
        policy = policy_of(name)
        for statement in policy["Statement"]:
            kept = actions_of(statement)
            if statement["Sid"] == sid:
                kept = [action for action in kept if action != removed]
            statement["Action"] = [NAMES_IN_MOTO.get(action, action) for action in kept]
        policy["Statement"] = [each for each in policy["Statement"] if each["Action"]]
        text = json.dumps(policy)
        for kind in ("raw", "clean", "inventory"):
            documented = {"raw": "camera-uploads", "clean": "camera-clean"}
            text = text.replace(documented.get(kind, "camera-inventory"), f"{kind}-{self.name}")
        return text.replace(
            "eu-central-1:123456789012:uploads", f"us-east-1:123456789012:{self.name}"
        )

    @contextmanager
    def enforced(self, *policy):
        """Enforce a policy of the documentation for the block; see `adapted`."""
        self.iam.put_user_policy(
            UserName=self.name, PolicyName="veil", PolicyDocument=self.adapted(*policy)
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(moto.settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0.0)
            yield


@pytest.fixture
def account(by_bytes, place):
    made = Account(by_bytes, place.rstrip("/"))
    made.site.raw.put("a.png", picture())
    return made


def test_the_files_are_the_ones_that_the_page_names(repository):
    page = (repository / "docs" / "permissions.md").read_text()
    named = set(re.findall(r"policies/([\w-]+)\.json", page))
    assert named == {path.stem for path in FOLDER.glob("*.json")}


def test_the_two_roles_together_have_the_rights_of_a_worker():
    def statements(*names):
        every = [each for name in names for each in policy_of(name)["Statement"]]
        return sorted(every, key=lambda each: each["Sid"])

    assert statements("worker-sources", "worker-outputs") == statements("worker")


def work(account):
    """Return the outcomes of a worker that makes an output, makes it again, and skips it."""
    store = account.store()
    account.site.pipeline(store=store).check_store(account.site.route)
    reports = [
        account.site.run(store=store, recipe=OLDER_RECIPE),
        account.site.run(store=store),
        account.site.run(store=store),
    ]
    return [(report.status, report.warning) for report in reports]


WORKED = [("anonymized", None), ("anonymized", None), ("skipped", None)]


def test_the_policy_of_workers_is_enough(account):
    with account.enforced("worker"):
        assert work(account) == WORKED


@pytest.mark.parametrize(("name", "sid", "action"), every_action("worker"))
def test_a_worker_needs_every_action(account, name, sid, action):
    if (name, sid) in UNSEEN_BY_MOTO:
        pytest.skip("moto answers 404 for a missing object also without this permission")
    with account.enforced(name, sid, action):
        try:
            missed = [warning or "" for _, warning in work(account)]
        except VeilError as error:
            missed = [str(error)]
    assert any("denies access" in text for text in missed), missed


COMMANDS = {
    "producer": [("enqueue", "--prefix", "s3://{raw}"), ("backfill", "s3://{raw}", "--dry-run")],
    "reconcile": [("reconcile", "s3://{raw}", "--json")],
    "receipt-verify": [("receipt", "verify", "s3://{clean}", "--delete-source", "--yes", "--json")],
}


def outcomes(account, veil, queue, name):
    """Return the exit codes and the printed lines of the commands that have a policy."""
    results = []
    for command in COMMANDS[name]:
        arguments = [part.format(raw=account.raw, clean=account.clean) for part in command]
        done = veil(*arguments, environment={**queue.environment, **account.environment})
        results.append((done.returncode, SECONDS.sub("", done.stdout), done.stderr))
    return results


def prepared(account, name):
    """Let a worker make outputs, so that a command has something to do."""
    account.site.run()
    account.site.raw.put("b.png", picture(1))
    if name == "receipt-verify":
        account.site.run("b.png")


@pytest.mark.parametrize(
    ("name", "codes"), [("producer", [0, 0]), ("reconcile", [1]), ("receipt-verify", [0])]
)
def test_the_policies_of_commands_are_enough(account, veil, unattended, name, codes):
    prepared(account, name)
    with account.enforced(name):
        results = outcomes(account, veil, unattended, name)
    assert [code for code, _, _ in results] == codes
    assert not any(MISSED.search(out + err) for _, out, err in results)
    if name == "receipt-verify":
        assert account.site.raw.keys("") == []


@pytest.mark.parametrize(("name", "sid", "action"), every_action(*COMMANDS))
def test_the_commands_need_every_action(account, veil, unattended, name, sid, action):
    if (name, sid) in UNSEEN_BY_MOTO:
        pytest.skip("moto answers 404 for a missing object also without this permission")
    if sid == "ReadInventories":
        pytest.skip("test_inventory.py reads inventories")
    prepared(account, name)
    with account.enforced(name, sid, action):
        results = outcomes(account, veil, unattended, name)
    assert any(code != 0 and MISSED.search(out + err) for code, out, err in results)
    if name == "receipt-verify":
        assert account.site.raw.keys("") == ["a.png", "b.png"]


def receive(account, url):
    """Do what `veil watch` does with its sources of events."""
    assert next(account.store().list(account.raw), None) is not None
    queue = EventQueue(account.connect("sqs"), url)
    queue.has_redrive_policy()
    messages = queue.receive()
    assert len(messages) == 1
    queue.hide(messages, 0)
    assert queue.delete(messages) == 0


@pytest.fixture
def events(account):
    admin = account.connect("sqs", "any", "any")
    url = admin.create_queue(QueueName=account.name)["QueueUrl"]
    admin.send_message(QueueUrl=url, MessageBody="{}")
    return url


def test_the_policy_of_triggers_is_enough(account, events):
    with account.enforced("trigger"):
        receive(account, events)


@pytest.mark.parametrize(("name", "sid", "action"), every_action("trigger"))
def test_a_trigger_needs_every_action(account, events, name, sid, action):
    with account.enforced(name, sid, action), pytest.raises(VeilError, match="denies access"):
        receive(account, events)


@pytest.fixture
def roles(account):
    """The ARNs of two roles with the rights of a worker on one side each."""
    arns = {}
    user = account.iam.get_user(UserName=account.name)["User"]["Arn"]
    trust = account.adapted("trust").replace("arn:aws:iam::123456789012:role/veil-worker", user)
    for side in ("sources", "outputs"):
        name = f"veil-{side}-{account.name}"
        role = account.iam.create_role(RoleName=name, AssumeRolePolicyDocument=trust)
        account.iam.put_role_policy(
            RoleName=name, PolicyName="veil", PolicyDocument=account.adapted(f"worker-{side}")
        )
        arns[side] = role["Role"]["Arn"]
    return arns


KNOWN = {"s3_external_id": "EXTERNAL-ID"}


def allow_assuming(account, roles):
    """Give the account the policy of a worker that assumes two roles, and nothing else."""
    document = json.loads(account.adapted("assume-roles"))
    document["Statement"][0]["Resource"] = list(roles.values())
    account.iam.put_user_policy(
        UserName=account.name, PolicyName="veil", PolicyDocument=json.dumps(document)
    )


def role_store(account, roles, **more):
    settings = Settings(
        s3_endpoint=account.client.meta.endpoint_url,
        s3_source_role=roles["sources"],
        s3_output_role=roles["outputs"],
        routes=(str(account.site.route),),
        **more,
    )
    return ObjectStore.connect(settings)


@pytest.fixture
def own_keys(account, monkeypatch):
    """The keys of the account in the environment, and moto as the service that assumes roles."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", account.keys[0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", account.keys[1])
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", account.client.meta.endpoint_url)


def test_a_worker_with_two_roles_has_the_rights_of_each_on_its_side(
    account, roles, own_keys, monkeypatch
):
    allow_assuming(account, roles)
    monkeypatch.setattr(moto.settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0.0)
    store = role_store(account, roles, **KNOWN)
    assert account.site.run(store=store, recipe=OLDER_RECIPE).status == "anonymized"
    report = account.site.run(store=store)
    assert (report.status, report.warning) == ("anonymized", None)

    crossed = {"sources": roles["outputs"], "outputs": roles["sources"]}
    with pytest.raises(VeilError, match="denies access"):
        account.site.run(store=role_store(account, crossed, **KNOWN))
    sources_only = {"sources": roles["sources"], "outputs": roles["sources"]}
    one_sided = role_store(account, sources_only, **KNOWN)
    with pytest.raises(DestinationUnavailable, match="denies access"):
        account.site.pipeline(store=one_sided).check_store(account.site.route)


def test_a_role_that_may_not_be_assumed_stops_the_route_and_costs_no_picture(
    account, roles, own_keys, monkeypatch
):
    monkeypatch.setattr(moto.settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0.0)
    store = role_store(account, roles)
    with pytest.raises(CredentialsRefused, match=r"AssumeRole: AccessDenied.*sts:AssumeRole"):
        account.site.run(store=store)


def test_roles_are_assumed_with_the_external_id_of_the_trust_policy(
    account, roles, own_keys, monkeypatch
):
    allow_assuming(account, roles)
    monkeypatch.setattr(moto.settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0.0)
    wrong = role_store(account, roles, s3_external_id="of-others")
    with pytest.raises(CredentialsRefused, match="its trust policy and its external id"):
        account.site.run(store=wrong)
    assert account.site.run(store=role_store(account, roles, **KNOWN)).status == "anonymized"


def test_profiles_of_sources_and_outputs_have_their_own_keys(account, monkeypatch, tmp_path):
    config = tmp_path / "config"
    sections = []
    for name, key in (("originals", "of-sources"), ("published", "of-outputs")):
        sections.append(
            f"[profile {name}]\naws_access_key_id = {key}\naws_secret_access_key = any\n"
        )
    config.write_text("".join(sections))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    store = ObjectStore.connect(
        Settings(
            s3_endpoint=account.client.meta.endpoint_url,
            s3_source_profile="originals",
            s3_output_profile="published",
            routes=(str(account.site.route),),
        )
    )
    signed = set()

    def note(request, **_):
        scope = request.headers["Authorization"].decode()
        bucket = request.url.split("/")[3].split("?")[0]
        signed.add((bucket, re.search("Credential=([^/]+)", scope)[1]))

    for access in (store._accesses.sources, store._accesses._outputs):
        access.client.meta.events.register("before-send.s3", note)
    assert account.site.run(store=store).status == "anonymized"
    assert signed == {(account.raw, "of-sources"), (account.clean, "of-outputs")}
