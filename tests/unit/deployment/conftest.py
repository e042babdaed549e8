"""Fixtures of the tests of containers."""

import re

import pytest

from worker.detection import own_model


@pytest.fixture
def models_folder(repository, monkeypatch):
    """The folder into which a worker in a container unpacks models of users."""
    dockerfile = (repository / "docker" / "Dockerfile").read_text()
    (cache,) = re.findall(r"\bXDG_CACHE_HOME=(\S+)", dockerfile)
    monkeypatch.setenv("XDG_CACHE_HOME", cache)
    return str(own_model.cache_folder())
