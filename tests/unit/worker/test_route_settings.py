"""The settings of routes: they take the place of those of the deployment, and are checked alike."""

import json
import tomllib
from pathlib import Path

import jsonschema
import pytest

from docs.generate import ROUTES_SCHEMA
from tasks.errors import SettingsInvalid
from tasks.routes_file import ROUTE_SETTINGS
from worker import routes_schema
from worker.settings import WorkerSettings

ROOT = Path(__file__).resolve().parents[3]
PLACES = 'source = "s3://raw/{0}"\ndestination = "s3://clean/{0}"\n'
EVERY_KEY = {
    "method": "fill",
    "region": "full",
    "margin": 0.3,
    "shape": "ellipse",
    "feather": 0,
    "no_faces": "hold",
    "verify": "flag",
    "preset": "fast",
    "scales": [640, 320],
    "max_enlargement": 2,
    "enlarge_to": 640,
    "closer_to": 0,
    "mirrored": True,
    "turned": "always",
    "smallest_face": 40,
    "keep_exif": ["FocalLength"],
    "keep_xmp": ["GPano"],
    "keep_gps": "rounded",
    "keep_metadata": ["camera"],
    "keep_tags": True,
    "keep_cache_control": True,
    "upload_encryption": "aws:kms",
    "upload_kms_key": "alias/a",
    "upload_bucket_key": True,
    "upload_storage_class": "STANDARD_IA",
    "upload_tags": "a=b,c=d",
    "upload_acl": "private",
    "upload_cache_control": "no-store",
    "upload_content_disposition": "inline",
    "upload_checksum": "SHA256",
    "receipt_encryption": "AES256",
    "receipt_kms_key": "",
    "receipt_storage_class": "STANDARD",
    "receipt_tags": "a=b",
    "receipt_acl": "private",
}


def toml(values):
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())


@pytest.fixture
def load(tmp_path, monkeypatch):
    """``load(…)`` returns the settings with a route for each of the arguments."""

    def load(*routes):
        path = tmp_path / "routes.toml"
        tables = [
            f"[routes.route-{number}]\n{PLACES.format(number)}{text}"
            for number, text in enumerate(routes)
        ]
        path.write_text("".join(tables))
        monkeypatch.setenv("VEIL_ROUTES_FILE", str(path))
        return WorkerSettings.load()

    return load


def test_settings_of_a_route_take_the_place_of_those_of_the_deployment(load, monkeypatch):
    monkeypatch.setenv("VEIL_METHOD", "blur")
    monkeypatch.setenv("VEIL_UPLOAD_TAGS", "a=b")
    monkeypatch.setenv("VEIL_KEEP_EXIF", "FocalLength")
    settings = load('region = "full"\nupload_tags = ""\nkeep_exif = []\n', "", 'method = "fill"\n')
    first, second, third = map(settings.of_route, settings.parsed_routes())
    assert (first.method, first.region, first.upload_tags, first.keep_exif) == ("blur", 1, None, ())
    assert second is settings
    assert (third.method, third.region, third.upload_tags) == ("fill", 0.7, "a=b")
    assert settings.region == 0.7
    assert first.parsed_routes() is settings.parsed_routes()


def test_all_other_settings_of_the_deployment_hold_on_a_route(load, monkeypatch):
    deployment = {
        "RULES": "plate: method=fill margin=0.2; *: ignore",
        "SCALES": "320,640",
        "KEEP_GPS": "rounded",
        "RECEIPT_KEY": "k" * 32,
        "MODELS": "default,/models/own",
        "REVIEW_PROXIES": "10.0.0.1",
        "REDIS_URL": "redis://elsewhere:6379/3",
        "SCORE_THRESHOLD": "0.3",
        "CONCURRENCY": "3",
    }
    for name, value in deployment.items():
        monkeypatch.setenv(f"VEIL_{name}", value)
    settings = load("margin = 0.3\n")
    (own,) = map(settings.of_route, settings.parsed_routes())
    for name in WorkerSettings.model_fields.keys() - {"margin", "routes_file"}:
        assert getattr(own, name) == getattr(settings, name), name
    assert own.margin == 0.3


def test_every_key_is_a_setting_and_reaches_the_settings_of_the_route(load):
    assert EVERY_KEY.keys() == set(ROUTE_SETTINGS)
    assert set(ROUTE_SETTINGS) <= WorkerSettings.model_fields.keys()
    settings = load(toml(EVERY_KEY))
    (own,) = map(settings.of_route, settings.parsed_routes())
    for name in ROUTE_SETTINGS:
        if name != "receipt_kms_key":
            assert getattr(own, name) != WorkerSettings.model_fields[name].default, name
    assert own.uploads().output.kms_key == "alias/a"


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {"VEIL_UPLOAD_KMS_KEY": "x", "VEIL_UPLOAD_ENCRYPTION": "AES256"},
            "VEIL_UPLOAD_ENCRYPTION: a KMS key needs",
        ),
        ({"VEIL_DETECT_SECONDS": "300", "VEIL_VERIFY": "hold"}, "a picture may take"),
        ({"VEIL_S3_EXTERNAL_ID": "a"}, "VEIL_S3_EXTERNAL_ID needs VEIL_S3_SOURCE_ROLE"),
    ],
)
def test_an_error_of_the_environment_is_not_that_of_a_route(load, monkeypatch, variables, message):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsInvalid) as raised:
        load("margin = 0.3\n")
    assert str(raised.value).startswith(message)


def test_wrong_values_of_all_routes_are_named_as_the_settings_would_be(load):
    with pytest.raises(SettingsInvalid) as raised:
        load("margin = 3\nkeep_exif = ['GPSLatitude']\n", 'preset = "thorogh"\nscales = [1]\n')
    message = str(raised.value)
    assert message.startswith("VEIL_ROUTES_FILE: ")
    for expected in (
        "[routes.route-0] margin: must be 1 or less",
        "[routes.route-0] keep_exif: ",
        "[routes.route-1] preset: must be 'fast', 'balanced' or 'thorough'",
        "[routes.route-1] scales: give one or more sides",
    ):
        assert expected in message


def test_settings_that_contradict_those_of_the_deployment_are_refused(load, monkeypatch):
    text = 'upload_kms_key = "alias/a"\n'
    with pytest.raises(
        SettingsInvalid, match=r"\[routes.route-0\] upload_encryption: a KMS key needs"
    ):
        load(text)
    monkeypatch.setenv("VEIL_UPLOAD_ENCRYPTION", "aws:kms")
    assert load(text).parsed_routes().routes[0].name == "route-0"


def test_hashed_names_need_a_receipt_key_because_marks_would_tell_names(load, monkeypatch):
    monkeypatch.setenv("VEIL_NAMES_KEY", "n" * 32)
    load('output_names = "hash"\n')  # for a trigger
    with pytest.raises(SettingsInvalid, match=r"VEIL_RECEIPT_KEY: the route route-0 .*needs this"):
        WorkerSettings.load_for_outputs()
    monkeypatch.setenv("VEIL_RECEIPT_KEY", "k" * 32)
    WorkerSettings.load_for_outputs()
    settings = load('output_names = "hash"\nmargin = 0.3\n')
    (route,) = settings.parsed_routes()
    assert route.names.are_hashed
    assert route.settings == {"margin": 0.3}


def test_the_published_schema_is_up_to_date():
    assert ROUTES_SCHEMA.read_text() == routes_schema.text(), "run `make docs`"


def test_the_schema_takes_what_workers_take_and_refuses_what_they_refuse():
    check = jsonschema.Draft202012Validator(routes_schema.schema())
    check.check_schema(check.schema)

    def is_valid(**values):
        route = {"source": "s3://raw", "destination": "s3://clean", **values}
        return check.is_valid({"routes": {"north": route}})

    assert is_valid(**EVERY_KEY)
    assert is_valid(keep_gps=True, region=0.5, suffixes=[".jpg"], priority="low")
    assert is_valid(output_names="hash")
    assert not is_valid(output_names="md5")
    for wrong in ({"metod": 1}, {"region": "half"}, {"region": 0.4}, {"margin": 2}, {"scales": 1}):
        assert not is_valid(**wrong)
    for wrong in ("", "urgent", 0):
        assert not is_valid(priority=wrong)
    assert not check.is_valid({"routes": {}})
    assert not check.is_valid({"routes": {"North": {"source": "s3://a", "destination": "s3://b"}}})


def test_the_documented_file_is_valid(tmp_path, monkeypatch):
    page = (ROOT / "docs" / "routes.md").read_text()
    text = page.partition("```toml\n")[2].partition("```")[0]
    jsonschema.validate(tomllib.loads(text), routes_schema.schema())
    (tmp_path / "routes.toml").write_text(text)
    monkeypatch.setenv("VEIL_ROUTES_FILE", str(tmp_path / "routes.toml"))
    settings = WorkerSettings.load()
    street, school = map(settings.of_route, settings.parsed_routes())
    assert (street.preset, school.method, school.region) == ("thorough", "fill", 1)


def test_an_error_of_the_environment_is_told_once_and_no_route_is_blamed(monkeypatch, tmp_path):
    file = tmp_path / "routes.toml"
    routes = [f"[routes.{name}]\n{PLACES.format(name)}margin = 0.2\n" for name in ("a", "b")]
    file.write_text("".join(routes))
    monkeypatch.setenv("VEIL_ROUTES_FILE", str(file))
    monkeypatch.setenv("VEIL_REVIEW_PASSWORD", "p" * 16)
    monkeypatch.setenv("VEIL_REVIEW_USER_HEADER", "X-User")
    with pytest.raises(SettingsInvalid) as raised:
        WorkerSettings.load()
    assert str(raised.value).startswith("VEIL_REVIEW_PASSWORD and VEIL_REVIEW_USER_HEADER are both")
    assert "routes" not in str(raised.value)


def test_the_routes_file_is_read_after_all_other_checks():
    """A check that came later would be told once for each route, as an error of the file."""
    assert list(WorkerSettings.__pydantic_decorators__.model_validators)[-1] == "_read_routes"
