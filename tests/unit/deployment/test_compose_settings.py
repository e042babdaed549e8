"""The settings that the services of docker-compose.yml and of the files beside it are given."""

import pytest
import yaml

from tasks.settings import Settings

MAIN, AMAZON, ROUTES = "docker-compose.yml", "docker/amazon-s3.yml", "docker/routes-file.yml"
# A profile needs a file, and catch-up writes nothing.
NOT_OF_LISTINGS = {"s3_source_profile", "s3_output_profile", "s3_output_owner"}


@pytest.fixture
def services(repository):
    """``services(path)`` returns the services of a compose file of the repository."""
    return lambda path: yaml.safe_load((repository / path).read_text())["services"]


def settings_of(service):
    """The settings that a service is given, with the values that they have without a .env."""
    given = {}
    for variable, text in service["environment"].items():
        name = variable.removeprefix("VEIL_").lower()
        if name in Settings.model_fields:
            given[name] = text.rpartition("-")[2].rstrip("}") if text.startswith("${") else text
    return given


def test_every_client_of_redis_gets_all_settings_that_lead_to_it(services):
    expected = {name for name in Settings.model_fields if name.startswith("redis_")}
    main = services(MAIN)
    clients = [one for one in main.values() if "VEIL_REDIS_URL" in one.get("environment", {})]
    assert len(clients) == 5
    for client in clients:
        given = settings_of(client)
        assert expected <= given.keys()
        Settings(**{name: given[name] for name in expected - {"redis_url", "redis_password"}})


def test_what_lists_the_sources_of_amazon_gets_all_settings_that_lead_there(services):
    given = settings_of(services(AMAZON)["catch-up"])
    expected = {name for name in Settings.model_fields if name.startswith("s3_")}
    expected -= {name for name in expected if name.endswith("_seconds")} | NOT_OF_LISTINGS
    assert expected <= given.keys()
    Settings(**{name: given[name] for name in expected - {"s3_endpoint", "s3_region"}})


def test_a_routes_file_takes_the_place_of_the_routes_everywhere(services, tmp_path):
    main, changed = services(MAIN), services(ROUTES)
    with_routes = {
        name for name, service in main.items() if "VEIL_ROUTES" in service.get("environment", {})
    }
    assert changed.keys() == with_routes | {"worker", "worker-gpu"}  # which have all of .env
    path = tmp_path / "routes.toml"
    path.write_text('[routes.street]\nsource = "s3://street"\ndestination = "s3://clean"\n')
    for service in changed.values():
        given = settings_of(service)
        (mount,) = service["volumes"]
        assert mount.endswith(f":{given['routes_file']}:ro")
        (route,) = Settings(routes=given["routes"], routes_file=path).parsed_routes()
        assert route.name == "street"


def test_the_images_that_compose_builds_have_the_extras_of_the_env_file(services):
    builds = [one["build"] for one in services(MAIN).values() if "build" in one]
    assert {build["target"] for build in builds} == {"worker", "worker-gpu", "flower"}
    assert all(build["args"] == {"EXTRAS": "${EXTRAS-}"} for build in builds)
