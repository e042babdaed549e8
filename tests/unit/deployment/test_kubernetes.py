"""The rendered manifests are valid, have few privileges, and agree with the worker."""

import importlib.util
import re
import subprocess
from urllib.parse import urlsplit

import pytest
import yaml
from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.registry import Collector
from pydantic import SecretStr

from tasks.messages import QUEUES
from tasks.settings import refuse_unknown
from tasks.uploads.webhook import ANSWER_SECONDS, SHUTDOWN_SECONDS
from tests.manifests import check_confinement, check_fields, container_of, pod_of, select
from worker.settings import WorkerSettings

DEFAULT_STOP_SECONDS = 30  # of Kubernetes


@pytest.fixture(scope="module")
def files(repository):
    return sorted((repository / "docker" / "kubernetes").glob("*.yaml"))


@pytest.fixture(scope="module")
def resources(files):
    """All resources, by kind and name."""
    found = {}
    for path in files:
        for one in yaml.safe_load_all(path.read_text()):
            found[one["kind"], one["metadata"]["name"]] = one
    return found


@pytest.fixture(scope="module")
def settings(resources):
    return resources["ConfigMap", "veil"]["data"]


@pytest.fixture(scope="module")
def deployments(resources):
    """The deployments by their names."""
    return {name: one for (kind, name), one in resources.items() if kind == "Deployment"}


@pytest.fixture(scope="module")
def policies(resources):
    return {name: one for (kind, name), one in resources.items() if kind == "NetworkPolicy"}


def variables_of(deployment):
    """The references of the variables that come from Secrets, by variable."""
    return {
        one["name"]: one["valueFrom"]["secretKeyRef"] for one in container_of(deployment)["env"]
    }


def ports_of(deployment):
    return {one["name"]: one["containerPort"] for one in container_of(deployment)["ports"]}


def test_the_resources_have_the_fields_that_kubernetes_and_keda_know(resources):
    for resource in resources.values():
        check_fields(resource)


def test_workers_and_triggers_may_do_nothing_but_work(deployments, models_folder):
    assert deployments.keys() == {"veil-worker", "veil-trigger", "veil-catch-up"}
    for name, deployment in deployments.items():
        check_confinement(deployment)
        mounts = container_of(deployment)["volumeMounts"]
        models = [models_folder] if name == "veil-worker" else []
        assert [mount["mountPath"] for mount in mounts] == ["/tmp", *models]
        mounted = {mount["name"] for mount in mounts}
        assert {volume["name"] for volume in pod_of(deployment)["volumes"]} == mounted


def test_each_deployment_has_an_account_of_its_own(resources, deployments):
    for name, deployment in deployments.items():
        assert pod_of(deployment)["serviceAccountName"] == name
        assert resources["ServiceAccount", name]["automountServiceAccountToken"] is False


def test_the_settings_are_ones_that_each_deployment_takes(settings, deployments):
    for deployment in deployments.values():
        assert container_of(deployment)["envFrom"] == [{"configMapRef": {"name": "veil"}}]
        refuse_unknown(settings | dict.fromkeys(variables_of(deployment), ""), WorkerSettings)
    given = {name.removeprefix("VEIL_").lower(): value for name, value in settings.items()}
    WorkerSettings(**given, redis_password="a")


def test_the_chart_knows_the_names_of_all_secrets(repository):
    text = (repository / "docker/helm/veil/templates/_settings.tpl").read_text()
    (pattern,) = re.findall(r'regexMatch "(\(PASSWORD.*?\$)"', text)
    secrets = {
        f"VEIL_{name.upper()}"
        for name, field in WorkerSettings.model_fields.items()
        if SecretStr in (field.annotation, *getattr(field.annotation, "__args__", ()))
    }
    others = {f"VEIL_{name.upper()}" for name in WorkerSettings.model_fields} - secrets
    assert "VEIL_RECEIPT_KEY" in secrets
    for name in secrets - {"VEIL_REDIS_URL"}:
        assert re.search(pattern, name), name
    for name in others:
        assert not re.search(pattern, name), name


def test_a_worker_that_is_told_to_stop_is_given_the_time_that_it_takes(settings, deployments):
    grace = pod_of(deployments["veil-worker"])["terminationGracePeriodSeconds"]
    assert grace >= int(settings["VEIL_GRACE_SECONDS"]) + 10
    for name in deployments.keys() - {"veil-worker"}:
        assert "terminationGracePeriodSeconds" not in pod_of(deployments[name])
    assert DEFAULT_STOP_SECONDS > SHUTDOWN_SECONDS + ANSWER_SECONDS + 2


def test_the_readiness_of_a_worker_is_told_by_a_module_of_its_image(deployments):
    probe = container_of(deployments["veil-worker"])["readinessProbe"]
    *program, module = probe["exec"]["command"]
    assert program == ["python", "-m"]
    assert importlib.util.find_spec(module) is not None


def test_secrets_come_from_the_secret_alone(resources, deployments):
    store = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    held = {name: variables_of(deployment) for name, deployment in deployments.items()}
    assert held["veil-worker"].keys() == {"VEIL_REDIS_PASSWORD", "VEIL_RECEIPT_KEY", *store}
    assert held["veil-trigger"].keys() == {"VEIL_REDIS_PASSWORD", "VEIL_WEBHOOK_TOKEN"}
    assert held["veil-catch-up"].keys() == {"VEIL_REDIS_PASSWORD", *store}
    assert held["veil-worker"]["VEIL_RECEIPT_KEY"]["optional"] is True
    (reference,) = resources["TriggerAuthentication", "veil-worker"]["spec"]["secretTargetRef"]
    assert reference.pop("parameter") == "password"
    assert held["veil-worker"]["VEIL_REDIS_PASSWORD"] == reference


def test_the_queues_decide_how_many_workers_there_are(resources, settings, deployments):
    scaled = resources["ScaledObject", "veil-worker"]["spec"]

    assert scaled["scaleTargetRef"]["name"] == "veil-worker"
    # With `replicas`, each `kubectl apply` would undo the number that the autoscaler chose.
    assert "replicas" not in deployments["veil-worker"]["spec"]
    queues = {trigger["metadata"]["listName"] for trigger in scaled["triggers"]}
    assert queues == set(QUEUES)
    for trigger in scaled["triggers"]:
        address, database = trigger["metadata"]["address"], trigger["metadata"]["databaseIndex"]
        # KEDA runs in a namespace of its own.
        host, _, port = address.partition(":")
        assert host.endswith(".veil")
        server = f"{host.removesuffix('.veil')}:{port}"
        assert settings["VEIL_REDIS_URL"] == f"redis://{server}/{database}"
        assert trigger["authenticationRef"]["name"] == "veil-worker"
    # No list contains the messages that a killed worker held. Another worker must return them.
    assert scaled["minReplicaCount"] >= 1


def test_the_upgrade_page_names_the_deployments(deployments, repository):
    page = (repository / "docs" / "upgrade.md").read_text()
    _, kubernetes = page.split("### With Kubernetes")
    for name, deployment in deployments.items():
        assert f"deployment/{name}" in kubernetes
        rolling = deployment["spec"]["strategy"]["rollingUpdate"]
        assert rolling["maxUnavailable"] == 0


def test_prometheus_scrapes_all_of_them_by_the_names_of_the_alerts(
    repository, settings, deployments
):
    text = (repository / "docker" / "kubernetes" / "prometheus.yml").read_text()
    (scrape,) = yaml.safe_load(text)["scrape_configs"]
    kept, *renamed = scrape["relabel_configs"]
    jobs = {rule["regex"]: rule["replacement"] for rule in renamed}
    assert jobs == {"worker": "veil-worker", "trigger|sqs|catch-up": "veil-trigger"}
    port = int(settings["VEIL_METRICS"].rpartition(":")[2])
    for deployment in deployments.values():
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert deployment["spec"]["selector"]["matchLabels"] == labels
        assert any(re.fullmatch(pattern, labels["app.kubernetes.io/component"]) for pattern in jobs)
        assert ports_of(deployment)["metrics"] == port
        assert kept["regex"] == f"{labels['app.kubernetes.io/name']};metrics"


def test_prometheus_takes_the_rules_of_the_scrape_configuration(
    repository, system_program, tmp_path
):
    text = (repository / "docker" / "kubernetes" / "prometheus.yml").read_text()
    configuration = yaml.safe_load(text)
    # Debian builds Prometheus without the discovery of pods.
    (pods,) = configuration["scrape_configs"][0].pop("kubernetes_sd_configs")
    assert pods["role"] == "pod"
    path = tmp_path / "prometheus.yml"
    path.write_text(yaml.safe_dump(configuration))
    subprocess.run([system_program("promtool"), "check", "config", path], check=True)


def test_no_probe_that_restarts_a_pod_asks_redis(deployments):
    class Unreachable(Collector):
        def collect(self):
            raise AssertionError("a name server that is away takes longer than a probe waits")

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Unreachable())
    serve = make_wsgi_app(registry)
    statuses = []
    for deployment in deployments.values():
        for probe in ("startupProbe", "livenessProbe"):
            asked = container_of(deployment)[probe]["httpGet"]
            assert asked["port"] == "metrics"
            request = {"REQUEST_METHOD": "GET", "PATH_INFO": asked["path"]}
            serve(request, lambda status, _: statuses.append(status))
    assert statuses == ["200 OK"] * 2 * len(deployments)


def test_the_webhook_is_behind_its_service(resources, deployments):
    webhook = deployments["veil-trigger"]
    service = resources["Service", "veil-trigger"]["spec"]
    assert service["selector"] == webhook["spec"]["template"]["metadata"]["labels"]
    (port,) = service["ports"]
    assert ports_of(webhook)[port["targetPort"]] == port["port"]
    assert container_of(webhook)["command"] == [
        *("veil", "watch", "--http", f"0.0.0.0:{port['port']}")
    ]


def test_a_webhook_that_ends_takes_events_until_nobody_sends_it_any(deployments):
    waits = {name: container_of(one).get("lifecycle") for name, one in deployments.items()}
    webhook = waits.pop("veil-trigger")
    *command, seconds = webhook["preStop"]["exec"]["command"]
    assert command == ["sleep"]
    assert 0 < float(seconds) < 10  # Kubernetes kills the pod 30 seconds after it is told to end.
    assert set(waits.values()) == {None}


def test_the_network_policies_allow_the_ports_in_use_and_no_others(policies, settings, deployments):
    redis, store = urlsplit(settings["VEIL_REDIS_URL"]), urlsplit(settings["VEIL_S3_ENDPOINT"])
    reached = {"veil-trigger": {53, redis.port}}
    entered = {"veil-trigger": {"metrics", "events"}}
    for name, deployment in deployments.items():
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        applied = [one["spec"] for one in policies.values() if select(one, labels)]
        assert {"policyTypes": ["Ingress", "Egress"]}.items() <= applied[0].items()
        assert not {"ingress", "egress"} & applied[0].keys()  # the denial of everything else
        egress = [rule for policy in applied for rule in policy.get("egress", [])]
        ingress = [rule for policy in applied for rule in policy.get("ingress", [])]
        assert all(rule["to"] for rule in egress)
        assert all(rule["from"] for rule in ingress)
        allowed = {port["port"] for rule in egress for port in rule["ports"]}
        assert allowed == reached.get(name, {53, redis.port, store.port})
        allowed = {port["port"] for rule in ingress for port in rule["ports"]}
        assert allowed == entered.get(name, {"metrics"})


def test_the_job_of_the_page_has_what_a_worker_has(deployments, repository):
    page = (repository / "docs" / "kubernetes.md").read_text()
    (example,) = re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    job, worker = yaml.safe_load(example), deployments["veil-worker"]
    check_fields(job)
    assert pod_of(job)["enableServiceLinks"] is False
    assert pod_of(job)["serviceAccountName"] == pod_of(worker)["serviceAccountName"]
    assert variables_of(job) == variables_of(worker)
    for name in ("image", "envFrom"):
        assert container_of(job)[name] == container_of(worker)[name]


def test_the_page_creates_every_key_of_the_secret_and_names_every_file(
    files, deployments, repository
):
    page = (repository / "docs" / "kubernetes.md").read_text()
    keys = {"flower-basic-auth", "review-password"}
    for deployment in deployments.values():
        keys |= {reference["key"] for reference in variables_of(deployment).values()}
    assert set(re.findall(r"--from-file=([a-z-]+)\b(?!/)", page)) == keys
    (deleted,) = re.findall(r"^ +rm (.+)$", page, re.MULTILINE)
    assert set(deleted.split()) == keys
    for path in files:
        assert f"docker/kubernetes/{path.name}" in page
