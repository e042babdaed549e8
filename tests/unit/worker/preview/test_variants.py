"""Settings to compare: those of workers, named with or without their prefix."""

import pytest

from tasks.addresses import PrefixUri
from tasks.errors import SettingsInvalid
from tasks.routes import Route
from worker.preview.variants import CURRENT, variants


def test_each_comparison_changes_the_current_settings(monkeypatch):
    monkeypatch.setenv("VEIL_METHOD", "fill")
    current, full, several = variants(["VEIL_REGION=full", "preset=fast, scales=320,640"])
    assert (current.name, current.settings.method, current.settings.region) == (
        CURRENT,
        "fill",
        0.7,
    )
    assert (full.name, full.settings.method, full.settings.region) == (
        "VEIL_REGION=full",
        "fill",
        1,
    )
    assert (several.settings.preset, several.settings.scales) == ("fast", (320, 640))


def test_on_a_route_its_settings_hold_and_a_comparison_changes_them(monkeypatch):
    monkeypatch.setenv("VEIL_METHOD", "fill")
    places = PrefixUri.parse("s3://raw"), PrefixUri.parse("s3://clean")
    route = Route(*places, "north", settings={"region": "full", "margin": 0.3})
    current, changed = variants(["margin=0.2"], route)
    assert current.name == "current settings of north"
    for variant, margin in ((current, 0.3), (changed, 0.2)):
        settings = variant.settings
        assert (settings.method, settings.region, settings.margin) == ("fill", 1, margin)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("thorough", "give SETTING=VALUE"),
        ("=full", "give SETTING=VALUE"),
        ("preste=fast", "did you mean VEIL_PRESET"),
        ("region=huge", "VEIL_REGION: must be top, full"),
        ("region=full,VEIL_REGION=0.5", "VEIL_REGION is given twice"),
        ("VEIL_ROUTES=s3://a=s3://b", "changes no picture"),
    ],
)
def test_a_wrong_comparison_is_refused(text, message):
    with pytest.raises(SettingsInvalid, match=message):
        variants([text])


def test_the_same_comparison_twice_is_refused():
    with pytest.raises(SettingsInvalid, match="the same settings are given twice"):
        variants(["region=full,margin=0.2", "margin=0.2, VEIL_REGION=full"])
