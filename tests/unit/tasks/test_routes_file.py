"""The routes file: routes with names, and every mistake with its file, route and key."""

import re

import pytest

from tasks.addresses import ObjectUri, PrefixUri
from tasks.errors import BucketNotAllowed, SettingsInvalid
from tasks.messages import AnonymizeRequest
from tasks.routes_file import MAX_ROUTES, read_routes
from tasks.settings import Settings
from tasks.signatures import Key

TWO = """
[routes.north]
source = "s3://raw/north"
destination = "s3://clean/north"
suffixes = [".JPG", ".png"]
margin = 0.2

[routes.south]
source = "s3://raw/south"
destination = "s3://clean/south"
"""


def nothing_wrong(settings):
    return []


@pytest.fixture
def file(tmp_path):
    """``file(text)`` writes a routes file, and returns its path."""

    def write(text):
        path = tmp_path / "routes.toml"
        path.write_text(text)
        return path

    return write


def request(source):
    return AnonymizeRequest.parse(source=source)


def test_routes_have_names_suffixes_and_settings(file):
    routes = read_routes(file(TWO), nothing_wrong)
    north, south = routes
    assert [str(north), north.name, north.suffixes] == [
        "s3://raw/north/=s3://clean/north/",
        "north",
        (".jpg", ".png"),
    ]
    assert (north.settings, south.settings, south.suffixes) == ({"margin": 0.2}, {}, ())
    assert routes.of_source(PrefixUri.parse("s3://raw/south/2026")) == south
    assert {north: 1, south: 2}[south] == 2


def test_a_route_takes_keys_with_its_suffixes_alone(file):
    routes = read_routes(file(TWO), nothing_wrong)
    assert str(routes.resolve(request("s3://raw/north/a.Jpg")).destination) == (
        "s3://clean/north/a.Jpg"
    )
    with pytest.raises(BucketNotAllowed, match=r"a\.gif has none .* route north: \.jpg, \.png"):
        routes.resolve(request("s3://raw/north/a.gif"))
    assert routes.resolve(request("s3://raw/south/a.gif")).route.name == "south"
    assert not routes.takes(ObjectUri("raw", "north/a.gif"))
    assert routes.takes(ObjectUri("raw", "south/a.gif"))


def test_a_route_without_a_priority_is_normal_if_another_has_one(file):
    assert [route.priority for route in read_routes(file(TWO), nothing_wrong)] == [None, None]
    text = TWO.replace("margin", 'priority = "high"\nmargin')
    assert [route.priority for route in read_routes(file(text), nothing_wrong)] == [
        "high",
        "normal",
    ]
    with pytest.raises(ValueError, match=r"\[routes.south\] priority: .*'high', 'normal' or 'low'"):
        read_routes(file(f"{TWO}priority = 'urgent'"), nothing_wrong)


def test_an_address_off_the_routes_is_refused_with_the_name_of_the_setting(file):
    routes = read_routes(file(TWO), nothing_wrong)
    with pytest.raises(BucketNotAllowed, match="in no source of VEIL_ROUTES_FILE"):
        routes.resolve(request("s3://raw/east/a.png"))


def test_a_byte_order_mark_at_the_beginning_is_no_part_of_the_file(file):
    assert read_routes(file("\ufeff" + TWO), nothing_wrong) == read_routes(file(TWO), nothing_wrong)


def test_every_mistake_is_named_at_once_with_its_route_and_key(file):
    text = """
    [routes.North]
    source = "raw/north"
    metod = "fill"
    margin = 3
    [routes.south]
    destination = "s3://clean/south"
    suffixes = ["a/b"]
    concurrency = 3
    [routes.east]
    source = "s3://raw/east"
    destination = "s3://clean/.veil/east"
    [routes.west]
    source = "s3://raw/west"
    destination = "s3://clean"
    priority = "first"
    [routes.far-west]
    source = "s3://raw/west/far"
    destination = "s3://clean/far"
    """
    path = file(text)

    def margin_is_wrong(settings):
        return [("margin", "too large")] if "margin" in settings else []

    with pytest.raises(ValueError, match="routes") as raised:
        read_routes(path, margin_is_wrong)
    first, *others = str(raised.value).removeprefix(f"{path}: ").split("; ")
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith(f"{path}: ")
    assert first == "[routes.North] a name has up to 40 lower-case letters, digits and hyphens"
    assert [line.partition(":")[0] for line in others] == [
        "[routes.North] source",
        "[routes.North] destination",
        "[routes.North] metod is no key of a route",
        "[routes.North] margin",
        "[routes.south] source",
        "[routes.south] suffixes",
        "[routes.south] concurrency is no key of a route",
        "[routes.east] destination",
        "[routes.west] priority",
        "the routes west and far-west",
    ]
    assert "did you mean method?" in others[2]
    assert "s3://clean/.veil/east/ is in .veil/, which is kept for receipts" in others[7]
    assert "destinations s3://clean/ and s3://clean/far/ overlap" in others[9]


def test_a_suffix_may_have_a_part_of_the_name(file):
    north, _ = read_routes(file(TWO.replace(".png", "_Front.png")), nothing_wrong)
    assert north.suffixes == (".jpg", "_front.png")


def test_a_text_in_place_of_a_list_is_told_in_words(file):
    text = TWO.replace('[".JPG", ".png"]', '".jpg"')
    with pytest.raises(ValueError, match=r"\[routes\.north\] suffixes: must be a list$"):
        read_routes(file(text), nothing_wrong)


def test_all_places_that_overlap_are_named_with_their_routes_and_each_pair_once(file):
    places = {
        "one": ("raw/a", "clean"),
        "two": ("raw/a/b", "clean"),
        "three": ("mixed", "mixed/out"),
    }
    text = "".join(
        f'[routes.{name}]\nsource = "s3://{source}"\ndestination = "s3://{destination}"\n'
        for name, (source, destination) in places.items()
    )
    path = file(text)
    with pytest.raises(ValueError, match="keep them apart") as raised:
        read_routes(path, nothing_wrong)
    assert str(raised.value).removeprefix(f"{path}: ").split("; ") == [
        "the route three: its source s3://mixed/ and its destination s3://mixed/out/ overlap: "
        "keep them apart",
        "the routes one and two: sources s3://raw/a/ and s3://raw/a/b/ overlap, "
        "destinations s3://clean/ and s3://clean/ overlap: keep them apart",
    ]


def test_a_problem_names_the_key_of_the_file_and_not_the_variable(file):
    def wrong(_settings):
        return [("", "VEIL_UPLOAD_ENCRYPTION: lower VEIL_FETCH_SECONDS")]

    with pytest.raises(ValueError, match=r"\[routes.a\] upload_encryption: lower VEIL_FETCH_SEC"):
        read_routes(file("[routes.a]\n" + ROUTE.format("a")), wrong)


ROUTE = 'source = "s3://raw/{0}"\ndestination = "s3://clean/{0}"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[routes.a\n", "is no TOML"),
        ("[[routes]]\n" + ROUTE.format("a"), "has no route"),
        ("", "has no route"),
        (
            "[routes.a]\nsuffixes = ['']\n" + ROUTE.format("a"),
            "must be a suffix with a dot, as .jpg, of up",
        ),
        (
            "[routes.a]\nsuffixes = ['.png', 'jpg']\n" + ROUTE.format("a"),
            "must be a suffix with a dot, as .jpg, of up",
        ),
        (
            "[routes.a]\nsuffixes = []\n" + ROUTE.format("a"),
            r"\[routes.a\] suffixes: must have 1 or more values$",
        ),
        ("[routes]\n", "has no route"),
        ("[routes]\na = 1\n", r"\[routes.a\] is no table"),
        ("[route.a]\n" + ROUTE.format("a"), "'route' is unknown"),
        ("[routes.a]\n" + ROUTE.format("a") * 2, "is no TOML"),
        ("#" * (1 << 20) + "\n", "more than"),
        (
            "".join(f"[routes.r{n}]\n{ROUTE.format(n)}" for n in range(MAX_ROUTES + 1)),
            "500 are allowed",
        ),
    ],
)
def test_a_file_of_another_form_is_refused(file, text, message):
    path = file(text)
    with pytest.raises(ValueError, match=message) as raised:
        read_routes(path, nothing_wrong)
    assert str(path) in str(raised.value)


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path):
    with pytest.raises(ValueError, match="No such file"):
        read_routes(tmp_path / "none.toml", nothing_wrong)
    with pytest.raises(ValueError, match="Is a directory"):
        read_routes(tmp_path, nothing_wrong)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is no TOML"):
        read_routes(tmp_path / "binary", nothing_wrong)


def test_the_routes_are_in_the_file_or_in_the_variable(file, monkeypatch):
    monkeypatch.setenv("VEIL_ROUTES_FILE", str(file(TWO)))
    settings = Settings.load()
    assert [route.name for route in settings.parsed_routes()] == ["north", "south"]
    assert settings.has_routes()
    monkeypatch.setenv("VEIL_ROUTES", "")
    assert len(Settings.load().parsed_routes().routes) == 2
    monkeypatch.setenv("VEIL_ROUTES", "s3://raw=s3://clean")
    with pytest.raises(SettingsInvalid, match="VEIL_ROUTES and VEIL_ROUTES_FILE are set"):
        Settings.load()
    monkeypatch.delenv("VEIL_ROUTES_FILE")
    assert [route.name for route in Settings.load().parsed_routes()] == [None]


def test_programs_that_only_enqueue_know_the_names_of_keys(file, monkeypatch):
    monkeypatch.setenv("VEIL_ROUTES_FILE", str(file(TWO + "regoin = 1\n")))
    with pytest.raises(SettingsInvalid, match=r"VEIL_ROUTES_FILE: .*south\] regoin .* region\?"):
        Settings.load()


HASHED = "[routes.school]\n" + ROUTE.format("school") + 'output_names = "hash"\n'


def test_a_route_may_hash_the_names_of_its_outputs(file, monkeypatch):
    monkeypatch.setenv("VEIL_ROUTES_FILE", str(file(TWO + HASHED)))
    monkeypatch.setenv("VEIL_NAMES_KEY", "k" * 32)
    monkeypatch.setenv("VEIL_HEIF_SUFFIX", ".jpg")
    routes = Settings.load().parsed_routes()
    north = str(routes.resolve(request("s3://raw/north/Smith/a.JPG")).destination)
    school = str(routes.resolve(request("s3://raw/school/Smith/John 1980.HEIC")).destination)
    assert north == "s3://clean/north/Smith/a.JPG"
    assert re.fullmatch(r"s3://clean/school/[0-9a-f]{32}\.jpg", school)


def test_hashed_names_do_not_depend_on_the_places_of_their_route(file):
    key = Key.parse("k" * 32)
    (school,) = read_routes(file(HASHED), nothing_wrong, key)
    (moved,) = read_routes(file(HASHED.replace("raw/school", "raw/moved")), nothing_wrong, key)
    assert school.output_of(ObjectUri("raw", "school/a.jpg")) == moved.output_of(
        ObjectUri("raw", "moved/a.jpg")
    )


@pytest.mark.parametrize(
    ("text", "secret", "message"),
    [
        (HASHED, None, r"\[routes.school\] output_names: \"hash\" needs VEIL_NAMES_KEY"),
        (HASHED, "", r"\[routes.school\] output_names: \"hash\" needs VEIL_NAMES_KEY"),
        (HASHED, "short", "VEIL_NAMES_KEY: .*32 characters or more"),
        (HASHED, f"{'k' * 32},{'l' * 32}", "VEIL_NAMES_KEY: .*one secret, without commas"),
        (
            HASHED.replace("hash", "sha256"),
            "k" * 32,
            r"\[routes.school\] output_names: must be 'source' or 'hash'",
        ),
    ],
)
def test_hashed_names_without_a_proper_secret_are_refused_in_one_line(
    file, monkeypatch, text, secret, message
):
    monkeypatch.setenv("VEIL_ROUTES_FILE", str(file(text)))
    if secret is not None:
        monkeypatch.setenv("VEIL_NAMES_KEY", secret)
    with pytest.raises(SettingsInvalid, match=message) as raised:
        Settings.load()
    assert "\n" not in str(raised.value)
    assert "kkk" not in str(raised.value)
