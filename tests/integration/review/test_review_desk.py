"""The review desk's interface: strangers, forgeries and hostile names get nothing, two reviewers
never get the same picture, and nothing is decided that is not recorded.
"""

import base64
import io
import json
import signal
import socket
import time
from dataclasses import asdict, replace

import pytest
from PIL import Image

from tasks.addresses import ObjectUri, PrefixUri
from tasks.errors import ObjectNotFound, SourceChanged
from tasks.records import samples
from tasks.records.review import REVIEW_LIST, ReviewEntry
from tasks.records.samples import Sample, SampledPicture
from tasks.routes import Routes
from tasks.signatures import Key
from tasks.storage import decisions, receipts
from tasks.storage.marks import Marks
from tests.desk import Client, Desk
from tools.local.servers import HOST, free_port
from worker.desk import claims, items
from worker.desk import decisions as decisions_of_desk
from worker.desk.items import Item, Items
from worker.sampling.acceptance import accept

HOSTILE = '<img src=x onerror="alert(1)">"\'.jpg'
KEY = "a key for receipts of 32 characters or more"
ROUTE = "s3://raw/desk=s3://clean/desk"


def jpeg(colour="red", size=(320, 240)):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture(scope="module")
def settings(new_queue, s3):
    queue = new_queue()
    return queue, {
        **queue.environment,
        **s3.environment(),
        "VEIL_ROUTES": ROUTE,
        "VEIL_RECEIPT_KEY": KEY,
        "VEIL_RECEIPT_TAGS": "kind=record",
        "VEIL_S3_READ_SECONDS": "1",
    }


@pytest.fixture(scope="module")
def queue(settings):
    return settings[0]


@pytest.fixture(scope="module")
def desk(settings, programs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("desk")
    reviewers = [f"reviewer {number}" for number in range(60)]
    with Desk(programs, folder, settings[1], reviewers=reviewers) as desk:
        desk.unused = iter(reviewers)
        yield desk


@pytest.fixture
def log_in(desk):
    """``log_in()`` returns the client of a new reviewer."""
    return lambda: desk.client(next(desk.unused))


@pytest.fixture
def listed(queue, raw, clean, desk):
    """``listed(key, state)`` puts a picture onto the review list, and returns its entry."""
    queue.client.flushdb()

    def put(key, state="flagged", etag=None, **fields):
        source = raw.put(f"desk/{key}", jpeg())
        clean.put(f"desk/{key}", jpeg("blue"))
        etag = etag or raw.head(f"desk/{key}")["ETag"].strip('"')
        fields = {"reason": "faces still found in the output", **fields}
        entry = ReviewEntry(source, etag, "r", state, time=time.time(), **fields)
        REVIEW_LIST.record(queue.client, entry)
        return entry

    return put


def shown(client, wait_until, **request):
    """The next picture, once the desk has read the list."""
    answers = []

    def found():
        answers.append(client.post("/api/next", request))
        return answers[-1].status == 200 and answers[-1].json["id"]

    wait_until(found, 15)
    return answers[-1].json


def arguments_of(message):
    """The arguments of the task in a message on a queue."""
    return json.loads(base64.b64decode(json.loads(message)["body"]))[0]


def decide(client, item, action, **more):
    return client.post(
        f"/api/decide/{item['id']}", {"action": action, "version": item["version"], **more}
    )


# --- strangers


def test_nothing_is_shown_without_a_session(desk, listed):
    listed("a.jpg")
    client = Client(desk.address)
    assert client.get("/").status == 302
    assert client.get("/login").status == 200
    for path in ("/api/list", "/api/samples", f"/output/{'0' * 24}", f"/thumbnail/{'0' * 24}"):
        assert client.get(path).status == 401, path
    for path in ("/api/next", f"/api/decide/{'0' * 24}", "/logout"):
        assert client.post(path).status == 401, path
    client.cookies.clear()
    stolen = Client(desk.address, Cookie="veil_session=guess")
    assert stolen.get("/api/list").status == 401


def test_a_load_balancer_may_ask_whether_the_desk_answers_and_learns_nothing_else(desk):
    for host in ("10.1.2.3:8600", "review.example"):
        stranger = Client(desk.address)
        answer = stranger.get("/healthz", Host=host)
        assert (answer.status, answer.body) == (200, b"ok\n")
        assert not stranger.cookies
        assert stranger.get("/login", Host=host).status == 421
    assert stranger.post("/healthz").status in (403, 405)


def test_a_token_works_once_and_a_wrong_one_never(desk):
    name = next(desk.unused)
    token = desk.token(name)
    first = desk.client(name)
    assert first.get("/api/list").status == 200
    second = Client(desk.address)
    second.get("/login")
    assert second.post("/login", {"secret": token}).status == 401
    assert second.post("/login", {"secret": ""}).status == 401
    assert second.post("/login", {"secret": ["x"]}).status == 401
    assert token not in [cookie.value for cookie in first.cookies]


def raw_answer(desk, *lines):
    """The first line of the answer to a request that no well-behaved client sends."""
    host, _, port = desk.address.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"\r\n".join([*lines, b"", b""]))
        return connection.recv(4096).partition(b"\r\n")[0]


def test_a_body_that_is_too_large_is_refused_before_it_is_read(desk):
    host = f"Host: {desk.address.removeprefix('http://')}".encode()
    answer = raw_answer(desk, b"POST /login HTTP/1.1", host, b"Content-Length: 99999999")
    assert b" 400 " in answer


def test_a_token_counts_also_where_another_reviewer_is_logged_in(desk, log_in):
    client = log_in()
    before = next(cookie.value for cookie in client.cookies if cookie.name == "veil_session")
    name = next(desk.unused)
    assert client.get("/login").status == 200
    assert client.post("/login", {"secret": desk.token(name)}).status == 200
    assert name in client.get("/").body.decode()
    stale = Client(desk.address, Cookie=f"veil_session={before}")
    assert stale.get("/api/list").status == 401


def test_text_that_is_no_text_is_refused(log_in):
    client = log_in()
    for name in ("after", "id", "sample"):
        assert client.post("/api/next", {name: "\ud800"}).status == 400
    assert client.post("/login", {"secret": "\ud800"}).status == 400


def test_other_methods_are_refused_and_no_refusal_is_kept(desk, log_in):
    client = log_in()
    wanted = {"HEAD": 405, "OPTIONS": 405, "TRACE": 405, "BREW": 405, "PUT": 403, "DELETE": 403}
    answers = []
    for method, status in wanted.items():
        answers.append(client.send(method, "/api/list"))
        assert answers[-1].status == status, method
    answers += [Client(desk.address).get("/api/list"), client.get("/api/list", Host="evil.example")]
    for answer in answers:
        assert answer.headers["Cache-Control"] == "no-store"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]


def test_a_session_ends_with_its_log_out(log_in):
    client = log_in()
    assert client.get("/api/list").status == 200
    assert client.post("/logout").status == 200
    assert client.get("/api/list").status == 401


def test_requests_of_other_sites_are_refused(desk, log_in, listed, queue):
    entry = listed("a.jpg")
    client = log_in()
    client.get("/")
    for headers in (
        {"X_Xsrftoken": None},
        {"X_Xsrftoken": "forged"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://["},
        {"Origin": desk.address.replace("http", "https")},
        {"Host": "evil.example"},
    ):
        answer = client.post("/api/next", {}, **headers)
        assert answer.status in (403, 421), headers
    assert client.get("/api/list", Host="evil.example").status == 421
    assert [one.source for one in REVIEW_LIST.entries(queue.client)] == [entry.source]


def test_every_answer_has_the_headers_of_a_strict_page(log_in, listed, wait_until):
    listed("a.jpg")
    client = log_in()
    item = shown(client, wait_until)
    for path in ("/", "/login", "/api/list", f"/output/{item['id']}", "/files/desk.js", "/none"):
        headers = client.get(path).headers
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert "Server" not in headers
    for cookie in client.cookies:
        assert cookie.has_nonstandard_attr("HttpOnly")
        assert cookie.get_nonstandard_attr("SameSite") == "Strict"
    assert client.get(f"/output/{item['id']}").headers["Cache-Control"] == "no-store"
    thumbnail = client.get(f"/thumbnail/{item['id']}?version={item['version']}")
    assert thumbnail.headers["Cache-Control"].startswith("private")
    assert thumbnail.headers["Vary"] == "Cookie"


def test_tricks_with_paths_lead_nowhere(log_in):
    client = log_in()
    for path in (
        "/files/../server.py",
        "/files/..%2fserver.py",
        "/files/desk.html",
        "/output/s3:%2f%2fraw%2fa.jpg",
        "/output/../../etc/passwd",
        "/api/result/../../x",
        f"/output/{'0' * 24}?side=1",
        "/.git/config",
    ):
        assert client.get(path).status in (400, 404), path
    for query in ("side=9999999", "side=-1", "side=x", "box=1,2,3", "box=-1,0,5,5", "box=a,b,c,d"):
        assert client.get(f"/output/{'0' * 24}?{query}").status in (400, 404), query
    assert client.get("/api/list?from=-1").status == 400
    assert client.get("/api/list?from=" + "9" * 50).status == 400
    assert client.post("/api/next", ["no", "object"]).status == 400


def test_markup_in_keys_is_data(log_in, listed, wait_until):
    listed(HOSTILE)
    client = log_in()
    item = shown(client, wait_until)
    assert item["title"].endswith(HOSTILE)
    page = client.get("/api/list")
    assert page.headers["Content-Type"].startswith("application/json")
    assert HOSTILE not in client.get("/").body.decode()


def test_many_wrong_passwords_are_throttled(settings, programs, tmp_path):
    password = "a long password for tests"
    environment = {**settings[1], "VEIL_REVIEW_PASSWORD": password}
    with Desk(programs, tmp_path, environment, reviewers=()) as desk:
        assert desk.logins == {}
        client = Client(desk.address)
        client.get("/login")
        for secret in (password, "x"):  # which says nothing of the password
            nameless = client.post("/login", {"secret": secret, "name": " "})
            assert nameless.status == 400
            assert nameless.json["message"].startswith("Enter your name")
        assert client.post("/login", {"secret": password, "name": "ana"}).status == 200
        client = Client(desk.address)
        client.get("/login")
        statuses = [client.post("/login", {"secret": "x", "name": "a"}).status for _ in range(12)]
        assert set(statuses[:8]) == {401}
        assert statuses[-1] == 429
        assert client.post("/login", {"secret": password, "name": "ana"}).status == 429
        assert password not in desk.log.read_text()


def test_a_proxy_names_the_reviewer_and_without_its_header_nothing_is_shown(
    settings, programs, tmp_path
):
    environment = {
        **settings[1],
        "VEIL_REVIEW_USER_HEADER": "X-Forwarded-User",
        "VEIL_REVIEW_URL": "https://review.example",
    }
    with Desk(programs, tmp_path, environment, reviewers=()) as desk:
        answer = Client(desk.address).get("/")
        reason = "The proxy names no reviewer in X-Forwarded-User"
        assert (answer.status, answer.json["error"]) == (401, reason)
        client = Client(desk.address, X_Forwarded_User="ana", Host="review.example")
        page = client.get("/")
        assert page.status == 200
        assert b"ana" in page.body
        assert b"Log out" not in page.body
        names = {"__Host-veil_session", "__Host-veil_xsrf"}
        assert {cookie.name for cookie in client.cookies} == names
        assert all(cookie.secure and cookie.path == "/" for cookie in client.cookies)
        for name in ("", "a" * 81):
            assert client.get("/api/list", X_Forwarded_User=name).status == 401
        zoe = "Zoë".encode().decode("latin-1")
        assert "Zoë" in client.get("/", X_Forwarded_User=zoe).body.decode()
        twice = b"X-Forwarded-User: ben\r\nX-Forwarded-User: ana"
        assert b" 401 " in raw_answer(desk, b"GET / HTTP/1.1", b"Host: review.example", twice)
    with Desk(
        programs, tmp_path, {**environment, "VEIL_REVIEW_PROXIES": "10.0.0.1"}, reviewers=()
    ) as desk:
        answer = Client(desk.address, X_Forwarded_User="ana").get("/")
        reason = "127.0.0.1 is no proxy of VEIL_REVIEW_PROXIES"
        assert (answer.status, answer.json["error"]) == (401, reason)
        assert reason in desk.log.read_text()


@pytest.mark.parametrize("url", ["http://review.example", "https://review.example/desk"])
def test_an_address_that_others_could_read_or_with_a_path_is_refused(settings, veil, url):
    environment = {**settings[1], "VEIL_REVIEW_URL": url}
    address = f"{HOST}:{free_port()}"
    done = veil("review", "serve", "--http", address, environment=environment)
    assert done.returncode == 2
    assert "VEIL_REVIEW_URL" in done.stderr


def test_a_desk_that_others_could_open_needs_an_address(settings, veil):
    done = veil("review", "serve", "--http", "0.0.0.0:8600", environment=settings[1])
    assert done.returncode == 2
    assert "VEIL_REVIEW_URL" in done.stderr


def test_the_desk_links_to_the_pages_of_operators_and_status_to_the_desk(
    settings, programs, veil, tmp_path, wait_until
):
    environment = {
        **settings[1],
        "VEIL_FLOWER_URL": "https://flower.example/?a=1&b=2",
        "VEIL_GRAFANA_URL": "https://grafana.example/",
    }

    def address_in_status():
        done = veil("status", "--json", environment=environment)
        return json.loads(done.stdout)["review_desk"]

    with Desk(programs, tmp_path, environment, reviewers=("ana",)) as desk:
        page = desk.client("ana").get("/").body.decode()
        assert 'href="https://flower.example/?a=1&amp;b=2"' in page
        assert 'href="https://grafana.example"' in page
        wait_until(lambda: address_in_status() == desk.address, 15)


def test_a_link_that_is_no_web_address_is_refused(settings, veil):
    for url in ("javascript:alert(1)", "flower.example", "https://veil:secret@flower.example"):
        environment = {**settings[1], "VEIL_FLOWER_URL": url}
        done = veil("review", "serve", "--http", "127.0.0.1:0", environment=environment)
        assert done.returncode == 2
        assert "VEIL_FLOWER_URL" in done.stderr
        assert "secret" not in done.stderr


# --- decisions


def recorded(store, key=""):
    """The decisions on the output `key`, oldest first; they are signed for it."""
    destination = PrefixUri.parse("s3://clean/desk")
    names = decisions.names(store, destination, PrefixUri.parse(f"s3://clean/desk/{key}"))
    records = [decisions.read(store, name, [Key.parse(KEY)]) for name in names]
    assert [record.flaw for record in records] == [None] * len(records)
    return [record.decision for record in sorted(records, key=lambda record: record.name.stamp)]


def test_two_reviewers_never_get_the_same_picture(log_in, listed, wait_until):
    for number in range(3):
        listed(f"{number}.jpg")
    ana, ben = log_in(), log_in()
    first = shown(ana, wait_until)
    second = shown(ben, wait_until)
    assert first["id"] != second["id"]
    assert ben.post("/api/next", {"id": first["id"]}).status == 409
    assert decide(ben, first, "drop").status == 409
    assert ben.post(f"/api/claim/{first['id']}").status == 409
    third = ana.post("/api/next", {"after": first["id"]}).json
    assert third["id"] not in (first["id"], second["id"])
    assert ben.post("/api/next", {"id": first["id"]}).status == 200  # ana has left it
    assert ana.post("/api/next", {"after": third["id"]}).json == {"id": None}  # ben has the others


def test_what_the_desk_keeps_of_decided_pictures_is_bounded(listed, queue, monkeypatch):
    monkeypatch.setattr(items, "MAX_DECIDED", 3)
    for number in range(5):
        listed(f"{number}.jpg")
    on_desk = Items(queue.client, Routes.parse(ROUTE))
    first, *others = pictures = on_desk.listed()
    for item in pictures:
        on_desk.remove(item)
    on_desk.read()
    # The oldest decisions are forgotten, and those pictures are shown again until a worker is done.
    assert on_desk.listed() == [first, others[0]]


def low_score(key, etag="e"):
    output = f"s3://clean/desk/{key}"
    identity = items.id_of("low", output)
    source = f"s3://raw/desk/{key}"
    return Item(
        identity, "low score", source, output, None, etag, "lowest score 0.20", 0.0, output_etag="o"
    )


def test_a_flagged_picture_with_a_low_score_is_listed_and_leaves_once(listed, queue):
    listed("a.jpg")
    listed("b.jpg")
    on_desk = Items(queue.client, Routes.parse(ROUTE))
    on_desk.add_low_scores([low_score("a.jpg"), low_score("c.jpg")])
    both, flagged, low = on_desk.listed()
    assert both.reason == "faces still found in the output; lowest score 0.20"
    assert on_desk.present(both) == both
    assert on_desk.counts() == {"held": 0, "flagged": 2, "low score": 1}
    on_desk.remove(both)
    assert on_desk.listed() == [flagged, low]


def test_the_low_score_of_an_output_that_was_replaced_leaves_the_desk(listed, queue, raw, store):
    listed("a.jpg")
    routes = Routes.parse(ROUTE)
    on_desk = Items(queue.client, routes)
    etag = raw.head("desk/a.jpg")["ETag"].strip('"')
    low = low_score("a.jpg", etag)
    on_desk.add_low_scores([low])
    desk = decisions_of_desk.Desk(queue.app, store, routes, [], on_desk)
    with pytest.raises(SourceChanged):
        desk.decide(low, decisions_of_desk.choice_of({"action": "drop"}), "ana")
    assert on_desk.find(low.id) is None
    assert queue.client.llen("uploads") == 0


def test_redis_holds_no_session(log_in, listed, queue, wait_until):
    """Its other readers could show its cookie as their own, and look at pictures."""
    listed("a.jpg")
    client = log_in()
    claimed = queue.client.get(claims.KEY + shown(client, wait_until)["id"]).decode()
    (session,) = [cookie.value for cookie in client.cookies if cookie.name == "veil_session"]
    assert session not in claimed


def test_a_claim_ends_by_itself(log_in, listed, queue, wait_until):
    listed("a.jpg")
    item = shown(log_in(), wait_until)
    assert 60 < queue.client.ttl(claims.KEY + item["id"]) <= claims.SECONDS
    queue.client.delete(claims.KEY + item["id"])
    assert shown(log_in(), wait_until)["id"] == item["id"]


def test_a_redo_is_recorded_signed_and_queued_with_all_areas(
    log_in, listed, queue, store, wait_until
):
    listed("redo.jpg", options={"extra": [[1, 1, 9, 9]], "method": "blur"})
    client = log_in()
    item = shown(client, wait_until)
    areas = {"extra": [[10, 20, 90, 120]], "exempt": [[0, 0, 5, 5]], "region": "full"}
    answer = decide(client, item, "redo", **areas)
    assert answer.status == 200, answer.body
    assert queue.client.llen("uploads") == 1
    (decision,) = recorded(store, "redo.jpg")
    assert decision.action == "redo"
    assert decision.by.startswith("reviewer")
    assert decision.source_etag == item["etag"]
    assert decision.options == {
        "method": "blur",
        "region": 1.0,
        "exempt": [[0, 0, 5, 5]],
        "extra": [[1, 1, 9, 9], [10, 20, 90, 120]],
        "version": item["etag"],
    }
    assert "raw" not in json.dumps(asdict(decision))
    assert client.get(f"/api/result/{answer.json['task']}").json == {"state": "pending"}


def test_a_second_decision_hides_the_areas_of_a_redo_that_waits(log_in, listed, queue, wait_until):
    """Its output takes the place of the other one: without them, their faces would show."""
    shown_entry = listed("twice.jpg", "held")
    client = log_in()
    item = shown(client, wait_until)
    first = {"extra": [[10, 20, 90, 120]], "exempt": [[0, 0, 5, 5]], "region": "full"}
    assert decide(client, item, "redo", **first).status == 200
    waiting = REVIEW_LIST.find(queue.client, [shown_entry.name])[shown_entry.name]
    hidden = {"region": 1.0, "extra": [[10, 20, 90, 120]]}
    assert waiting.options == hidden
    assert not client.get("/api/list").json["count"]
    REVIEW_LIST.record(queue.client, shown_entry)  # as if Redis had lost its last second
    assert not client.get("/api/list").json["count"]
    REVIEW_LIST.record(queue.client, waiting)
    released = decide(client, item, "release")  # as if the redo had failed
    assert released.status == 200, released.body
    _, _, options = arguments_of(queue.client.lindex("uploads", 0))
    assert options == {**hidden, "release": item["etag"]}


@pytest.mark.parametrize(
    "fields",
    [
        {"extra": [[5, 5, 1, 1]]},
        {"extra": "all"},
        {"method": "erase"},
        {"region": 7},
        {"action": "publish"},
        {"action": "mark", "exposed": []},
    ],
)
def test_a_wrong_decision_changes_nothing(log_in, listed, queue, wait_until, fields):
    listed("wrong.jpg")
    client = log_in()
    item = shown(client, wait_until)
    answer = decide(client, item, fields.pop("action", "redo"), **fields)
    assert answer.status == 400
    assert answer.json["error"] == "InvalidRequest"
    assert queue.client.llen("uploads") == 0
    assert REVIEW_LIST.count(queue.client) == 1


def test_a_picture_that_changed_since_it_was_shown_is_not_published(
    log_in, listed, queue, raw, wait_until
):
    entry = listed("changed.jpg", "held")
    client = log_in()
    item = shown(client, wait_until)
    raw.put("desk/changed.jpg", jpeg("green"))
    answer = decide(client, item, "release")
    assert (answer.status, answer.json["error"]) == (409, "SourceChanged")
    raw.client.delete_object(Bucket="raw", Key="desk/changed.jpg")
    assert decide(client, item, "release").status == 404
    listed("changed.jpg", "held", left_xyxy=[[1, 2, 3, 4]])  # a worker was here meanwhile
    assert decide(client, item, "release").status == 409
    REVIEW_LIST.drop(queue.client, [entry.source])
    assert decide(client, item, "release").status == 409
    assert queue.client.llen("uploads") == 0


def test_a_release_and_a_drop_are_recorded(log_in, listed, queue, store, wait_until):
    listed("release.jpg", "held")
    client = log_in()
    item = shown(client, wait_until)
    assert decide(client, item, "release").status == 200
    assert queue.client.llen("uploads") == 1
    listed("drop.jpg")
    item = shown(client, wait_until, after=item["id"])
    assert decide(client, item, "drop").status == 200
    # A worker takes the released picture off the list. Until then the desk does not show it again.
    assert [one.source for one in REVIEW_LIST.entries(queue.client)] == [
        "s3://raw/desk/release.jpg"
    ]
    assert client.post("/api/next", {"after": item["id"]}).json == {"id": None}
    assert [decision.action for decision in recorded(store, "release.jpg")] == ["release"]
    assert [decision.action for decision in recorded(store, "drop.jpg")] == ["drop"]


def test_without_a_record_nothing_is_decided(log_in, listed, queue, s3, wait_until, settings):
    listed("unrecorded.jpg", "held")
    client = log_in()
    item = shown(client, wait_until)
    s3.server.process.send_signal(signal.SIGSTOP)
    try:
        answer = decide(client, item, "release")
        assert answer.status == 503
    finally:
        s3.server.process.send_signal(signal.SIGCONT)
    assert queue.client.llen("uploads") == 0


def test_sources_are_shown_to_nobody_unless_the_desk_says_so(
    log_in, listed, settings, programs, tmp_path, wait_until
):
    listed("source.jpg")
    client = log_in()
    item = shown(client, wait_until)
    assert client.get(f"/source/{item['id']}").status == 403
    client.post(f"/api/claim/{item['id']}", {"end": True})
    with Desk(programs, tmp_path, settings[1], "--show-sources") as open_desk:
        client = open_desk.client("ana")
        item = shown(client, wait_until)
        seen = client.get(f"/source/{item['id']}?side=100")
        assert seen.headers["Cache-Control"] == "no-store"
        assert seen.headers["X-Picture-Size"] == "320x240"
        assert Image.open(io.BytesIO(seen.body)).size == (100, 75)
        part = client.get(f"/source/{item['id']}?side=100&box=0,0,40,20")
        assert Image.open(io.BytesIO(part.body)).size == (40, 20)


def test_a_picture_that_is_gone_or_no_picture_is_a_clear_state(log_in, listed, clean, wait_until):
    listed("gone.jpg")
    client = log_in()
    item = shown(client, wait_until)
    clean.put("desk/gone.jpg", b"no picture")
    broken = client.get(f"/output/{item['id']}")
    assert (broken.status, broken.json["error"]) == (422, "UnreadableImage")
    clean.client.delete_object(Bucket="clean", Key="desk/gone.jpg")
    assert client.get(f"/output/{item['id']}").status == 404


def test_a_reviewer_is_told_of_an_output_of_another_version(log_in, listed, store, wait_until):
    """What she draws on it would be at other places of the version that is held."""
    entry = listed("versions.jpg", "held")
    output = ObjectUri.parse("s3://clean/desk/versions.jpg")
    source, marks = ObjectUri.parse(entry.source), Marks([Key.parse(KEY)])
    client = log_in()
    item = shown(client, wait_until)
    assert (item["has_output"], item["is_other_version"]) == (True, False)  # of nobody
    for etag, is_other in ((entry.etag, False), ("of another version", True)):
        metadata = {receipts.SOURCE_ETAG: marks.version(source, etag)}
        store.put(output, jpeg("blue"), "image/jpeg", metadata)
        item = client.post("/api/next", {"id": item["id"]}).json
        assert (item["has_output"], item["is_other_version"]) == (True, is_other)


def test_a_reviewer_is_told_of_frames_that_are_not_shown(log_in, listed, clean, wait_until):
    listed("moving.gif")
    file = io.BytesIO()
    first, second = (Image.new("RGB", (32, 24), colour) for colour in ("red", "blue"))
    first.save(file, "GIF", save_all=True, append_images=[second], duration=100)
    clean.put("desk/moving.gif", file.getvalue())
    client = log_in()
    answer = client.get(f"/output/{shown(client, wait_until)['id']}")
    assert answer.headers["X-Picture-Note"] == "the first of 2 frames"


def test_a_sample_is_marked_by_several_reviewers(log_in, listed, queue, clean, store):
    listed("unrelated.jpg")
    pictures = []
    for number in range(3):
        output = clean.put(f"desk/sample-{number}.jpg", jpeg("blue"))
        etag = clean.head(f"desk/sample-{number}.jpg")["ETag"].strip('"')
        pictures.append(SampledPicture(output, etag, ROUTE, None, None, 320, 240))
    samples.store(
        queue.client, Sample("5a3b1e00", ["s3://clean/desk"], 1, 3, time.time(), pictures)
    )
    ana, ben = log_in(), log_in()
    (sample,) = ana.get("/api/samples").json["samples"]
    assert (sample["drawn"], sample["marked"]) == (3, 0)
    request = {"sample": "5a3b1e00", "unmarked": True}
    first, second = ana.post("/api/next", request).json, ben.post("/api/next", request).json
    assert first["id"] != second["id"]
    polygon = [5, 5, 50, 5, 50, 50]
    assert decide(ana, first, "mark", exposed=[polygon]).status == 400
    assert decide(ana, first, "mark", exposed=[[5, 5, 50, 50]]).status == 200
    marked = decide(ben, second, "mark", exposed=[])
    assert marked.status == 200
    assert decide(ben, {**second, **marked.json}, "drop").status == 400
    third = ana.post("/api/next", {**request, "after": first["id"]}).json
    clean.put("desk/sample-2.jpg", jpeg("green"))
    assert decide(ana, third, "mark", exposed=[]).status == 409
    marks = samples.marks(queue.client, "5a3b1e00")
    assert {n: (mark.exposed_xyxy, mark.is_gone) for n, mark in marks.items()} == {
        first["number"]: ([[5, 5, 50, 50]], False),
        second["number"]: ([], False),
        third["number"]: ([], True),
    }
    marks = [*recorded(store, "sample-0.jpg"), *recorded(store, "sample-1.jpg")]
    assert {decision.sample for decision in marks} == {"5a3b1e00"}


def sample_of(queue, clean, name, keys, created):
    """Put a sample of outputs onto the desk, and return it."""
    pictures = []
    for key in keys:
        output = clean.put(f"desk/{key}", jpeg("blue"))
        etag = clean.head(f"desk/{key}")["ETag"].strip('"')
        pictures.append(SampledPicture(output, etag, ROUTE, None, None, 320, 240))
    drawn = Sample(name, ["s3://clean/desk"], 1, len(keys), created, pictures)
    samples.store(queue.client, drawn)
    return drawn


def test_a_mark_that_was_not_seen_is_not_replaced(log_in, listed, queue, clean):
    """Two reviewers may have one picture if a page sleeps, and one has it in two tabs."""
    sample_of(queue, clean, "5a3b1e04", ["a.jpg"], time.time())
    ana, ben = log_in(), log_in()
    request = {"sample": "5a3b1e04"}
    of_ana = ana.post("/api/next", request).json
    queue.client.delete(claims.KEY + of_ana["id"])  # her page sleeps
    of_ben = ben.post("/api/next", request).json
    assert decide(ben, of_ben, "mark", exposed=[[5, 5, 50, 50]]).status == 200
    queue.client.delete(claims.KEY + of_ana["id"])  # his page is closed
    assert ana.post(f"/api/claim/{of_ana['id']}").status == 200  # her page wakes
    assert decide(ana, of_ana, "mark", exposed=[]).status == 409
    assert samples.marks(queue.client, "5a3b1e04")[0].exposed_xyxy == [[5, 5, 50, 50]]
    seen = ana.post("/api/next", {"id": of_ana["id"]}).json
    assert seen["mark"]["exposed_xyxy"] == [[5, 5, 50, 50]]
    marked = decide(ana, seen, "mark", exposed=[]).json
    assert decide(ana, {**seen, **marked}, "mark", exposed=[[1, 1, 9, 9]]).status == 200
    assert samples.marks(queue.client, "5a3b1e04")[0].exposed_xyxy == [[1, 1, 9, 9]]


def test_no_output_gets_the_mark_of_another_one_if_a_sample_is_drawn_anew(
    log_in, listed, queue, clean
):
    """It may be of other outputs, if Redis has lost it and the archive has changed since."""
    sample_of(queue, clean, "5a3b1e05", ["a.jpg"], time.time())
    client = log_in()
    request = {"sample": "5a3b1e05"}
    first = client.post("/api/next", request).json
    queue.client.delete(samples.NAMES)
    assert decide(client, first, "mark", exposed=[]).status == 409
    sample_of(queue, clean, "5a3b1e05", ["b.jpg"], time.time() + 1)
    assert decide(client, first, "mark", exposed=[]).status == 409
    assert not samples.marks(queue.client, "5a3b1e05")
    (row,) = client.get("/api/list?sample=5a3b1e05").json["rows"]
    assert row["title"] == "s3://clean/desk/b.jpg"
    assert decide(client, client.post("/api/next", request).json, "mark").status == 200


def test_sampled_outputs_that_are_gone_are_skipped_and_the_sample_finishes(
    log_in, queue, listed, clean
):
    pictures = []
    for number in range(4):
        output = clean.put(f"desk/gone-{number}.jpg", jpeg("blue"))
        etag = clean.head(f"desk/gone-{number}.jpg")["ETag"].strip('"')
        pictures.append(SampledPicture(output, etag, ROUTE, None, None, 320, 240))
    drawn = Sample("60de0000", ["s3://clean/desk"], 1, 4, time.time(), pictures)
    samples.store(queue.client, drawn)
    samples.mark(queue.client, drawn.name, 3, [[1, 1, 9, 9]], "ana")
    clean.put("desk/gone-0.jpg", jpeg("green"))
    clean.client.delete_object(Bucket="clean", Key="desk/gone-1.jpg")
    clean.put("desk/gone-3.jpg", jpeg("green"))  # as a redo does
    client = log_in()
    item = client.post("/api/next", {"sample": drawn.name, "unmarked": True}).json
    assert (item["number"], item["is_gone"]) == (2, False)
    assert decide(client, item, "mark", exposed=[]).status == 200
    first = client.post("/api/next", {"id": items.id_of("sample", f"{drawn.name}\n0")}).json
    assert (first["is_gone"], first["mark"]) == (True, None)
    rows = client.get(f"/api/list?sample={drawn.name}").json["rows"]
    assert [(row["marked"], row["is_gone"]) for row in rows] == [
        (True, True),
        (True, True),
        (True, False),
        (True, False),
    ]
    assert client.get("/api/samples").json["samples"][0]["marked"] == 4
    result = accept(drawn, samples.marks(queue.client, drawn.name))
    assert (result.reviewed, result.skipped, result.is_complete) == (2, 2, True)


def test_a_sampled_output_is_not_made_again_of_another_version_of_its_source(
    queue, raw, clean, store
):
    """The areas of one version, of which some stay clear, are at other places of another."""
    routes, keys = Routes.parse(ROUTE), [Key.parse(KEY)]
    desk = decisions_of_desk.Desk(queue.app, store, routes, keys, Items(queue.client, routes))
    source, output = (bucket.put("desk/sampled.jpg", jpeg()) for bucket in (raw, clean))
    etags = [bucket.head("desk/sampled.jpg")["ETag"].strip('"') for bucket in (raw, clean)]
    picture = SampledPicture(output, etags[1], ROUTE, source, etags[0], 320, 240)
    item = items.item_of_sample("5a3b1e02", 0, picture)
    waiting = queue.client.llen("uploads")
    raw.put("desk/sampled.jpg", jpeg("green"))
    with pytest.raises(SourceChanged):
        desk.decide(item, decisions_of_desk.choice_of({"action": "redo"}), "ana")
    raw.client.delete_object(Bucket="raw", Key="desk/sampled.jpg")
    with pytest.raises(ObjectNotFound):
        desk.decide(item, decisions_of_desk.choice_of({"action": "redo"}), "ana")
    assert queue.client.llen("uploads") == waiting
    desk.decide(item, decisions_of_desk.choice_of({"action": "mark"}), "ana")
    assert samples.marks(queue.client, "5a3b1e02")[0].exposed_xyxy == []


def test_a_sampled_output_that_is_made_again_hides_the_areas_of_a_redo_that_waits(
    listed, queue, raw, clean, store
):
    """The output of the one takes the place of that of the other, whichever comes last."""
    routes, keys = Routes.parse(ROUTE), [Key.parse(KEY)]
    on_desk = Items(queue.client, routes)
    desk = decisions_of_desk.Desk(queue.app, store, routes, keys, on_desk)
    entry = listed("both.jpg", options={"extra": [[1, 1, 9, 9]], "region": 1.0})
    etag = clean.head("desk/both.jpg")["ETag"].strip('"')
    picture = SampledPicture("s3://clean/desk/both.jpg", etag, ROUTE, entry.source, entry.etag)
    sampled = items.item_of_sample("5a3b1e06", 0, picture)
    more = {"action": "redo", "extra": [[20, 20, 30, 30]]}
    desk.decide(sampled, decisions_of_desk.choice_of(more), "ana")
    both = {"region": 1.0, "extra": [[1, 1, 9, 9], [20, 20, 30, 30]]}
    assert arguments_of(queue.client.lindex("uploads", 0))[2] == both
    (item,) = on_desk.listed()
    desk.decide(item, decisions_of_desk.choice_of({"action": "release"}), "ben")
    released = arguments_of(queue.client.lindex("uploads", 0))[2]
    assert released == {**both, "release": entry.etag}


def test_an_entry_that_was_recorded_since_the_picture_was_shown_is_not_dropped(listed, queue):
    """A worker may hold the same version again meanwhile, for a reason that nobody has seen."""
    shown = listed("twice.jpg", "held")
    item = items.item_of(shown, Routes.parse(ROUTE))
    reason = "an object with the rule hold was found"
    REVIEW_LIST.record(queue.client, replace(shown, time=shown.time + 1, reason=reason))
    items.drop_entry(queue.client, item)
    assert REVIEW_LIST.find(queue.client, [shown.name])[shown.name].reason == reason
    REVIEW_LIST.record(queue.client, shown)
    items.drop_entry(queue.client, item)
    assert not REVIEW_LIST.find(queue.client, [shown.name])


def test_a_record_has_the_headers_of_receipts(log_in, listed, store, wait_until):
    listed("headers.jpg")
    client = log_in()
    assert decide(client, shown(client, wait_until), "drop").status == 200
    destination = PrefixUri.parse("s3://clean/desk")
    output = PrefixUri.parse("s3://clean/desk/headers.jpg")
    (name,) = decisions.names(store, destination, output)
    assert store.tags(name.uri) == {"kind": "record"}


def test_a_low_score_is_accepted_or_dropped_and_the_record_says_which(listed, queue, store):
    on_desk = Items(queue.client, Routes.parse(ROUTE))
    desk = decisions_of_desk.Desk(queue.app, store, Routes.parse(ROUTE), [Key.parse(KEY)], on_desk)
    for action in ("accept", "drop"):
        entry = listed(f"low-{action}.jpg", "held")
        low = replace(low_score(f"low-{action}.jpg", entry.etag), output_etag=None)
        on_desk.add_low_scores([low])
        assert desk.decide(low, decisions_of_desk.choice_of({"action": action}), "ana") is None
        assert on_desk.find(low.id) is None
        (decision,) = recorded(store, f"low-{action}.jpg")
        assert decision.action == action
    assert REVIEW_LIST.count(queue.client) == 2  # which are other versions of the picture


def test_a_second_redo_of_a_low_score_hides_the_areas_of_the_first_one(listed, queue, store):
    """A page that has slept, or a second tab, may still show it."""
    on_desk = Items(queue.client, Routes.parse(ROUTE))
    desk = decisions_of_desk.Desk(queue.app, store, Routes.parse(ROUTE), [Key.parse(KEY)], on_desk)
    entry = listed("low-twice.jpg")
    REVIEW_LIST.drop(queue.client, [entry.name])
    low = replace(low_score("low-twice.jpg", entry.etag), output_etag=None)
    on_desk.add_low_scores([low])
    for area in ([1, 1, 9, 9], [20, 20, 30, 30]):
        desk.decide(low, decisions_of_desk.choice_of({"action": "redo", "extra": [area]}), "ana")
    options = arguments_of(queue.client.lindex("uploads", 0))[2]
    assert options == {"extra": [[1, 1, 9, 9], [20, 20, 30, 30]]}
    assert not REVIEW_LIST.count(queue.client)


def test_only_a_low_score_is_accepted_as_it_is(log_in, listed, wait_until):
    listed("a.jpg", "held")
    client = log_in()
    item = shown(client, wait_until)
    assert decide(client, item, "accept").status == 400


def test_an_output_that_was_made_from_the_desk_can_be_made_again(
    log_in, listed, queue, store, wait_until
):
    listed("again.jpg", "held", labels={"FACE": 1, "plate": 2}, options={"extra": [[1, 1, 9, 9]]})
    client = log_in()
    item = shown(client, wait_until)
    released = decide(client, item, "release").json
    queue.client.hdel(REVIEW_LIST.key, *queue.client.hkeys(REVIEW_LIST.key))  # as a worker does
    assert decide(client, item, "redo", extra=[[2, 2, 8, 8]]).status == 409
    item["version"] = released["version"]
    assert decide(client, item, "drop").status == 409
    again = decide(client, item, "redo", extra=[[2, 2, 8, 8]])
    assert again.status == 200
    assert again.json["version"] != released["version"]
    first, second = recorded(store, "again.jpg")
    assert second.options == {
        "extra": [[1, 1, 9, 9], [2, 2, 8, 8]],
        "release": first.options["release"],
    }
    assert queue.client.llen("uploads") == 2


def test_a_held_picture_whose_source_was_deleted_can_be_dropped(
    log_in, listed, queue, raw, wait_until
):
    listed("deleted.jpg", "held")
    client = log_in()
    item = shown(client, wait_until)
    raw.client.delete_object(Bucket="raw", Key="desk/deleted.jpg")
    released = decide(client, item, "release")
    assert (released.status, released.json["message"].endswith("drop it")) == (404, True)
    assert decide(client, item, "drop").status == 200
    assert REVIEW_LIST.count(queue.client) == 0


def test_a_held_picture_says_if_an_earlier_output_is_published_and_which_labels_hold_it(
    log_in, listed, clean, wait_until
):
    listed(
        "plate.jpg",
        "held",
        reason="an object with the rule hold was found: plate",
        labels={"FACE": 2, "plate": 1},
        box_labels=["plate", "FACE"],
        boxes_xyxy=[[1, 1, 30, 20], [40, 1, 60, 30]],
        options={"rules": {"plate": {"hold": True}}},
    )
    client = log_in()
    item = shown(client, wait_until)
    assert item["has_output"] is True
    assert client.get(f"/output/{item['id']}?side=100").status == 200
    assert item["labels"] == {"FACE": 2, "plate": 1}
    assert item["box_labels"] == ["plate", "FACE"]
    assert item["reason"] == "an object with the rule hold was found: plate"
    clean.client.delete_object(Bucket="clean", Key="desk/plate.jpg")
    assert client.post("/api/next", {"id": item["id"]}).json["has_output"] is False


def test_the_log_has_no_token_and_no_key(desk):
    log = "\n".join(
        line for line in desk.log.read_text().splitlines() if "for reviewer" not in line
    )
    assert "token" not in log
    assert "onerror" not in log
    assert "desk/" not in log
