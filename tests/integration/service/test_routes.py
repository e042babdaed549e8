"""Routes with settings of their own: one worker, one queue, and each picture as its route says."""

import io
import json
import sys
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from tests.integration.conftest import Worker
from tests.integration.delivery.test_poison import picture
from tests.integration.storage.test_policies import Account
from tools.local.servers import HOST, Server, free_port

ROOT = Path(__file__).resolve().parents[3]
CYAN = (0, 255, 255)  # a picture without a face: see poison_worker.py
CHEEK = (32, 45)  # within the face of all others, below its upper 70 %
SKIN = (250, 220, 200)
ROUTES = """
[routes.plain]
source = "s3://raw/{place}plain"
destination = "s3://clean/{place}plain"

[routes.strict]
source = "s3://raw/{place}strict"
destination = "s3://clean/{place}strict"
suffixes = [".PNG"]
method = "fill"
region = "full"
margin = 0.3
no_faces = "hold"
upload_cache_control = "no-store"
keep_metadata = ["camera"]

[routes.refused]
source = "s3://raw/{place}refused"
destination = "s3://{sealed}"
method = "fill"
"""


@pytest.fixture
def sealed(s3, place):
    """A bucket whose policy demands a header that no route sends."""
    client, name = s3.client(), f"sealed-{place.strip('/')}"
    client.create_bucket(Bucket=name)
    deny = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:PutObject",
        "Resource": f"arn:aws:s3:::{name}/*",
        "Condition": {"StringNotEquals": {"s3:x-amz-server-side-encryption": "AES256"}},
    }
    policy = {"Version": "2012-10-17", "Statement": [deny]}
    client.put_bucket_policy(Bucket=name, Policy=json.dumps(policy))
    return name


@pytest.fixture
def environment(new_queue, s3, place, sealed, tmp_path):
    """The environment of all programs, with the routes of this test at a queue of its own."""
    path = tmp_path / "routes.toml"
    path.write_text(ROUTES.format(place=place, sealed=sealed))
    queue = new_queue()
    return queue, {
        **queue.environment,
        **s3.environment(),
        "VEIL_ROUTES_FILE": str(path),
        "VEIL_SCALES": "64",
        "VEIL_PROCESSES": "1",
        "VEIL_METRICS": f"{HOST}:{free_port()}",
        "PYTHONPATH": str(ROOT),
    }


@pytest.fixture
def worker(environment, tmp_path):
    _, variables = environment
    command = [sys.executable, Path(__file__).parents[1] / "poison_worker.py"]
    worker = Worker(Server("worker", command, tmp_path / "worker.log", variables))
    worker.start()
    yield worker
    worker.server.stop()


def metrics_of(variables):
    with urllib.request.urlopen(f"http://{variables['VEIL_METRICS']}/metrics", timeout=10) as page:
        lines = page.read().decode().splitlines()
    return dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))


def test_each_picture_is_treated_as_its_route_says(
    worker, environment, raw, clean, place, sealed, s3, veil, wait_until
):
    queue, variables = environment
    face, nobody = picture((90, 90, 90)), picture(CYAN)
    waiting = queue.send(raw.put(f"{place}refused/a.png", face))
    plain = queue.report(raw.put(f"{place}plain/a.png", face, Metadata={"camera": "7"}))
    strict = queue.report(raw.put(f"{place}strict/a.png", face, Metadata={"camera": "7"}))
    published = queue.report(raw.put(f"{place}plain/nobody.png", nobody))
    held = queue.report(raw.put(f"{place}strict/nobody.png", nobody))
    raw.put(f"{place}strict/a.gif", face)
    failed, _ = queue.outcome(queue.send(raw.uri(f"{place}strict/a.gif")))

    assert [plain["status"], published["status"]] == ["anonymized", "anonymized"]
    assert [strict["status"], held["status"], failed] == ["anonymized", "held", "FAILURE"]
    nowhere, _ = queue.outcome(queue.send(f"s3://elsewhere/{place}a.png"))
    outside, _ = queue.outcome(
        queue.send(raw.uri(f"{place}strict/a.png"), destination="s3://elsewhere/a.png")
    )
    assert [nowhere, outside] == ["FAILURE", "FAILURE"]
    letter = queue.dead()[str(raw.uri(f"{place}strict/a.gif"))]
    assert letter.error == "BucketNotAllowed"
    assert "has none of the suffixes of the route strict: .png" in letter.message
    assert clean.head(f"{place}strict/nobody.png") is None

    for report, cheek in ((plain, SKIN), (strict, (0, 0, 0))):
        key = report["destination"].removeprefix("s3://clean/")
        image = Image.open(io.BytesIO(clean.get(key)))
        assert image.convert("RGB").getpixel(CHEEK) == cheek
    stored = clean.head(f"{place}strict/a.png")
    assert (stored["CacheControl"], stored["Metadata"]["camera"]) == ("no-store", "7")
    stored = clean.head(f"{place}plain/a.png")
    assert "CacheControl" not in stored
    assert "camera" not in stored["Metadata"]
    assert plain["recipe"] != strict["recipe"]

    series = metrics_of(variables)
    assert series['veil_route_pictures_total{outcome="anonymized",route="plain"}'] == "2.0"
    assert series['veil_route_pictures_total{outcome="held",route="strict"}'] == "1.0"
    assert series['veil_route_pictures_total{outcome="dead",route="refused"}'] == "0.0"
    assert series['veil_route_pictures_total{outcome="dead",route="strict"}'] == "2.0"
    assert series['veil_route_up{route="refused"}'] == "0.0"
    assert series['veil_route_up{route="plain"}'] == "1.0"

    done = veil("status", "--json", environment=variables)
    routes = {route["route"]: route for route in json.loads(done.stdout)["routes"]}
    assert routes["plain"]["recipe"] == plain["recipe"]
    assert routes["strict"]["recipe"] == strict["recipe"]
    assert routes["strict"]["outcomes"] == {"anonymized": 1, "skipped": 0, "held": 1, "dead": 2}
    assert routes[None]["outcomes"] == {"anonymized": 0, "skipped": 0, "held": 0, "dead": 1}
    shown = veil("status", environment=variables).stdout
    assert "strict" in shown
    assert "(no route)" in shown

    for route in ("plain", "strict"):
        done = veil("reconcile", f"s3://raw/{place}{route}", "--json", environment=variables)
        assert done.returncode == 0, done.stdout + done.stderr
        summary = json.loads(done.stdout.splitlines()[-1])["summary"]
        assert summary["recipe"] == routes[route]["recipe"]
        assert summary["route"] == route
        assert summary["current"] == (2 if route == "plain" else 1)
    done = veil("backfill", f"s3://raw/{place}strict", "--dry-run", environment=variables)
    assert "a.gif" not in done.stdout + done.stderr
    assert done.returncode == 0

    done = veil("routes", "check", f"s3://raw/{place}refused/a.png", environment=variables)
    assert done.returncode == 1
    assert "VEIL_UPLOAD_ENCRYPTION" in done.stdout
    assert "who" in done.stdout

    assert not waiting.ready()
    assert len(queue.dead()) == 3
    s3.client().delete_bucket_policy(Bucket=sealed)
    assert wait_until(waiting.ready, 90)
    assert waiting.get()["status"] == "anonymized"


def lines_of(done):
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def account(by_bytes, place):
    made = Account(by_bytes, place.rstrip("/"))
    made.site.raw.put("a.png", picture((90, 90, 90)))
    return made


def test_the_permissions_of_each_route_are_tried(account, veil, unattended):
    variables = {**unattended.environment, **account.environment}
    address = f"s3://{account.raw}/a.png"
    with account.enforced("worker"):
        done = veil("routes", "check", address, "--json", environment=variables)
    assert done.returncode == 0, done.stdout + done.stderr
    fate, checked = lines_of(done)
    assert fate["address"]["output"] == f"s3://{account.clean}/a.png"
    assert fate["address"]["refusal"] is None
    attempts = checked["route"]["attempts"]
    assert [attempt["permission"] for attempt in attempts] == [
        "s3:ListBucket",
        "s3:GetObject",
        "s3:ListBucket",
        "s3:PutObject and s3:GetObject",
        "s3:DeleteObject",
    ]
    assert not any(attempt["error"] for attempt in attempts)


@pytest.mark.parametrize(
    ("sid", "action", "failed"),
    [
        ("ListSources", "s3:ListBucket", ["list sources"]),
        ("ReadSources", "s3:GetObject", ["read a source"]),
        ("ListOutputs", "s3:ListBucket", ["list outputs"]),
        ("ReadAndWriteOutputs", "s3:PutObject", ["write and read an output"]),
        ("DeleteReceipts", "s3:DeleteObject", ["delete a receipt"]),
    ],
)
def test_a_missing_permission_is_named_with_who_must_act(
    account, veil, unattended, sid, action, failed
):
    variables = {**unattended.environment, **account.environment}
    with account.enforced("worker", sid, action):
        done = veil("routes", "check", "--json", environment=variables)
    assert done.returncode == 1
    (checked,) = lines_of(done)
    wrong = [attempt for attempt in checked["route"]["attempts"] if attempt["error"]]
    assert [attempt["action"] for attempt in wrong] == failed
    assert f"must allow {wrong[0]['permission']}" in wrong[0]["who_acts"]


def test_a_missing_bucket_and_a_source_that_is_not_tried_are_named(veil, unattended, s3, place):
    routes = f"s3://raw/{place}none=s3://missing-{place[:-1]}"
    variables = {**unattended.environment, **s3.environment(), "VEIL_ROUTES": routes}
    done = veil("routes", "check", environment=variables)
    assert done.returncode == 1
    assert f"not tried: no object below s3://raw/{place}none" in done.stdout
    assert "must create this one" in done.stdout
    assert "must allow" not in done.stdout


class NoStore(BaseHTTPRequestHandler):
    """A server that is no S3 store, such as a webhook."""

    def do_GET(self):
        self.send_error(405)

    do_PUT = do_HEAD = do_DELETE = do_GET

    def log_message(self, *_):
        """Print nothing."""


def test_an_endpoint_that_is_no_store_is_named(veil, unattended, s3):
    with ThreadingHTTPServer((HOST, 0), NoStore) as server:
        threading.Thread(target=server.serve_forever).start()
        endpoint = f"http://{HOST}:{server.server_port}"
        variables = {**unattended.environment, **s3.environment(), "VEIL_S3_ENDPOINT": endpoint}
        done = veil("routes", "check", environment=variables)
        server.shutdown()
    assert done.returncode == 1
    assert "this is no S3 store: check VEIL_S3_ENDPOINT" in done.stdout
    assert "must name an S3 store in VEIL_S3_ENDPOINT" in done.stdout
    assert "not tried: the sources can't be listed" in done.stdout


def test_an_address_that_no_route_takes_is_refused_by_name(veil, environment, place):
    _, variables = environment
    addresses = [f"s3://raw/{place}strict/a.gif", f"s3://raw/{place}east/a.png", "raw/a.png"]
    done = veil("routes", "check", "--offline", "--json", *addresses, environment=variables)
    assert done.returncode == 1
    off_suffix, off_routes, off_form = [line["address"]["refusal"] for line in lines_of(done)]
    assert "route strict" in off_suffix
    assert "VEIL_ROUTES_FILE" in off_routes
    assert "s3://BUCKET/KEY" in off_form
