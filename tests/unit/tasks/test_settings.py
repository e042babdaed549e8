"""Settings: their checks, the suggestion for a misspelt one, and the secrecy of passwords."""

import os
import pickle
import re
import shutil
import sys
from dataclasses import replace
from typing import Annotated, Literal
from urllib.parse import quote

import botocore.httpsession
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.utils.url import url_to_parts
from pydantic import Field, SecretStr

from tasks.alternatives import alternatives
from tasks.errors import SettingsInvalid
from tasks.settings import Settings, refuse_unknown, split_address
from worker import cli
from worker.commands.exit_codes import ExitCode
from worker.detection.presets import PRESETS
from worker.settings import PICTURE_SECONDS, WorkerSettings, markdown_table

SECRET = "hunter2"


@pytest.fixture
def load(monkeypatch):
    """Return a function that loads the worker's settings with `variables` in the environment."""

    def load(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(f"VEIL_{name.upper()}", value)
        return WorkerSettings.load()

    return load


@pytest.mark.parametrize("home", [f"/{'a' * 300}", "~"])
def test_a_home_that_may_not_be_read_has_no_file_of_boto3(load, monkeypatch, home):
    # A name that is too long fails for root too, as a folder without rights does for others.
    # systemd hides /home, and a cluster may run the image as a user that has no home.
    monkeypatch.setenv("AWS_CONFIG_FILE", "")
    monkeypatch.setenv("AWS_PROFILE", "")
    monkeypatch.setenv("HOME", home)
    assert load(s3_region="eu-central-1").s3_region == "eu-central-1"
    with pytest.raises(SettingsInvalid, match="europe is no region of Amazon S3"):
        load(s3_region="europe")


def test_the_defaults_are_valid(load):
    settings = load()
    assert settings.broker_url() == "redis://127.0.0.1:6379/0"
    assert settings.s3_endpoint is None
    assert settings.model is None
    assert [str(route) for route in settings.parsed_routes()] == ["s3://raw/=s3://clean/"]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        (
            "routes",
            "s3://a-1=s3://b-1, s3://c-1/x=s3://d-1/y",
            ("s3://a-1=s3://b-1", "s3://c-1/x=s3://d-1/y"),
        ),
        ("scales", "1280,640, 640", (640, 1280)),
        ("scales", "512", (512,)),
        ("scales", "", None),
        ("max_enlargement", "", None),
        ("mirrored", "", None),
        ("mirrored", "true", True),
        ("turned", "", None),
        ("turned", "always", "always"),
        ("preset", "fast", "fast"),
        ("score_threshold", "0.25", 0.25),
        ("score_threshold", "", None),
        ("batch_size", "", None),
        ("batch_size", "4", 4),
        ("model", "", None),
        ("model_sha256", "", None),
        ("region", "1", 1.0),
        ("region", "0.5", 0.5),
        ("region", "top", 0.7),
        ("region", "full", 1.0),
        ("shape", "ellipse", "ellipse"),
        ("feather", "0.5", 0.5),
        ("margin", "0", 0.0),
        ("method", "fill", "fill"),
        ("no_faces", "hold", "hold"),
        ("log_format", "json", "json"),
        ("metrics", "", None),
        ("metrics", "127.0.0.1:9100", "127.0.0.1:9100"),
        ("metrics", "[::1]:9100", "[::1]:9100"),
        ("concurrency", "1", 1),
        ("max_bytes", "1000", 1000),
        ("s3_endpoint", "", None),
        ("s3_region", "", None),
        ("s3_region", "eu-central-1", "eu-central-1"),
        ("s3_addressing", "virtual", "virtual"),
        ("s3_endpoint", "http://127.0.0.1:9000", "http://127.0.0.1:9000"),
        ("s3_endpoint", "https://[::1]:9000", "https://[::1]:9000"),
        ("s3_endpoint", "https://host/storage/v1/s3", "https://host/storage/v1/s3"),
    ],
)
def test_a_setting_is_read_from_its_variable(load, name, value, expected):
    assert getattr(load(**{name: value}), name) == expected


def test_a_pin_is_taken_in_either_case(load):
    assert load(model="a.zip", model_sha256="AB" * 32).model_sha256 == "ab" * 32


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("redis_url", ""),
        ("redis_url", "127.0.0.1:6379"),
        ("redis_url", "http://127.0.0.1"),
        ("redis_url", "redis://"),
        ("redis_url", "redis:///0"),
        ("redis_url", "redis://host:port/0"),
        ("redis_url", "redis://host:0/0"),
        ("redis_url", "redis://host:99999/0"),
        ("redis_url", "redis://[::1"),
        ("result_hours", "0"),
        ("result_hours", "nan"),
        ("result_hours", "inf"),
        ("lease_seconds", "1"),
        ("lease_seconds", "46"),
        ("lease_seconds", "nan"),
        ("grace_seconds", "-1"),
        ("s3_endpoint", "127.0.0.1:9000"),
        ("s3_endpoint", "ftp://host"),
        ("s3_endpoint", "http://"),
        ("s3_endpoint", "http://host:port"),
        ("s3_endpoint", "http://host/?location"),
        ("s3_endpoint", "http://host/#location"),
        ("s3_addressing", "host"),
        ("s3_connect_seconds", "0"),
        ("s3_connect_seconds", "inf"),
        ("s3_read_seconds", "-1"),
        ("s3_read_seconds", "soon"),
        ("routes", "s3://raw"),
        ("routes", "s3://raw=s3://raw"),
        ("routes", "s3://raw=s3://clean,s3://raw=s3://more"),
        ("concurrency", "0"),
        ("concurrency", "many"),
        ("concurrency", "1.5"),
        ("processes", "-1"),
        ("processes", "many"),
        ("model_sha256", "0123"),
        ("model_sha256", "g" * 64),
        ("model_sha256", "0" * 63),
        ("model_sha256", "0" * 65),
        ("model_sha256", "0" * 64),  # without VEIL_MODEL
        ("score_threshold", "0"),
        ("score_threshold", "1"),
        ("score_threshold", "nan"),
        ("scales", ","),
        ("scales", "63"),
        ("scales", "8193"),
        ("scales", "640;1280"),
        ("scales", "640.5"),
        ("max_enlargement", "0.9"),
        ("max_enlargement", "nan"),
        ("batch_size", "0"),
        ("batch_wait_seconds", "-0.1"),
        ("detect_seconds", "0"),
        ("region", "0.49"),
        ("region", "1.01"),
        ("region", "nan"),
        ("margin", "-0.1"),
        ("margin", "nan"),
        ("method", "median"),
        ("region", "half"),
        ("shape", "circle"),
        ("feather", "0.51"),
        ("feather", "-0.1"),
        ("preset", "best"),
        ("turned", "sometimes"),
        ("mirrored", "perhaps"),
        ("method", ""),
        ("no_faces", "drop"),
        ("max_bytes", "0"),
        ("max_bytes", "64MB"),
        ("max_pixels", "0"),
        ("fetch_seconds", "nan"),
        ("log_format", "xml"),
    ],
)
def test_a_wrong_setting_is_named_in_one_line(load, name, value):
    with pytest.raises(SettingsInvalid, match=f"^VEIL_{name.upper()}: .") as caught:
        load(**{name: value})
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("mirrored", "perhaps", "must be true or false"),
        ("score_threshold", "1", "must be below 1"),
        ("score_threshold", "nan", "must be a finite number"),
        ("detect_seconds", "nan", "must be a finite number"),
        ("fetch_seconds", "inf", "must be a finite number"),
        ("rules", "plate: margin=nan", "plate: margin: must be a finite number"),
        ("rules", "plate: threshold=nan", "plate: threshold: must be a finite number"),
        ("score_threshold", "high", "must be a number"),
        ("detect_seconds", "0", "must be above 0"),
        ("batch_size", "0", "must be 1 or more"),
        ("feather", "0.51", "must be 0.5 or less"),
        ("max_bytes", "64MB", "must be a whole number"),
        ("log_format", "xml", "must be 'auto', 'json' or 'console'"),
    ],
)
def test_a_wrong_value_is_said_in_plain_words(load, name, value, said):
    with pytest.raises(SettingsInvalid) as caught:
        load(**{name: value})
    assert str(caught.value) == f"VEIL_{name.upper()}: {said}"


@pytest.mark.parametrize("value", ["many", "-1", "257", "1.5", ""])
def test_a_setting_of_several_types_says_what_it_takes(load, value):
    with pytest.raises(SettingsInvalid) as caught:
        load(processes=value)
    expected = "VEIL_PROCESSES: must be a whole number from 0 to 256 or 'auto'"
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (int | None, None),
        (tuple[int, ...], None),
        (Literal["a", "b"] | None, None),
        (Literal["a", "b"] | float | None, "'a' or 'b' or a number"),
        (Annotated[float, Field(le=0.5)] | bool, "a number of 0.5 or less or a boolean"),
        (Annotated[int, Field(ge=2)] | Literal["off"], "a whole number of 2 or more or 'off'"),
    ],
)
def test_the_values_of_a_union_are_said_in_words(annotation, expected):
    assert alternatives(annotation) == expected


def test_the_wrong_value_of_several_is_counted_from_one(load):
    with pytest.raises(SettingsInvalid, match=r"^VEIL_SCALES: value 2: must be a whole number"):
        load(scales="640,big,huge")


def test_every_wrong_setting_is_named_at_once(load):
    with pytest.raises(SettingsInvalid) as caught:
        load(region="tp", concurrency="many", scales="640,big,huge", metrics="9100")
    message = str(caught.value)
    assert "VEIL_REGION: must be top, full, or a number from 0.5 to 1" in message
    assert "VEIL_METRICS: must be HOST:PORT" in message
    for variable in ("REGION", "CONCURRENCY", "SCALES", "METRICS"):
        assert message.count(f"VEIL_{variable}: ") == 1
    assert len(message.splitlines()) == 1


def test_misspelt_and_wrong_settings_are_named_together(monkeypatch):
    monkeypatch.setenv("VEIL_REGION", "tp")
    monkeypatch.setenv("VEIL_MARGINS", SECRET)
    monkeypatch.setenv("VEIL_SCALE", SECRET)
    with pytest.raises(SettingsInvalid) as caught:
        WorkerSettings.refuse_misspelt(os.environ)
    message = str(caught.value)
    assert "did you mean VEIL_MARGIN?" in message
    assert "did you mean VEIL_SCALES?" in message
    assert "VEIL_REGION: must be top" in message
    assert SECRET not in message


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("redis://host/0?ssl_ca_certs=ca.pem", "ssl_ca_certs needs TLS: rediss://"),
        ("rediss://host/0?ssl_ca_cert=ca.pem", "ssl_ca_cert is no option of the address"),
        ("rediss://host/0?ssl_ca_certs=no/ca.pem", "ssl_ca_certs: no/ca.pem can't be read (No"),
        (f"rediss://host/0?ssl_ca_certs={__file__}", f"ssl_ca_certs: {__file__} has no certificat"),
        ("redis://host/0?foo=1", "foo is no option of the address: only those of TLS are, such as"),
        ("redis://host?db=3", "db is no option of the address"),
        ("rediss://host/0?ssl_cert_reqs=off", "ssl_cert_reqs must be one of required, optional"),
    ],
)
def test_a_tls_option_that_no_connection_could_use_is_named(load, url, problem):
    with pytest.raises(SettingsInvalid, match=re.escape(f"VEIL_REDIS_URL: {problem}")):
        load(redis_url=url)


def test_tls_options_of_redis_and_of_celery_are_taken(load, tmp_path):
    shutil.copy(botocore.httpsession.where(), tmp_path / "ca.pem")
    for check in ("required", "CERT_REQUIRED"):
        url = f"rediss://host/0?ssl_ca_certs={tmp_path}/ca.pem&ssl_cert_reqs={check}"
        assert load(redis_url=url).broker_url() == url


@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("redis://queue.internal/0", "queue.internal:6379"),
        (f"rediss://user:{SECRET}@[::1]:6380/1", "[::1]:6380"),
    ],
)
def test_the_server_of_redis_is_named_without_its_password(load, url, server):
    assert load(redis_url=url).redis_server() == server


@pytest.mark.parametrize(
    "variables",
    [
        {"fetch_seconds": "600", "detect_seconds": "600", "scales": "640"},
        {"detect_seconds": "600", "scales": "640,1280"},
        {"detect_seconds": "250", "fetch_seconds": "1", "scales": "640,1280,1600,2560"},
        {"s3_read_seconds": "120", "fetch_seconds": "600"},
    ],
)
def test_deadlines_that_add_up_to_what_the_watchdog_takes_for_stalled_are_refused(load, variables):
    with pytest.raises(SettingsInvalid, match=f"the limit is {PICTURE_SECONDS} s") as caught:
        load(**variables)
    assert "VEIL_FETCH_SECONDS, VEIL_DETECT_SECONDS" in str(caught.value)


def test_deadlines_within_the_watchdogs_patience_are_accepted(load):
    settings = load(
        detect_seconds="100",
        scales="640",
        turned="never",
        fetch_seconds="120",
        s3_read_seconds="20",
    )
    # One picture has three passes, and six calls to S3 with three tries each.
    storage = 18 * (settings.s3_connect_seconds + settings.s3_read_seconds)
    assert settings.fetch_seconds + 3 * settings.detect_seconds + storage < PICTURE_SECONDS


@pytest.mark.parametrize("preset", PRESETS)
def test_each_preset_leaves_time_to_look_at_outputs_again(load, preset):
    assert load(preset=preset, verify="hold").verify == "hold"


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_goes_with_the_other_defaults(load, preset):
    settings = load(preset=preset)
    assert settings.pass_settings() == PRESETS[preset]


def test_a_setting_takes_precedence_over_the_preset(load):
    look = load(preset="thorough", scales="512", mirrored="false").pass_settings()
    assert look == replace(PRESETS["thorough"], scales=(512,), mirrored=False)


def test_other_settings_of_the_preset_stay(load):
    look = load(preset="fast", turned="doubt", max_enlargement="1.5").pass_settings()
    assert look == replace(PRESETS["fast"], turned="doubt", max_enlargement=1.5)


def test_presets_look_harder_one_after_the_other():
    passes = [look.passes for look in PRESETS.values()]
    assert passes == sorted(set(passes))


@pytest.mark.parametrize(
    ("variable", "hint"),
    [
        ("VEIL_REDIS_PASWORD", "VEIL_REDIS_PASSWORD"),
        ("VEIL_CONCURENCY", "VEIL_CONCURRENCY"),
        ("VEIL_SCALE", "VEIL_SCALES"),
        ("veil_margins", "VEIL_MARGIN"),
        ("VEIL_S3_REGOIN", "VEIL_S3_REGION"),
        ("VEIL_XYZZY_PLUGH", r"docs/settings\.md"),
    ],
)
def test_an_unknown_variable_is_refused_with_the_likely_name(variable, hint):
    with pytest.raises(SettingsInvalid, match=hint) as caught:
        refuse_unknown({"PATH": "/bin", variable: SECRET}, WorkerSettings)
    assert variable in str(caught.value)
    assert SECRET not in str(caught.value)


def test_known_variables_and_those_of_others_pass():
    names = {f"VEIL_{name.upper()}": "" for name in WorkerSettings.model_fields}
    environment = names | {"veil_margin": "0", "PATH": "/bin", "VEILED": "1", "UNVEIL_X": "2"}
    assert refuse_unknown(environment, WorkerSettings) is None


def test_the_command_refuses_a_misspelt_variable_in_one_line(monkeypatch, capsys):
    monkeypatch.setenv("VEIL_CONCURENCY", "4")
    monkeypatch.setattr(sys, "argv", ["veil", "settings"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == ExitCode.UNUSABLE
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(
        r"veil: SettingsInvalid: VEIL_CONCURENCY .*VEIL_CONCURRENCY.*\n", printed.err
    )


@pytest.mark.parametrize(
    "url",
    [
        f"redis://:{SECRET}@host/0",
        f"rediss://user:{SECRET}@host:6380/1",
        "redis://host/0",
    ],
)
def test_a_secret_is_in_no_text_of_the_settings(load, url):
    settings = load(redis_url=url, redis_password=SECRET)
    for text in (
        repr(settings),
        str(settings),
        str(settings.model_dump()),
        settings.model_dump_json(),
    ):
        assert SECRET not in text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("redis_url", f"http://:{SECRET}@host/0"),
        ("redis_url", f"redis://user:{SECRET}/w@host/0"),
        ("redis_url", f"redis://user:{SECRET}#w@host/0"),
        ("redis_url", f"redis://host/0?a{SECRET}@host/0"),
        ("redis_url", f"redis://:{SECRET}\uff03w@host/0"),
        ("redis_url", f"redis://:{SECRET}[w@host/0"),
        ("s3_endpoint", f"ftp://user:{SECRET}@host"),
        ("s3_endpoint", f"http://user:{SECRET}@host:9000"),
        ("s3_endpoint", f"http://user:{SECRET}\uff03@host:9000"),
    ],
)
def test_a_wrong_address_is_refused_without_its_password(load, name, value):
    with pytest.raises(SettingsInvalid) as caught:
        load(**{name: value})
    assert SECRET not in str(caught.value)
    assert SECRET not in repr(caught.value.__cause__)


PASSWORDS = st.text(
    st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=20
)


@given(password=PASSWORDS)
def test_any_password_reaches_redis_as_it_is(password):
    url = Settings(
        redis_url=SecretStr("redis://host:6380/3"), redis_password=SecretStr(password)
    ).broker_url()
    parts = url_to_parts(url)
    assert (parts.hostname, parts.port, parts.path, parts.password) == ("host", 6380, "3", password)
    assert not parts.username


@given(user=PASSWORDS.filter(str.strip))
def test_a_user_in_the_address_stays_when_the_password_comes_apart_from_it(user):
    url = f"rediss://{quote(user, safe='')}@[::1]:6380/0?ssl_cert_reqs=required"
    parts = url_to_parts(
        Settings(redis_url=SecretStr(url), redis_password=SecretStr("new")).broker_url()
    )
    assert (parts.username, parts.password, parts.hostname, parts.port) == (
        user,
        "new",
        "::1",
        6380,
    )
    assert parts.query == {"ssl_cert_reqs": "required"}


@pytest.mark.parametrize("password", [None, SecretStr("")])
def test_without_a_password_the_address_is_used_as_given(password):
    url = "redis://user:p%40ss@host:6380/3"
    assert Settings(redis_url=SecretStr(url), redis_password=password).broker_url() == url


def test_settings_cannot_be_changed(load):
    with pytest.raises(ValueError, match="frozen"):
        load().margin = 0.5


def test_the_table_has_a_row_for_each_setting():
    rows = markdown_table().splitlines()
    assert [row.split("`")[1] for row in rows[2:]] == [
        f"VEIL_{name.upper()}" for name in WorkerSettings.model_fields
    ]
    assert {row.count("|") for row in rows} == {4}


def test_settings_errors_survive_a_pickle(load):
    with pytest.raises(SettingsInvalid) as caught:
        load(margin="wide")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize(
    "url", ["redis://h/abc", "redis://h/0?foo=bar", "redis://h/0/1", "redis://h/0#x"]
)
def test_an_address_that_redis_would_choke_on_is_refused(load, url):
    with pytest.raises(SettingsInvalid, match=r"^VEIL_REDIS_URL: "):
        load(redis_url=url)


def test_a_tls_connection_checks_certificates_unless_the_address_says_otherwise(load):
    assert (
        load(redis_url="rediss://h:6379/0").broker_url()
        == "rediss://h:6379/0?ssl_cert_reqs=CERT_REQUIRED"
    )
    chosen = "rediss://h/0?ssl_cert_reqs=CERT_NONE"
    assert load(redis_url=chosen).broker_url() == chosen


@pytest.mark.parametrize(
    "address",
    ["9100", ":9100", "localhost", "localhost:", "localhost:0", "localhost:70000", "localhost:x",
     "http://localhost:9100", "localhost:9100/metrics", "user@localhost:9100", "localhost:9100 ",
     "::1:9100", "[::1:9100", "a:1,b:2"],
)  # fmt: skip
def test_an_address_to_serve_at_is_a_host_and_a_port(load, address):
    with pytest.raises(
        SettingsInvalid, match=r"^VEIL_METRICS: must be HOST:PORT, like 127\.0\.0\.1:9100$"
    ):
        load(metrics=address)


def test_host_and_port_are_taken_apart():
    assert split_address("localhost:9100") == ("localhost", 9100)
    assert split_address("[::1]:9100") == ("::1", 9100)


SECRETS = {
    "redis_url": "redis://queue.internal:6379/1",
    "redis_password": SECRET,
    "webhook_token": "t" * 32,
    "receipt_key": "k" * 32,
    "redis_sentinel_password": "s" * 16,
    "notify_key": "n" * 32,
    "review_password": "p" * 16,
    "names_key": "m" * 32,
}


def test_every_secret_is_known_to_be_one():
    assert set(WorkerSettings.secrets()) == set(SECRETS)


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_secret_may_be_in_a_file_without_the_line_break_at_its_end(load, tmp_path, name, end):
    (tmp_path / "secret").write_bytes((SECRETS[name] + end).encode())

    others = {"redis_url": "sentinel://queue.internal"} if "sentinel" in name else {}

    settings = load(**others, **{name: "", f"{name}_file": str(tmp_path / "secret")})

    assert getattr(settings, name).get_secret_value() == SECRETS[name]
    assert refuse_unknown(os.environ, WorkerSettings) is None


def test_a_file_with_a_wrong_secret_and_other_wrong_settings_are_named_at_once(load, tmp_path):
    (tmp_path / "key").write_text("short")

    with pytest.raises(SettingsInvalid) as raised:
        load(receipt_key_file=str(tmp_path / "key"), redis_url_file="/nowhere", margin="9")

    message = str(raised.value)
    assert "VEIL_RECEIPT_KEY: " in message
    assert "VEIL_REDIS_URL_FILE: /nowhere can't be read (No such file or directory)" in message
    assert "VEIL_MARGIN: " in message
    assert "short" not in message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"one\ntwo\n", "has several lines: a secret is one line"),
        (b"one\r\ntwo", "has several lines: a secret is one line"),
        (b"\xff\xfe", "is no text in UTF-8"),
        (None, "can't be read (Is a directory)"),
    ],
)
def test_a_file_without_a_secret_is_refused(load, tmp_path, content, said):
    path = tmp_path / "secret"
    path.mkdir() if content is None else path.write_bytes(content)

    with pytest.raises(SettingsInvalid) as raised:
        load(redis_password_file=str(path))

    assert str(raised.value) == f"VEIL_REDIS_PASSWORD_FILE: {path} {said}"


def test_a_secret_that_is_set_and_in_a_file_is_refused_and_a_value_of_a_program_is_not(
    load, tmp_path
):
    (tmp_path / "secret").write_text("k" * 32)

    with pytest.raises(SettingsInvalid, match="VEIL_RECEIPT_KEY is set, too: leave out one of"):
        load(receipt_key="l" * 32, receipt_key_file=str(tmp_path / "secret"))

    own = WorkerSettings.load(receipt_key="m" * 32)
    assert own.receipt_key.get_secret_value() == "m" * 32


def test_a_setting_that_is_no_secret_is_not_read_from_a_file():
    with pytest.raises(SettingsInvalid, match="VEIL_MODEL_FILE is not a setting"):
        refuse_unknown({"VEIL_MODEL_FILE": "x"}, WorkerSettings)


@pytest.mark.parametrize(
    "region", ["eu-central-1", "us-gov-west-1", "eusc-de-east-1", "cn-north-1"]
)
def test_regions_of_amazon_are_known_by_their_form(load, region):
    assert load(s3_region=region).s3_region == region


@pytest.mark.parametrize("region", ["europe", "eu-central", "eu-central-1a", "EU-CENTRAL-1", "a b"])
def test_a_region_that_amazon_has_not_is_refused_unless_the_store_may_be_another(load, region):
    with pytest.raises(SettingsInvalid, match=r"VEIL_S3_REGION: .*, such as eu-central-1"):
        load(s3_region=region)


@pytest.mark.parametrize("region", ["garage", "RegionOne", "nyc3", "auto"])
def test_another_store_may_have_other_regions(load, region):
    assert load(s3_endpoint="http://127.0.0.1:1", s3_region=region).s3_region == region


@pytest.mark.parametrize("separator", [";", " "])
def test_routes_without_a_comma_between_them_are_refused_with_the_separator(separator):
    text = f"s3://raw=s3://clean{separator}s3://raw2=s3://clean2"
    with pytest.raises(SettingsInvalid, match="a comma separates routes"):
        Settings.load(routes=text)
