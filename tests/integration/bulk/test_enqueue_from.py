"""`veil enqueue --from`: requests in a file or on standard input, one a line."""

import json
import os
import subprocess

import pytest


def messages(queue, name="uploads"):
    """Return the requests on a queue, oldest first."""
    items = map(json.loads, reversed(queue.client.lrange(name, 0, -1)))
    return [item["headers"]["argsrepr"] for item in items]


@pytest.fixture
def enqueue(veil, unattended, environment, tmp_path):
    """``enqueue(content, *flags)`` runs the command with a file of this content."""

    def run(content, *flags):
        path = tmp_path / "requests"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        variables = {**environment, **unattended.environment}
        return veil("enqueue", "--from", path, *flags, environment=variables)

    return run


def test_addresses_and_objects_may_be_mixed(enqueue, unattended):
    lines = [
        "\ufeffs3://raw/a b.jpg\r",
        "",
        '{"source": "s3://raw/ü.jpg", "destination": "s3://clean/other/ü.jpg"}',
        '{"source": "s3://raw/c.jpg", "options": {"region": "full", "extra": [[1, 2, 3, 4]]}}',
        '  {"source": "s3://raw/d.jpg", "options": null}  ',
    ]
    done = enqueue("\n".join(lines), "--json", "--method", "fill", "--queue", "backfill")
    assert done.returncode == 0, done.stderr
    printed = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["source"] for line in printed] == [
        "s3://raw/a b.jpg", "s3://raw/ü.jpg", "s3://raw/c.jpg", "s3://raw/d.jpg",
    ]  # fmt: skip
    assert printed[1]["destination"] == "s3://clean/other/ü.jpg"
    requests = messages(unattended, "backfill")
    assert len(requests) == 4
    assert "'method': 'fill'" in requests[0]
    assert "s3://clean/other/ü.jpg" in requests[1]
    assert "'region': 1.0" in requests[2]
    assert "'method': 'fill'" in requests[2]
    assert "4 enqueued on backfill" in done.stderr


def test_all_prefixes_and_files_are_enqueued(enqueue, unattended, raw, place, tmp_path):
    keys = [f"{place}{name}/a.jpg" for name in ("one", "two")]
    prefixes = [raw.put(key, b"x").removesuffix("a.jpg") for key in keys]
    other = tmp_path / "other"
    other.write_text("s3://raw/c.jpg")
    flags = ["--prefix", prefixes[0], "--prefix", prefixes[1], "--from", str(other)]

    done = enqueue("s3://raw/b.jpg", *flags)

    assert done.returncode == 0, done.stderr
    assert messages(unattended) == [*map(raw.uri, keys), "s3://raw/b.jpg", "s3://raw/c.jpg"]


def test_the_options_of_a_line_take_precedence(enqueue, unattended):
    done = enqueue(
        '{"source": "s3://raw/a.jpg", "options": {"method": "blur"}}', "--method", "fill"
    )
    assert done.returncode == 0
    (request,) = messages(unattended)
    assert "'method': 'blur'" in request
    assert "fill" not in request


@pytest.mark.parametrize("flag", [("--exempt", "0,0,9,9"), ("--rule", "FACE: smallest=30")])
def test_what_stays_visible_is_for_the_version_of_the_source_that_is_there(
    veil, enqueue, unattended, environment, raw, portrait, place, flag
):
    source = raw.put(f"{place}a.jpg", portrait)
    etag = raw.client.head_object(Bucket=raw.name, Key=f"{place}a.jpg")["ETag"].strip('"')
    variables = {**environment, **unattended.environment}
    below = veil("enqueue", "--prefix", raw.uri(place), *flag, environment=variables)
    named = veil("enqueue", source, *flag, environment=variables)
    own = json.dumps({"source": source, "options": {"version": "another"}})
    hidden = json.dumps({"source": source, "options": {"exempt": [], "rules": {}}})
    of_file = enqueue(f"{source}\n{own}\n{hidden}\n", *flag)
    assert [done.returncode for done in (below, named, of_file)] == [0, 0, 0]
    requests = messages(unattended)
    assert len(requests) == 5
    assert all(f"'version': '{etag}'" in request for request in requests[:3])
    assert "'version': 'another'" in requests[3]
    assert requests[4] == f"{source} {{}}"


def test_nothing_of_a_source_that_is_missing_stays_visible(enqueue, unattended, raw, place):
    done = enqueue(raw.uri(f"{place}none.jpg"), "--exempt", "0,0,9,9")
    assert done.returncode == 2
    assert f"{place}none.jpg: there is no such object" in done.stderr
    assert messages(unattended) == []


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("raw/a.jpg", "line 2: 'raw/a.jpg' is not an address"),
        ("# night shift", "line 2: '# night shift' is not an address: a line has an address"),
        ("s3://raw", "names no object"),
        ("s3://elsewhere/a.jpg", "line 2: s3://elsewhere/a.jpg is in no source of VEIL_ROUTES"),
        ('{"source": "s3://raw/a.jpg"', "line 2: no valid JSON"),
        ('{"sauce": "s3://raw/a.jpg"}', "line 2: not a valid request: sauce: unknown"),
        ('{"source": "s3://raw/a.jpg", "options": {"methode": 1}}', "methode: unknown"),
        ('{"source": "s3://raw/a.jpg", "options": 7}', "options: give a JSON object"),
        ('{"source": 7}', "line 2: not a valid request: source"),
        ("[" * 100_000, "line 2"),
        ("x" * 300_000, "line 2: longer than 262,144 bytes"),
        (b"s3://raw/\xff.jpg", "line 2: no text in UTF-8"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "line 2: no text in UTF-8"),
    ],
)
def test_a_wrong_line_is_named_by_its_number(enqueue, unattended, line, complaint):
    content = line if isinstance(line, bytes) else line.encode()
    done = enqueue(b"s3://raw/good.jpg\n" + content + b"\n")
    assert done.returncode == 2
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr
    assert messages(unattended) == []


def test_what_was_enqueued_before_a_wrong_line_is_counted(enqueue, unattended):
    lines = [f"s3://raw/{number}.jpg" for number in range(1200)]
    done = enqueue("\n".join([*lines, "nonsense"]))
    assert done.returncode == 2
    assert "line 1201" in done.stderr
    assert "1,000 enqueued on uploads" in done.stderr
    assert len(messages(unattended)) == 1000


def test_a_missing_file_is_named(veil, unattended, environment, tmp_path):
    variables = {**environment, **unattended.environment}
    for path in (tmp_path / "absent", tmp_path):
        done = veil("enqueue", "--from", path, environment=variables)
        assert done.returncode == 2
        assert f"--from {path}" in done.stderr


def test_requests_may_come_through_a_pipe(programs, unattended, environment):
    done = subprocess.run(
        [programs / "veil", "enqueue", "--from", "-"],
        input=b"s3://raw/a.jpg\ns3://raw/b.jpg\n",
        env={**os.environ, **environment, **unattended.environment},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(messages(unattended)) == 2


@pytest.mark.parametrize("flags", [(), ("--wait",), ("--json",)])
def test_an_empty_file_is_no_success_as_an_empty_prefix_is_none(enqueue, unattended, flags):
    done = enqueue("\n\n", *flags)
    assert done.returncode == 1
    assert "NothingFound: nothing was enqueued: no request in --from" in done.stderr
    assert done.stdout == ""
    assert messages(unattended) == []


def test_a_first_batch_that_is_refused_is_counted_as_none(enqueue, unattended):
    done = enqueue("nonsense")
    assert done.returncode == 2
    assert "0 enqueued on uploads before this error" in done.stderr
