"""Wrong inputs, and the line that each gets: it names the input, and what to do instead."""

import sys
from zipfile import ZipFile

import pytest

from tools.local.servers import HOST
from worker import cli

NO_SERVER = "redis://127.0.0.1:1/0"  # nobody listens on port 1


# What is wrong, the arguments, the settings, and the expected text. None of these commands gets as
# far as a server, so they run in this process.
EARLY = [
    ("empty region", ["anonymize", ".", "-o", "out"], {"VEIL_REGION": ""},
     "VEIL_REGION: must be top, full, or a number from 0.5 to 1"),
    ("region", ["anonymize", ".", "-o", "out"], {"VEIL_REGION": "tp"},
     "VEIL_REGION: must be top, full, or a number from 0.5 to 1"),
    ("two settings", ["reconcile", "s3://raw"], {"VEIL_ROUTES": "raw", "VEIL_METRICS": "9100"},
     "VEIL_ROUTES: 'raw' is not a route like s3://raw=s3://clean; VEIL_METRICS: must be HOST:PORT"),
    ("misspelt setting", ["settings"], {"VEIL_CONCURENCY": "4"},
     "VEIL_CONCURENCY is not a setting: did you mean VEIL_CONCURRENCY?"),
    ("redis address", ["reconcile", "s3://raw"], {"VEIL_REDIS_URL": "http://host"},
     "VEIL_REDIS_URL: must look like redis://HOST:PORT/0"),
    ("bucket in a route", ["reconcile", "s3://raw"], {"VEIL_ROUTES": "s3://Raw=s3://clean"},
     "'s3://Raw' is not an address like s3://BUCKET/KEY: a bucket's name has 3 to 63 lower-case"),
    ("routes that overlap", ["reconcile", "s3://raw"], {"VEIL_ROUTES": "s3://raw=s3://raw/clean"},
     "overlap: keep them apart"),
    ("no scheme", ["enqueue", "raw/a.jpg"], {},
     "'raw/a.jpg' is not an address like s3://BUCKET/KEY"),
    ("bucket name", ["enqueue", "s3://My_Pictures/a.jpg"], {},
     "is not an address like s3://BUCKET/KEY: a bucket's name has 3 to 63 lower-case letters"),
    ("folder as picture", ["enqueue", "s3://raw/in/"], {}, "use s3://BUCKET/KEY"),
    ("off the routes", ["enqueue", "s3://other/a.jpg"], {"VEIL_ROUTES": "s3://raw=s3://clean"},
     "s3://other/a.jpg is in no source of VEIL_ROUTES: add a route, or correct the address"),
    ("prefix off the routes", ["enqueue", "--prefix", "s3://raw"],
     {"VEIL_ROUTES": "s3://raw/in=s3://clean"},
     "s3://raw/ is not within a source of VEIL_ROUTES (s3://raw/in/): routes begin below: s3://raw/in/"),
    ("three numbers", ["enqueue", "s3://raw/a.jpg", "--extra", "1,2,3"], {},
     "--extra '1,2,3': an area has four whole numbers, X1,Y1,X2,Y2 with X1 < X2 and Y1 < Y2"),
    ("area off the picture", ["enqueue", "s3://raw/a.jpg", "--extra=-1,2,3,4"], {},
     "--extra '-1,2,3,4': an area has four whole numbers"),
    ("method", ["enqueue", "s3://raw/a.jpg", "--method", "smear"], {},
     "--method 'smear': choose from surround, blur, pixelate, fill"),
    ("region of a picture", ["enqueue", "s3://raw/a.jpg", "--region", "half"], {},
     "region: must be top, full, or a number from 0.5 to 1"),
    ("queue", ["enqueue", "s3://raw/a.jpg", "--queue", "express"], {},
     "choose from uploads, backfill"),
    ("nothing to enqueue", ["enqueue", "-q"], {}, "give addresses, --prefix or --from"),
    ("no output folder", ["anonymize", "."], {}, "give a folder, or --detect-only"),
    ("misspelt flag", ["anonymize", ".", "--outptu", "x"], {},
     "--output) (veil anonymize -h shows the usage)"),
    ("no argument", ["anonymize"], {}, "Missing argument 'PATH' (veil anonymize -h shows"),
    ("empty path", ["anonymize", "", "-o", "out"], {}, "an empty path: name a file or a folder"),
    ("empty output", ["anonymize", ".", "-o", ""], {}, "an empty path: name a file or a folder"),
    ("address as path", ["anonymize", "s3://raw/a.jpg", "-o", "out"], {},
     "s3://raw/a.jpg is no local path: `veil enqueue` takes s3:// addresses"),
    ("address as output", ["anonymize", ".", "-o", "s3://clean"], {},
     "s3://clean is no local path"),
    ("file as output", ["anonymize", ".", "-o", "a.jpg"], {}, "a.jpg is a file"),
    ("picture as output", ["anonymize", "a.jpg", "-o", "clean.JPG"], {},
     "clean.JPG would be a folder with the outputs: name it without .JPG"),
    ("unreadable path", ["anonymize", "x" * 300, "-o", "out"], {},
     "xxx can't be read: File name too long"),
    ("two suffixes", ["backfill", "s3://raw", "--suffix", ".jpg,.png"], {},
     "'.jpg,.png' is one suffix: repeat the flag for each"),
    ("missing file", ["anonymize", "missing.jpg", "-o", "out"], {}, "missing.jpg does not exist"),
    ("dangling link", ["anonymize", "link.jpg", "-o", "out"], {},
     "link.jpg is a link to gone.jpg, which does not exist"),
    ("all without yes", ["dead", "drop", "--all"], {}, "add --yes to confirm every picture"),
    ("recipe", ["reconcile", "s3://raw", "--recipe", "new"], {}, "a recipe has 16 hex digits"),
    ("backfill off the routes", ["backfill", "s3://other"], {"VEIL_ROUTES": "s3://raw=s3://clean"},
     "no route of VEIL_ROUTES leads from s3://other to anywhere: add a route"),
    ("time", ["backfill", "s3://raw", "--since", "yesterday"], {},
     "'yesterday' is not a time like 2026-11-30"),
    ("times in the wrong order",
     ["backfill", "s3://raw", "--since", "2026-12-01", "--until", "2026-11-01"], {},
     "--since: must be before --until"),
    ("no routes", ["reconcile", "s3://raw"], {"VEIL_ROUTES": ""},
     "VEIL_ROUTES: give one or more routes like s3://raw=s3://clean"),
    ("timeout", ["enqueue", "s3://raw/a.jpg", "--wait", "--timeout", "inf"], {},
     "'--timeout': inf is not a finite number"),
    ("two triggers", ["watch", "--poll", "60", "--http", "127.0.0.1:1"], {},
     "give one of --sqs, --http and --poll"),
    ("name of a worker", ["worker", "--name", "a b@c"], {},
     "'a b@c' must have letters, digits, dots, hyphens and underscores only (at most 64), such as"),
    ("region", ["settings", "--check"], {"VEIL_S3_REGION": "europe"},
     "VEIL_S3_REGION: europe is no region of Amazon S3, such as eu-central-1; another store needs"),
    ("profile", ["settings", "--check"], {"VEIL_S3_OUTPUT_PROFILE": "nosuch"},
     "VEIL_S3_OUTPUT_PROFILE: boto3 knows no profile 'nosuch': add it to"),
    ("authorities", ["settings", "--check"],
     {"AWS_CA_BUNDLE": "/nowhere", "VEIL_S3_ENDPOINT": "https://store.internal"},
     "AWS_CA_BUNDLE: /nowhere can't be read (No such file or directory)"),
    ("file of a secret", ["settings", "--check"], {"VEIL_REDIS_PASSWORD_FILE": "/nowhere"},
     "VEIL_REDIS_PASSWORD_FILE: /nowhere can't be read (No such file or directory)"),
    ("fit", ["train", "fit", "d", "--to", "r", "--start", "default", "--size", "d1"], {},
     "--size: has no effect with --start: leave out one of them"),
    ("no wait", ["enqueue", "s3://raw/a.jpg", "--timeout", "5"], {},
     "--timeout: has no effect without --wait"),
    ("follow", ["backfill", "--follow", "a", "--restart"], {},
     "--restart: has no effect with --follow: leave out one of them"),
    ("follow a source", ["backfill", "s3://raw/a", "--follow", "a"], {},
     "has no effect with --follow: leave out one of them"),
    ("rehearsal", ["backfill", "s3://raw/a", "--dry-run", "--wait"], {},
     "--wait: has no effect with --dry-run: leave out one of them"),
    ("workers of a run", ["status", "a", "--workers"], {},
     "--workers: has no effect with a run: leave out one of them"),
    ("poll without overlap", ["watch", "--http", "127.0.0.1:1", "--overlap", "5"], {},
     "--overlap: has no effect without --poll"),
    ("only detect", ["anonymize", "a.jpg", "--detect-only", "--region", "full"], {},
     "--region: has no effect with --detect-only: leave out one of them"),
    ("reviewer", ["review", "serve", "--reviewer", "ana", "--reviewer", "ana "], {},
     "--reviewer: ana is named twice"),
    ("token beside a proxy", ["review", "serve", "--reviewer", "ana"],
     {"VEIL_REVIEW_USER_HEADER": "X-User", "VEIL_REVIEW_PROXIES": "127.0.0.1"},
     "VEIL_REVIEW_USER_HEADER is set"),
    ("unprintable reviewer", ["review", "serve", "--reviewer", "a\tb"], {},
     "a name has 1 to 80 printable characters"),
    ("reviewer without a name", ["review", "serve", "--reviewer", " "], {},
     "a name has 1 to 80 printable characters"),
    ("two ways to the desk", ["review", "serve"],
     {"VEIL_REVIEW_PASSWORD": "a-password-of-this-test", "VEIL_REVIEW_USER_HEADER": "X-User",
      "VEIL_REVIEW_PROXIES": "127.0.0.1"},
     "VEIL_REVIEW_PASSWORD and VEIL_REVIEW_USER_HEADER are both set"),
    ("a setting twice", ["preview", ".", "--compare", "region=full,region=0.5"], {},
     "VEIL_REGION is given twice: repeat --compare to try several values"),
    ("no value", ["watch", "--sqs"], {}, "(veil watch -h shows the usage)"),
    ("no value of a subcommand", ["dead", "retry", "--error"], {}, "(veil dead retry -h shows"),
    ("empty suffix", ["watch", "--http", "127.0.0.1:1", "--suffix", ""], {},
     "an empty suffix selects nothing: name one, such as .jpg"),
    ("backfill of nothing", ["backfill", "s3://raw", "--since", "now"], {},
     "no source is modified after now: a backfill takes those from a time of the past on"),
    ("prefix of keys", ["settings", "--check"], {"VEIL_REDIS_PREFIX": "tr ial"},
     "VEIL_REDIS_PREFIX: must be up to 64 letters, digits and any of _.:-"),
    ("suffix of HEIC", ["settings", "--check"], {"VEIL_HEIF_SUFFIX": "jpg"},
     "VEIL_HEIF_SUFFIX: must be a suffix such as .jpg, or empty"),
    ("service of sentinels", ["settings", "--check"], {"VEIL_REDIS_SERVICE": "a b"},
     "VEIL_REDIS_SERVICE: must be a name of up to 200 ASCII characters without spaces"),
    ("preview above the routes", ["preview", "s3://school-uploads"],
     {"VEIL_ROUTES": "s3://school-uploads/2026=s3://clean"},
     "no route of VEIL_ROUTES leads from s3://school-uploads/: routes begin below: "
     "s3://school-uploads/2026/"),
    ("folder as sheet", ["preview", ".", "-o", "."], {}, ". is a folder: name a file in it"),
    ("nowhere for a report", ["sample", "s3://clean", "-o", "gone/x.html"], {},
     "gone/x.html can't be written: name a file in a folder that exists"),
    ("command", ["anonymise"], {}, "'anonymize'"),
]  # fmt: skip

# These reach for a server or the model, which a process of their own keeps apart from other tests.
LATE = [
    ("missing model", ["model", "info"], {"VEIL_MODEL": "gone.zip"},
     "VEIL_MODEL: gone.zip does not exist: give the folder of a SavedModel, a ZIP file of it"),
    ("no redis", ["dead", "list"], {"VEIL_REDIS_URL": NO_SERVER},
     f"connecting to {HOST}:1. Connection refused): check VEIL_REDIS_URL"),
    ("weak token", ["watch", "--http", "127.0.0.1:1"], {"VEIL_WEBHOOK_TOKEN": "short"},
     "make one with `openssl rand -hex 32`"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "settings", "expected"),
    [pytest.param(*case, id=name) for name, *case in EARLY],
)
def test_a_wrong_input_is_named_with_what_to_do(
    monkeypatch, capsys, tmp_path, arguments, settings, expected
):
    (tmp_path / "link.jpg").symlink_to("gone.jpg")
    (tmp_path / "a.jpg").touch()
    monkeypatch.chdir(tmp_path)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["veil", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed = capsys.readouterr()
    assert ended.value.code == 2
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("veil: ")
    assert expected in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "settings", "expected"),
    [pytest.param(*case, id=name) for name, *case in LATE],
)
def test_a_server_or_a_model_that_is_not_there_is_named(
    veil, tmp_path, arguments, settings, expected
):
    done = veil(*arguments, environment=settings, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("veil: ")
    assert expected in line


def reasons(text):
    """Return the lines of standard error, without that of a worker that its supervisor stopped."""
    return [line for line in text.splitlines() if not line.startswith('{"reason": "a signal')]


@pytest.mark.parametrize("count", [1, 2])
def test_workers_without_a_usable_model_end_and_are_not_restarted(
    veil, redis_server, tmp_path, count
):
    (tmp_path / "own.zip").write_text("no ZIP")
    environment = {**redis_server.environment(), "VEIL_MODEL": "own.zip"}

    done = veil("worker", f"--workers={count}", environment=environment, cwd=tmp_path)

    assert done.returncode == 2
    lines = reasons(done.stderr)
    assert 1 <= len(lines) <= count
    said = "veil: ModelInvalid: VEIL_MODEL: own.zip is no ZIP"
    assert all(line.startswith(said) for line in lines)


def test_a_model_in_a_zip_is_named_as_in_the_setting(veil, tmp_path):
    with ZipFile(tmp_path / "own.zip", "w") as archive:
        archive.writestr("saved_model.pb", b"no graph")
    cache = tmp_path / "cache"

    done = veil(
        "model",
        "info",
        environment={"VEIL_MODEL": "own.zip", "XDG_CACHE_HOME": cache},
        cwd=tmp_path,
    )

    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("veil: ModelInvalid: VEIL_MODEL: own.zip can't be loaded: ")


REFUSALS = pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"VEIL_REDIS_PASSWORD": "another-one"}, "refuses the password: check VEIL_REDIS_PASSWORD"),
        ({"VEIL_REDIS_PASSWORD": ""}, "refuses the password: check VEIL_REDIS_PASSWORD"),
        ({"VEIL_REDIS_URL": "redis://{server}/9999"}, "does not have this database"),
        ({"VEIL_REDIS_URL": "redis://nobody@{server}/0"}, "the user in VEIL_REDIS_URL"),
    ],
)


@REFUSALS
@pytest.mark.parametrize("count", [1, 2])
def test_workers_that_redis_refuses_end_with_one_line(veil, redis_server, count, change, expected):
    server = f"{HOST}:{redis_server.port}"
    changed = {name: value.format(server=server) for name, value in change.items()}

    done = veil(
        "worker", f"--workers={count}", environment={**redis_server.environment(), **changed}
    )

    assert done.returncode == 2
    lines = reasons(done.stderr)
    assert 1 <= len(lines) <= count
    for line in lines:
        assert line.startswith("veil: SettingsInvalid: Redis ")
        assert expected in line
        assert line.endswith(f"(tried Redis at {server})")


@REFUSALS
def test_a_trigger_that_redis_refuses_ends_with_one_line(veil, redis_server, change, expected):
    server = f"{HOST}:{redis_server.port}"
    changed = {name: value.format(server=server) for name, value in change.items()}

    done = veil("watch", "--poll=60", environment={**redis_server.environment(), **changed})

    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("veil: SettingsInvalid: Redis ")
    assert expected in line
    assert line.endswith(f"(tried Redis at {server})")
