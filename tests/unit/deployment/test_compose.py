"""docker-compose.yml, and the files that replace a server of it by one outside."""

import importlib.util
import re

import pytest
import yaml

from tasks.uploads.webhook import ANSWER_SECONDS, SHUTDOWN_SECONDS
from worker.settings import WorkerSettings

MAIN = "docker-compose.yml"
DEFAULT_STOP_SECONDS = 10  # of Docker
WORKERS = ("worker", "worker-gpu")


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


def test_a_bucket_that_exists_is_not_enqueued_before_a_look_at_it(services):
    command = services("docker/amazon-s3.yml")["catch-up"]["command"]
    assert command == [
        "veil",
        "watch",
        "--poll=${CATCH_UP_SECONDS:-600}",
        "--since=${CATCH_UP_SINCE:-now}",
    ]


def test_a_service_is_killed_only_after_the_time_that_it_takes_to_stop(services, repository):
    (stop,) = {services(MAIN)[name]["stop_grace_period"] for name in WORKERS}
    default = re.fullmatch(r"\$\{STOP_SECONDS:-(\d+)\}s", stop)[1]
    assert int(default) >= WorkerSettings().grace_seconds + 10
    assert f"#STOP_SECONDS={default}\n" in (repository / ".env.example").read_text()
    for name in ("trigger", "catch-up"):
        assert "stop_grace_period" not in services(MAIN)[name]
    assert DEFAULT_STOP_SECONDS > SHUTDOWN_SECONDS + ANSWER_SECONDS + 2


@pytest.mark.parametrize("name", WORKERS)
def test_a_worker_has_a_volume_for_models_which_its_user_owns(
    services, repository, models_folder, name
):
    worker = services(MAIN)[name]
    assert worker["read_only"] is True
    assert f"models:{models_folder}" in worker["volumes"]
    dockerfile = (repository / "docker" / "Dockerfile").read_text()
    (stage,) = re.findall(rf"^FROM \S+ AS {name}$(.*?)^CMD", dockerfile, re.DOTALL | re.MULTILINE)
    assert re.search(rf"install --directory --owner=veil .* {models_folder}$", stage, re.MULTILINE)


@pytest.mark.parametrize("name", WORKERS)
def test_the_health_check_of_a_worker_is_a_module_of_its_image(services, name):
    *program, module = services(MAIN)[name]["healthcheck"]["test"]
    assert program == ["CMD", "python", "-m"]
    assert importlib.util.find_spec(module) is not None
