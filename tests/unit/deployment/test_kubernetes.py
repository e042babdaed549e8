"""The Kubernetes examples are valid, have few privileges, and agree with the worker."""

import re
import subprocess
from urllib.parse import urlsplit

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tasks.messages import QUEUES
from tasks.settings import refuse_unknown
from worker.settings import WorkerSettings

NAMED = {
    "type": "object",
    "required": ["name"],
    "properties": {"name": {"type": "string"}},
    "additionalProperties": False,
}
COUNT = {"type": "integer", "minimum": 0}
TEXT = {"type": "string"}
REDIS = ("address", "listName", "listLength", "databaseIndex")
# The part of KEDA 2's resource definitions for the fields in use. It refuses misspelt fields.
KEDA = {
    "TriggerAuthentication": {
        "type": "object",
        "required": ["secretTargetRef"],
        "additionalProperties": False,
        "properties": {
            "secretTargetRef": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["parameter", "name", "key"],
                    "additionalProperties": False,
                    "properties": dict.fromkeys(("parameter", "name", "key"), TEXT),
                },
            }
        },
    },
    "ScaledObject": {
        "type": "object",
        "required": ["scaleTargetRef", "triggers"],
        "additionalProperties": False,
        "properties": {
            "scaleTargetRef": NAMED,
            "minReplicaCount": COUNT,
            "maxReplicaCount": COUNT,
            "pollingInterval": COUNT,
            "fallback": {
                "type": "object",
                "required": ["failureThreshold", "replicas"],
                "additionalProperties": False,
                "properties": {"failureThreshold": COUNT, "replicas": COUNT},
            },
            "advanced": {
                "type": "object",
                "additionalProperties": False,
                "properties": {"horizontalPodAutoscalerConfig": {"type": "object"}},
            },
            "triggers": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "required": ["type", "metadata"],
                    "additionalProperties": False,
                    "properties": {
                        "type": {"const": "redis"},
                        "metadata": {
                            "type": "object",
                            "required": ["address", "listName", "listLength"],
                            "additionalProperties": False,
                            "properties": dict.fromkeys(REDIS, TEXT),
                        },
                        "authenticationRef": NAMED,
                    },
                },
            },
        },
    },
}


@pytest.fixture(scope="module")
def files(repository):
    return sorted((repository / "docker" / "kubernetes").glob("*.yaml"))


@pytest.fixture(scope="module")
def resources(files):
    """The resources of workers, by kind."""
    found = [
        resource
        for path in files
        if path.name in ("worker.yaml", "scaledobject.yaml")
        for resource in yaml.safe_load_all(path.read_text())
    ]
    assert all(resource["apiVersion"] and resource["metadata"]["name"] for resource in found)
    return {resource["kind"]: resource for resource in found}


@pytest.fixture(scope="module")
def triggers(repository):
    """The resources of triggers, by name and kind."""
    text = (repository / "docker" / "kubernetes" / "trigger.yaml").read_text()
    return {(one["metadata"]["name"], one["kind"]): one for one in yaml.safe_load_all(text)}


@pytest.fixture(scope="module")
def policies(repository):
    text = (repository / "docker" / "kubernetes" / "networkpolicy.yaml").read_text()
    return {one["metadata"]["name"]: one["spec"] for one in yaml.safe_load_all(text)}


def pod_of(deployment):
    return deployment["spec"]["template"]["spec"]


@pytest.fixture(scope="module")
def pod(resources):
    return resources["Deployment"]["spec"]["template"]["spec"]


@pytest.fixture(scope="module")
def container(pod):
    (container,) = pod["containers"]
    return container


def test_the_resources_fit_kubernetes_own_schemas(files):
    for path in files:
        for resource in yaml.safe_load_all(path.read_text()):
            if resource["kind"] not in KEDA:
                kubernetes_validate.validate(
                    resource, kubernetes_validate.latest_version(), strict=True
                )


@pytest.mark.parametrize("kind", list(KEDA))
def test_what_keda_reads_has_the_fields_that_it_knows(resources, kind):
    assert resources[kind]["apiVersion"] == "keda.sh/v1alpha1"
    jsonschema.validate(resources[kind]["spec"], KEDA[kind])


def test_the_horizontal_autoscaler_that_keda_makes_is_one(resources):
    scaled = resources["ScaledObject"]["spec"]
    target = {"apiVersion": "apps/v1", "kind": "Deployment", **scaled["scaleTargetRef"]}
    made = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "made"},
        "spec": {
            "scaleTargetRef": target,
            "maxReplicas": scaled["maxReplicaCount"],
            **scaled["advanced"]["horizontalPodAutoscalerConfig"],
        },
    }
    kubernetes_validate.validate(made, kubernetes_validate.latest_version(), strict=True)


def test_workers_and_triggers_may_do_nothing_but_work(pod, triggers):
    pods = [pod, *(pod_of(one) for (_, kind), one in triggers.items() if kind == "Deployment")]
    assert len(pods) == 3
    for one in pods:
        check_confinement(one)


def check_confinement(pod):
    (container,) = pod["containers"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 10001  # the user of the image
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/tmp"]
    assert {"startupProbe", "livenessProbe"} <= container.keys()
    assert container["resources"]["limits"].keys() == {"cpu", "memory"}


def test_the_settings_are_ones_that_a_worker_takes(resources, container):
    settings = resources["ConfigMap"]["data"]
    assert container["envFrom"] == [
        {"configMapRef": {"name": resources["ConfigMap"]["metadata"]["name"]}}
    ]

    refuse_unknown(
        settings | {variable["name"]: "" for variable in container["env"]}, WorkerSettings
    )
    given = {name.removeprefix("VEIL_").lower(): value for name, value in settings.items()}
    WorkerSettings(**given, redis_password="a")


def test_services_of_the_namespace_bring_no_variables_that_a_worker_refuses(pod):
    assert pod["enableServiceLinks"] is False


def test_a_worker_that_is_told_to_stop_is_given_the_time_that_it_takes(resources, pod):
    assert (
        pod["terminationGracePeriodSeconds"]
        >= int(resources["ConfigMap"]["data"]["VEIL_GRACE_SECONDS"]) + 10
    )
    # As process 1, Python would ignore a SIGTERM that comes before it has a handler.
    assert pod["shareProcessNamespace"] is True


def test_secrets_come_from_the_secret_alone(resources, container):
    held = {
        variable["name"]: variable["valueFrom"]["secretKeyRef"] for variable in container["env"]
    }
    assert held.keys() == {
        "VEIL_REDIS_PASSWORD",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "VEIL_RECEIPT_KEY",
    }
    assert held["VEIL_RECEIPT_KEY"]["optional"] is True
    (reference,) = resources["TriggerAuthentication"]["spec"]["secretTargetRef"]
    assert held["VEIL_REDIS_PASSWORD"] == {"name": reference["name"], "key": reference["key"]}


def test_the_queues_decide_how_many_workers_there_are(resources):
    scaled, deployment = resources["ScaledObject"]["spec"], resources["Deployment"]

    assert scaled["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    # With `replicas`, each `kubectl apply` would undo the number that the autoscaler chose.
    assert "replicas" not in deployment["spec"]
    assert [trigger["metadata"]["listName"] for trigger in scaled["triggers"]] == list(QUEUES)
    redis = resources["ConfigMap"]["data"]["VEIL_REDIS_URL"]
    for trigger in scaled["triggers"]:
        address, database = trigger["metadata"]["address"], trigger["metadata"]["databaseIndex"]
        assert redis == f"redis://{address}/{database}"
        assert (
            trigger["authenticationRef"]["name"]
            == resources["TriggerAuthentication"]["metadata"]["name"]
        )
    # No list contains the messages that a killed worker held. Another worker must return them.
    assert scaled["minReplicaCount"] >= 1


def test_the_upgrade_page_names_the_deployments_and_their_containers(
    resources, triggers, repository
):
    page = (repository / "docs" / "upgrade.md").read_text()
    _, roll_back = page.split("## Roll back")
    producers = [resource for (_, kind), resource in triggers.items() if kind == "Deployment"]
    for resource in (resources["Deployment"], *producers):
        deployment = f"deployment/{resource['metadata']['name']}"
        (container,) = pod_of(resource)["containers"]
        image = container["image"].partition(":")[0]
        assert (
            f"kubectl set image {deployment} {container['name']}=registry.internal/{image}:" in page
        )
        assert f"kubectl rollout status {deployment}" in page
        assert deployment in roll_back
    assert resources["Deployment"]["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_the_triggers_are_commands_that_prometheus_scrapes_by_the_name_of_the_alerts(
    repository, triggers, resources
):
    text = (repository / "docker" / "kubernetes" / "prometheus.yml").read_text()
    (scrape,) = yaml.safe_load(text)["scrape_configs"]
    kept, *renamed = scrape["relabel_configs"]
    jobs = {rule["regex"]: rule["replacement"] for rule in renamed}
    assert jobs == {"worker": "veil-worker", "trigger|catch-up": "veil-trigger"}
    port = int(resources["ConfigMap"]["data"]["VEIL_METRICS"].rpartition(":")[2])
    deployments = [one for (_, kind), one in triggers.items() if kind == "Deployment"]
    for deployment in (*deployments, resources["Deployment"]):
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert deployment["spec"]["selector"]["matchLabels"] == labels
        assert any(re.fullmatch(pattern, labels["app.kubernetes.io/component"]) for pattern in jobs)
        (container,) = pod_of(deployment)["containers"]
        ports = {one["name"]: one["containerPort"] for one in container["ports"]}
        assert ports["metrics"] == port
        assert kept["regex"] == f"{labels['app.kubernetes.io/name']};metrics"
    for deployment in deployments:
        (container,) = pod_of(deployment)["containers"]
        assert container["command"][:2] == ["veil", "watch"]
        variables = {one["name"]: "" for one in container["env"]}
        refuse_unknown(resources["ConfigMap"]["data"] | variables, WorkerSettings)


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


def test_the_webhook_alone_has_its_token_and_is_behind_its_service(triggers):
    (webhook,) = pod_of(triggers["veil-trigger", "Deployment"])["containers"]
    (listing,) = pod_of(triggers["veil-catch-up", "Deployment"])["containers"]
    names = [{one["name"] for one in container["env"]} for container in (webhook, listing)]
    assert names == [
        {"VEIL_REDIS_PASSWORD", "VEIL_WEBHOOK_TOKEN"},
        {"VEIL_REDIS_PASSWORD", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"},
    ]
    service = triggers["veil-trigger", "Service"]["spec"]
    labels = triggers["veil-trigger", "Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert service["selector"] == labels
    (port,) = service["ports"]
    ports = {one["name"]: one["containerPort"] for one in webhook["ports"]}
    assert ports[port["targetPort"]] == port["port"]
    assert webhook["command"][3] == f"0.0.0.0:{port['port']}"


def test_the_network_policies_allow_the_ports_in_use_and_no_others(policies, resources, triggers):
    settings = resources["ConfigMap"]["data"]
    metrics = int(settings["VEIL_METRICS"].rpartition(":")[2])
    redis, store = urlsplit(settings["VEIL_REDIS_URL"]), urlsplit(settings["VEIL_S3_ENDPOINT"])
    everywhere, webhook = policies["veil"], policies["veil-trigger"]
    (scrape,) = everywhere["ingress"]
    assert scrape["ports"] == [{"port": metrics}]
    allowed = {port["port"] for rule in everywhere["egress"] for port in rule["ports"]}
    assert allowed == {53, redis.port, store.port}
    assert all(rule["to"] for rule in everywhere["egress"])
    (events,) = triggers["veil-trigger", "Service"]["spec"]["ports"]
    assert [rule["ports"] for rule in webhook["ingress"]] == [[{"port": events["port"]}]]


def test_the_page_creates_every_key_of_the_secret_and_applies_every_file(
    files, triggers, container, repository
):
    page = (repository / "docs" / "kubernetes.md").read_text()
    used = [container["env"]]
    for (_, kind), resource in triggers.items():
        if kind == "Deployment":
            used.append(pod_of(resource)["containers"][0]["env"])
    keys = {one["valueFrom"]["secretKeyRef"]["key"] for env in used for one in env}
    assert set(re.findall(r"--from-file=([a-z-]+)", page)) == keys
    (deleted,) = re.findall(r"^ +rm (.+)$", page, re.MULTILINE)
    assert set(deleted.split()) == keys
    applied = re.findall(r"kubectl apply -f docker/kubernetes/(\S+)", page)
    assert sorted(applied) == sorted(path.name for path in files)
