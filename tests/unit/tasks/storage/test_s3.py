"""The S3 client without a store: wrong settings."""

import pytest

from tasks import errors
from tasks.settings import Settings
from tasks.storage.s3 import ObjectStore


@pytest.mark.parametrize(
    ("variable", "value", "complaint"),
    [
        ("AWS_PROFILE", "nobody", "nobody"),
        ("VEIL_S3_REGION", "eu west", "eu west"),
        ("VEIL_S3_REGION", "", "endpoint"),
        ("VEIL_S3_ENDPOINT", "http://under_score:9000", "endpoint"),
    ],
)
def test_a_client_that_cannot_be_made_is_a_wrong_setting(monkeypatch, variable, value, complaint):
    monkeypatch.setenv(variable, value)
    with pytest.raises(errors.SettingsInvalid, match=complaint):
        ObjectStore.connect(Settings.load())
