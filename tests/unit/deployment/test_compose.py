"""The files that replace a server of docker-compose.yml by one outside."""

import pytest
import yaml

MAIN = "docker-compose.yml"


@pytest.fixture
def services(repository):
    """``services(path)`` returns the services of a compose file of the repository."""
    return lambda path: yaml.safe_load((repository / path).read_text())["services"]


@pytest.mark.parametrize(
    ("overlay", "server", "variable"),
    [
        ("docker/external-redis.yml", "redis", "VEIL_REDIS_URL"),
        ("docker/amazon-s3.yml", "s3", "VEIL_S3_ENDPOINT"),
    ],
)
def test_every_client_of_a_server_outside_reaches_it_and_waits_for_no_local_one(
    services, overlay, server, variable
):
    main, changed = services(MAIN), services(overlay)
    removed = {name for name, service in changed.items() if service.get("profiles")} - {"trigger"}
    assert server in removed
    clients = {
        name for name, service in main.items() if variable in service.get("environment", {})
    } - removed
    assert {"worker", "worker-gpu", "catch-up"} <= clients
    for name in clients:
        assert "outside" in changed[name]["networks"], name
        for local in removed & set(main[name]["depends_on"]):
            assert changed[name]["depends_on"][local]["required"] is False, name
