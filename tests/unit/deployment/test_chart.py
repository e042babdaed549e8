"""The Helm chart renders valid resources, and refuses wrong values by name."""

import functools
import json
import re
import subprocess

import pytest
import yaml
from kombu.transport.redis import Channel

from tasks.messages import QUEUES
from tasks.routes import PRIORITIES
from tasks.settings import refuse_unknown, split_address
from tests.manifests import check_confinement, check_fields, container_of, pod_of, select
from tools.chart_schema import SCHEMA, generated
from tools.manifests import CHART, EXAMPLES, MANIFESTS, helm_program, manifests
from worker.desk import serving
from worker.process import processors
from worker.settings import WorkerSettings

if helm_program() is None:
    pytest.skip("no helm is found: make helm", allow_module_level=True)

PRODUCERS = {"veil-trigger", "veil-sqs", "veil-catch-up"}
ROUTES = ("--set-json", 'settings.VEIL_ROUTES="s3://a=s3://b"')
SENTINELS = "settings.VEIL_REDIS_URL=sentinels://team%2Da@one\\,two:26380/3"
# Each is merged with the default values, and renders the deployments that are named.
VALUES = {
    "default": ([], {"veil-worker"}),
    "gpu": (["worker.gpu=true"], {"veil-worker"}),
    "producers": (
        [
            "worker.enabled=false",
            "triggers.webhook.enabled=true",
            "triggers.sqs.enabled=true",
            "triggers.sqs.queueUrl=https://sqs.internal/uploads",
            "triggers.poll.enabled=true",
        ],
        PRODUCERS,
    ),
    "listing": (["triggers.poll.enabled=true"], {"veil-worker", "veil-catch-up"}),
    "flower": (["flower.enabled=true"], {"veil-worker", "veil-flower"}),
    "review": (
        [
            "review.enabled=true",
            "review.ingress.enabled=true",
            "review.ingress.host=review.internal",
        ],
        {"veil-worker", "veil-review"},
    ),
    "sentinels": (["autoscaling.enabled=true", SENTINELS], {"veil-worker"}),
    "monitoring": (
        ["monitoring.podMonitor.enabled=true", "monitoring.rules.enabled=true"],
        {"veil-worker"},
    ),
    "open": (["networkPolicy.enabled=false"], {"veil-worker"}),
    "files": (["files.routes=a", "image.pullSecrets[0].name=b"], {"veil-worker"}),
    "ingress": (
        [
            "triggers.webhook.enabled=true",
            "triggers.webhook.ingress.enabled=true",
            "triggers.webhook.ingress.host=events.internal",
        ],
        {"veil-worker", "veil-trigger"},
    ),
}
# The schema refuses all of these at once. A line of the message has each of the words.
WRONG = {
    "worker.replica=2": "worker replica",
    "worker.gpu=2": "worker gpu boolean",
    "worker.pod.hostNetwork=true": "worker pod hostNetwork",
    "worker.resources.limits.memory=lots": "worker resources limits memory",
    "worker.resources.limits.cpu=-1": "worker resources limits cpu",
    "files.a/b=a": "files a/b",
    "settings.veil_routes=a": "settings veil_routes",
    "settings.VEIL_ROTUES=a": "settings VEIL_ROTUES",
    "settings.VEIL_S3_SOURCE_OWNER=123456789012": "settings VEIL_S3_SOURCE_OWNER string",
    "triggers.settings.VEIL_ROUTE=a": "triggers settings VEIL_ROUTE",
    "secrets.all[0].variable=VEIL_REDIS_PASS": "secrets all 0 variable",
    "settings.VEIL_REDIS_URL=http://redis": "settings VEIL_REDIS_URL",
    "settings.VEIL_METRICS=null": "settings VEIL_METRICS",
    "settings.VEIL_LEASE_SECONDS=100": "settings VEIL_LEASE_SECONDS 45",
    "settings.VEIL_PROCESSES=abc": "settings VEIL_PROCESSES auto",
    "settings.VEIL_METHOD=blurr": "settings VEIL_METHOD surround",
    "settings.VEIL_REGION=2": "settings VEIL_REGION maximum",
    "settings.VEIL_KEEP_GPS=near": "settings VEIL_KEEP_GPS rounded",
    "settings.VEIL_MIRRORED=maybe": "settings VEIL_MIRRORED",
    "settings.VEIL_RECEIPT_ACL=public-read": "settings VEIL_RECEIPT_ACL",
    "settings.VEIL_ROUTES=nonsense": "settings VEIL_ROUTES s3",
    "secrets.store=null": "secrets store",
    "secrets.worker[0].value=a": "secrets worker 0 value",
    "triggers.sqs.enabled=true": "triggers sqs queueUrl",
    "triggers.kafka.enabled=true": "triggers kafka",
    "autoscaling.minReplicas=0": "autoscaling minReplicas",
    "flower.ingress.enabled=true": "flower ingress host",
    "networkPolicy.egress.redis[0].cidr=10.0.0.0/8": "networkPolicy egress redis 0 cidr",
    "image.pins.redis=7": "image pins redis",
    "user=0": "user",
    "env[0].value=a": "env 0 name",
}
# The templates refuse these, as JSON.
REFUSED = {
    'settings.VEIL_REDIS_PASSWORD_FILE="/run/a"': "VEIL_REDIS_PASSWORD is set twice",
    'settings.VEIL_NOTIFY="https://orders.internal/veil"': "name its Secret in secrets.all",
    'settings.VEIL_REDIS_URL="redis://veil:p%40@redis"': "VEIL_REDIS_URL contains a password",
    'settings.VEIL_REDIS_URL="rediss://redis/0?ssl_password=a"': "VEIL_REDIS_URL contains a pass",
    'settings.AWS_SECRET_ACCESS_KEY="a"': "settings.AWS_SECRET_ACCESS_KEY is a secret",
    'settings.OTEL_EXPORTER_OTLP_HEADERS="k=v"': "OTEL_EXPORTER_OTLP_HEADERS is a secret",
    'env=[{"name":"VEIL_REDIS_PASSWORD","value":"a"}]': "env: VEIL_REDIS_PASSWORD is a secret",
    'env=[{"name":"HTTPS_PROXY","value":"http://a:b@c"}]': "env: HTTPS_PROXY contains a password",
    'triggers.settings.AWS_SECRET_ACCESS_KEY="a"': "triggers.settings.AWS_SECRET_ACCESS_KEY is a",
    'settings.VEIL_ROUTES=""': "worker needs routes",
    'settings.VEIL_ROUTES_FILE="/etc/veil/a.toml",files={"a.toml":"a"}': "keep one of them",
    'settings.VEIL_ROUTES="",settings.VEIL_ROUTES_FILE="/etc/veil/a.toml"': (
        "worker has no file /etc/veil/a.toml"
    ),
    'settings.VEIL_ROUTES="",settings.VEIL_ROUTES_FILE="/a.toml",files={"b.toml":"a"}': (
        "worker has no file /a.toml"
    ),
    'settings.VEIL_REDIS_URL="rediss://redis/0?ssl_ca_certs=/etc/veil/redis-ca.pem"': (
        "has no file /etc/veil/redis-ca.pem, which VEIL_REDIS_URL names"
    ),
    'worker.resources.limits.memory="953Mi"': "memory is 953Mi, and a worker needs at least 1G",
    "worker.resources.limits.memory=999999999": "memory is 999999999, and a worker needs",
    'settings.AWS_CA_BUNDLE="/etc/veil/a.pem",files={"b.pem":"a"}': "which AWS_CA_BUNDLE names",
    'env=[{"name":"SSL_CERT_FILE","value":"/etc/veil/a.pem"}]': "which SSL_CERT_FILE names",
    'triggers={"poll":{"enabled":true},"settings":{"VEIL_ROUTES_FILE":"/etc/veil/a.toml"}}': (
        "VEIL_ROUTES and VEIL_ROUTES_FILE are set"
    ),
    'settings.VEIL_METRICS="127.0.0.1:9100"': "write 0.0.0.0:9100",
    'settings.VEIL_METRICS="localhost:9200"': "write 0.0.0.0:9200",
    'settings.VEIL_METRICS="[::1]:9100"': 'or "[::]:9100" with IPv6 alone',
    'triggers.settings.VEIL_METRICS="[::]:9200"': "triggers.settings: VEIL_METRICS has its place",
    'env=[{"name":"VEIL_METRICS","value":"0.0.0.0:9200"}]': "env: VEIL_METRICS has its place",
    'autoscaling.enabled=true,secrets.all=[],settings.VEIL_REDIS_PASSWORD_FILE="/run/a"': (
        "{parameter: password, name: SECRET, key: KEY}"
    ),
    'autoscaling.enabled=true,secrets.all=[],env=[{"name":"VEIL_REDIS_PASSWORD",'
    '"valueFrom":{"secretKeyRef":{"name":"a","key":"b"}}}]': "the password of VEIL_REDIS_PASSWORD",
    'autoscaling.enabled=true,settings.VEIL_REDIS_SENTINEL_PASSWORD_FILE="/run/a"': (
        "{parameter: sentinelPassword, name: SECRET, key: KEY}"
    ),
    'triggers.webhook.args=["--http","0.0.0.0:9090"]': "triggers.webhook.args has --http",
    'triggers.webhook.args=["--poll=60"]': "use triggers.poll.enabled",
    'triggers.sqs.args=["--sqs","https://a"]': "use triggers.sqs.enabled",
    'triggers.poll.args=["--poll=60"]': "triggers.poll.args has --poll=60",
    'worker.args=["--workers","2"]': "worker.args has --workers",
    'worker.args=["-w2"]': "worker.replicas is their number",
    'review.args=["--http","127.0.0.1:1"]': "review.args has --http",
    'flower.args=["--url-prefix=a"]': "use flower.ingress.path",
    'flower.args=["--port","1"]': "the Service has port 5555",
    'autoscaling={"minReplicas":5,"maxReplicas":4}': "minReplicas, 5, is above",
    'flower.ingress={"enabled":true,"host":"a"}': "flower.ingress.enabled needs flower.enabled",
    'review.ingress={"enabled":true,"host":"a"}': "review.ingress.enabled needs review.enabled",
    'triggers.webhook.ingress={"enabled":true,"host":"a"}': (
        "triggers.webhook.ingress.enabled needs triggers.webhook.enabled"
    ),
    'flower={"enabled":true},secrets.flower=[]': "flower.enabled needs FLOWER_BASIC_AUTH",
    'review={"enabled":true}': "review.enabled needs review.ingress",
    'review={"enabled":true},secrets.review=[],settings.VEIL_REVIEW_URL="https://a"': (
        "review.enabled needs VEIL_REVIEW_PASSWORD"
    ),
    'review={"enabled":true},settings.VEIL_REVIEW_URL="https://a",'
    'settings.VEIL_REVIEW_USER_HEADER="X-User"': "set secrets.review to []",
    'triggers.webhook.enabled=true,settings.VEIL_METRICS="[::]:8080"': (
        "has the port 8080, at which the webhook listens"
    ),
}


@pytest.fixture(scope="module")
def helm():
    """``helm(…)`` runs Helm, and returns the finished process."""
    program = helm_program()

    def run(*arguments):
        return subprocess.run([program, *arguments], capture_output=True, text=True)

    return run


@pytest.fixture(scope="module")
def rendered(helm):
    """``rendered(…)`` returns the resources of the release `veil` by kind and name."""

    @functools.cache
    def render(*arguments, release="veil"):
        if "--values" not in arguments:
            arguments = (*ROUTES, *arguments)
        done = helm("template", release, str(CHART), "--namespace", "veil", *arguments)
        assert done.returncode == 0, done.stderr
        return by_name(done.stdout)

    return render


def by_name(text):
    """The resources of a stream of YAML, by kind and name; no two are the same."""
    resources = [one for one in yaml.safe_load_all(text) if one]
    found = {(one["kind"], one["metadata"]["name"]): one for one in resources}
    assert len(found) == len(resources)
    return found


def maps_of(values, path=()):
    """Yield each map in `values` that is not empty, after its path."""
    yield path, values
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from maps_of(value, (*path, name))


def with_values(*values):
    return [part for value in values for part in ("--set", value)]


def deployments(resources):
    return {name: one for (kind, name), one in resources.items() if kind == "Deployment"}


def environment_of(deployment):
    return {one["name"] for one in container_of(deployment).get("env", [])}


def labels_of(deployment):
    return deployment["spec"]["template"]["metadata"]["labels"]


def check_release(resources):
    """Check all resources, and that references between them lead somewhere."""
    for (kind, name), resource in resources.items():
        check_fields(resource)
        if kind == "Deployment":
            check_confinement(resource)
            labels = labels_of(resource)
            assert resource["spec"]["selector"]["matchLabels"] == labels
            account = pod_of(resource)["serviceAccountName"]
            assert account == name
            assert ("ServiceAccount", account) in resources
            for source in container_of(resource)["envFrom"]:
                assert ("ConfigMap", source["configMapRef"]["name"]) in resources
            mounted = {one["name"] for one in container_of(resource)["volumeMounts"]}
            assert mounted == {one["name"] for one in pod_of(resource)["volumes"]}
        if kind in ("Service", "PodDisruptionBudget"):
            selector = resource["spec"]["selector"]
            labels = labels_of(resources["Deployment", name])
            assert selector.get("matchLabels", selector) == labels
        if kind == "Ingress":
            assert ("Service", name) in resources


def test_the_manifests_are_those_that_the_chart_renders(helm):
    committed = {path.name: path.read_text() for path in MANIFESTS.glob("*.yaml")}
    expected = manifests(helm_program())
    assert committed.keys() == expected.keys(), "run `make manifests`"
    for name, text in committed.items():
        # Versions of Helm differ in empty lines and in the order of resources.
        assert by_name(text) == by_name(expected[name]), "run `make manifests`"


@pytest.mark.parametrize("name", VALUES)
def test_all_kinds_of_values_give_valid_resources(name, rendered):
    values, expected = VALUES[name]
    resources = rendered(*with_values(*values))
    check_release(resources)
    assert deployments(resources).keys() == expected


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_examples_are_valid_and_have_settings_that_veil_takes(path, helm, rendered, tmp_path):
    lint = helm("lint", "--strict", str(CHART), "--values", str(path))
    assert lint.returncode == 0, lint.stdout
    resources = rendered("--values", str(path))
    check_release(resources)
    settings = resources["ConfigMap", "veil"]["data"]
    refuse_unknown(settings, WorkerSettings)
    given = {
        name.removeprefix("VEIL_").lower(): value
        for name, value in settings.items()
        if name.startswith("VEIL_")
    }
    if "routes_file" in given:
        mounted = given["routes_file"].removeprefix("/etc/veil/")
        given["routes_file"] = tmp_path / mounted
        given["routes_file"].write_text(resources["ConfigMap", "veil-files"]["data"][mounted])
        for deployment in deployments(resources).values():
            places = [one["mountPath"] for one in container_of(deployment)["volumeMounts"]]
            assert "/etc/veil" in places
    WorkerSettings(**given)


def test_the_schema_has_the_settings_of_this_version():
    text = SCHEMA.read_text()
    assert text == generated(text), "run `make manifests`"


def test_the_schema_refuses_wrong_values_by_name(helm):
    done = helm("template", "veil", str(CHART), *with_values(*WRONG))
    assert done.returncode != 0
    lines = done.stderr.splitlines()
    for words in WRONG.values():
        assert any(all(word in line for word in words.split()) for line in lines), words


@pytest.mark.parametrize(("values", "message"), REFUSED.items())
def test_values_have_no_secrets_and_name_those_that_are_needed(values, message, helm):
    done = helm("template", "veil", str(CHART), *ROUTES, "--set-json", values)
    assert done.returncode != 0
    assert message in done.stderr


def test_a_later_file_drops_values_with_null(rendered, tmp_path):
    given = {
        "settings": {
            "VEIL_ROUTES": "s3://a=s3://b",
            "VEIL_PROCESSES": 2,
            "VEIL_RECEIPT_KEY_FILE": "/run/key",
            "AWS_REGION": "eu-central-1",
        },
        "files": {"a.toml": "a"},
        "image": {"pins": {"worker": "1"}},
        "worker": {
            "labels": {"a": "b"},
            "annotations": {"a": "b"},
            "pod": {"nodeSelector": {"a": "b"}, "priorityClassName": "a", "tolerations": []},
            "resources": {"requests": {"ephemeral-storage": "1Gi"}},
            "serviceAccount": {"annotations": {"a": "b"}},
        },
        "triggers": {"poll": {"enabled": True}, "settings": {"VEIL_PROCESSES": 2}},
    }

    def without_leaves(value):
        if isinstance(value, dict):
            return {name: without_leaves(one) for name, one in value.items()}
        return None

    dropped = without_leaves(given)
    dropped["settings"]["VEIL_ROUTES"] = "s3://c=s3://d"
    dropped["triggers"]["poll"]["enabled"] = True
    dropped["worker"]["pod"]["nodeSelector"] = None
    files = []
    for values in (given, dropped):
        files.append(tmp_path / f"{len(files)}.yaml")
        files[-1].write_text(yaml.safe_dump(values))
    both = [part for file in files for part in ("--values", str(file))]
    expected = rendered(
        *with_values("settings.VEIL_ROUTES=s3://c=s3://d", "triggers.poll.enabled=true")
    )
    assert rendered(*both) == expected


def test_null_is_the_empty_value_where_that_is_the_default(rendered):
    enabled = ["flower.enabled=true", "autoscaling.enabled=true", "triggers.webhook.enabled=true"]
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    empty = [
        ".".join((*path, name))
        for path, values in maps_of(defaults)
        for name, value in values.items()
        if value in ([], {}) and (*path, name) not in {("env",), ("files",)}
    ]
    assert {"worker.volumes", "triggers.settings", "image.pins"} <= set(empty)
    nulls = [f"{name}=null" for name in empty]
    assert rendered(*with_values(*enabled, *nulls)) == rendered(*with_values(*enabled))


def test_with_ipv6_alone_all_pods_listen_at_its_addresses(rendered):
    values = ["settings.VEIL_METRICS=[::]:9100", "triggers.webhook.enabled=true"]
    values += ["flower.enabled=true", *VALUES["review"][0]]
    pods = deployments(rendered(*with_values(*values)))
    assert container_of(pods["veil-trigger"])["command"][-1] == "[::]:8080"
    assert container_of(pods["veil-review"])["command"][-1] == "[::]:8600"
    assert "--address=::" in container_of(pods["veil-flower"])["command"]


def test_a_limit_of_flower_replaces_that_of_the_chart(rendered):
    values = ["flower.enabled=true", "flower.args={--max_tasks=5}"]
    command = container_of(rendered(*with_values(*values))["Deployment", "veil-flower"])["command"]
    assert [one for one in command if "max_tasks" in one] == ["--max_tasks=5"]
    assert "--state_save_interval=60000" in command


def test_keda_has_a_password_from_elsewhere(rendered):
    password = {"parameter": "password", "name": "a", "key": "b"}
    values = {
        "secrets.all": [],
        "settings.VEIL_REDIS_PASSWORD_FILE": "/run/a",
        "autoscaling": {"enabled": True, "authentication": [password]},
    }
    arguments = ",".join(f"{name}={json.dumps(value)}" for name, value in values.items())
    resources = rendered("--set-json", arguments)
    (keda,) = resources["TriggerAuthentication", "veil-worker"]["spec"]["secretTargetRef"]
    assert keda == password


def test_numbers_reach_veil_as_they_were_written(rendered):
    values = ["VEIL_MAX_PIXELS=100000000", "VEIL_SCORE_THRESHOLD=0.17", "VEIL_RESULT_HOURS=1"]
    resources = rendered(*with_values(*(f"settings.{value}" for value in values)))
    settings = resources["ConfigMap", "veil"]["data"]
    for value in values:
        name, _, number = value.partition("=")
        assert settings[name] == number


def test_a_gpu_worker_has_its_image_a_gpu_and_time_to_warm_up(rendered):
    resources = rendered(*with_values("worker.gpu=true", "worker.models=20Gi"))
    worker = resources["Deployment", "veil-worker"]
    assert pod_of(worker)["volumes"] == [
        {"name": "tmp", "emptyDir": {"sizeLimit": "2Gi"}},
        {"name": "models", "emptyDir": {"sizeLimit": "20Gi"}},
    ]
    container = container_of(worker)
    assert "/worker-gpu:" in container["image"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    probe = container["startupProbe"]
    assert probe["failureThreshold"] * probe["periodSeconds"] > 180


def test_images_have_the_tag_or_the_digest_that_is_set(rendered):
    digest = "sha256:" + "0" * 64
    values = ["image.repository=registry.internal/veil", "image.tag=1.2.3"]
    values += [f"image.pins.flower={digest}", "triggers.webhook.enabled=true"]
    resources = rendered(*with_values(*values))
    images = {name: container_of(one)["image"] for name, one in deployments(resources).items()}
    assert images == {
        "veil-worker": "registry.internal/veil/worker:1.2.3",
        "veil-trigger": f"registry.internal/veil/flower@{digest}",
    }


def test_roles_replace_the_keys_of_the_store(rendered):
    resources = rendered("--values", str(EXAMPLES / "amazon-s3.yaml"))
    for name in ("veil-worker", "veil-sqs"):
        assert not any(
            one.startswith("AWS_") for one in environment_of(resources["Deployment", name])
        )
        annotations = resources["ServiceAccount", name]["metadata"]["annotations"]
        assert annotations["eks.amazonaws.com/role-arn"].endswith(f":role/{name}")


def test_an_account_that_exists_is_used(rendered):
    values = ["worker.serviceAccount.create=false", "worker.serviceAccount.name=mine"]
    resources = rendered(*with_values(*values))
    assert pod_of(resources["Deployment", "veil-worker"])["serviceAccountName"] == "mine"
    assert ("ServiceAccount", "veil-worker") not in resources


def test_existing_secrets_of_other_names_are_used_by_keda_too(rendered):
    used = {"variable": "VEIL_REDIS_PASSWORD", "secret": "redis-user", "key": "pass"}
    values = with_values("autoscaling.enabled=true")
    resources = rendered("--set-json", f"secrets.all=[{json.dumps(used)}]", *values)
    env = container_of(resources["Deployment", "veil-worker"])["env"]
    expected = {"name": "redis-user", "key": "pass"}
    assert env[0]["valueFrom"]["secretKeyRef"] == expected
    (keda,) = resources["TriggerAuthentication", "veil-worker"]["spec"]["secretTargetRef"]
    assert keda == {"parameter": "password", **expected}


def test_without_a_password_keda_has_no_authentication(rendered):
    resources = rendered("--set-json", "secrets.all=[]", *with_values("autoscaling.enabled=true"))
    assert ("TriggerAuthentication", "veil-worker") not in resources
    check_release(resources)
    for trigger in resources["ScaledObject", "veil-worker"]["spec"]["triggers"]:
        assert "authenticationRef" not in trigger


def test_keda_and_the_policies_follow_the_address_of_redis(rendered):
    prefix = "settings.VEIL_REDIS_PREFIX=team-a:"
    values = with_values("autoscaling.enabled=true", SENTINELS, prefix)
    resources = rendered(*values)
    triggers = resources["ScaledObject", "veil-worker"]["spec"]["triggers"]
    assert {one["metadata"]["listName"] for one in triggers} == {f"team-a:{one}" for one in QUEUES}
    for trigger in triggers:
        assert trigger["type"] == "redis-sentinel"
        assert trigger["metadata"]["addresses"] == "one.veil:26379,two.veil:26380"
        assert trigger["metadata"]["username"] == "team-a"
        assert trigger["metadata"]["enableTLS"] == "true"
        assert trigger["metadata"]["databaseIndex"] == "3"
    _, redis = resources["NetworkPolicy", "veil-queue"]["spec"]["egress"]
    assert [port["port"] for port in redis["ports"]] == [26379, 26380, 6379]


def test_with_a_routes_file_keda_reads_the_lists_of_its_priorities_too(rendered):
    file = 'settings.VEIL_ROUTES="",settings.VEIL_ROUTES_FILE="/etc/veil/a",files={"a":"a"}'
    resources = rendered("--set-json", file, *with_values("autoscaling.enabled=true"))
    triggers = resources["ScaledObject", "veil-worker"]["spec"]["triggers"]
    lists = {
        f"{queue}{Channel.sep}{priority}" if priority else queue
        for queue in QUEUES
        for priority in PRIORITIES.values()
    }
    assert {one["metadata"]["listName"] for one in triggers} == lists
    check_fields(resources["ScaledObject", "veil-worker"])


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("redis", "redis.veil:6379"),
        ("redis:6380", "redis.veil:6380"),
        ("redis.data:6379", "redis.data:6379"),
        ("10.0.10.5", "10.0.10.5:6379"),
        ("[fd00::5]", "[fd00::5]:6379"),
    ],
)
def test_keda_finds_a_redis_of_the_namespace_from_its_own(host, address, rendered):
    url = f"settings.VEIL_REDIS_URL=redis://{host}/0"
    resources = rendered(*with_values("autoscaling.enabled=true", url))
    for trigger in resources["ScaledObject", "veil-worker"]["spec"]["triggers"]:
        assert trigger["metadata"]["address"] == address


def test_a_cluster_may_assign_the_user(rendered):
    resources = rendered(*with_values("user=null", "triggers.webhook.enabled=true"))
    for deployment in deployments(resources).values():
        security = pod_of(deployment)["securityContext"]
        assert security == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}


def test_all_pods_resolve_names_at_the_ports_that_are_set(rendered):
    resources = rendered(*with_values("networkPolicy.egress.dnsPorts={5353}"))
    dns, _ = resources["NetworkPolicy", "veil-queue"]["spec"]["egress"]
    assert dns["ports"] == [{"port": 5353, "protocol": name} for name in ("UDP", "TCP")]


def test_pods_that_cannot_work_do_not_hold_up_the_draining_of_a_node(rendered):
    resources = rendered(*with_values("triggers.webhook.enabled=true"))
    budgets = [one["spec"] for (kind, _), one in resources.items() if kind == "PodDisruptionBudget"]
    assert len(budgets) == 2
    for budget in budgets:
        assert budget["maxUnavailable"] == 1
        assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_a_registry_that_nobody_named_is_nobodys(rendered):
    # A name without a host would be looked up in a public registry, where anybody may take it.
    for deployment in deployments(rendered(*with_values("flower.enabled=true"))).values():
        assert container_of(deployment)["image"].startswith("registry.internal/veil/")


@pytest.mark.parametrize(
    ("endpoint", "port"),
    [("http://store:8333/s3", 8333), ("http://store/", 80), ("https://store", 443), ("", 443)],
)
def test_the_policy_of_the_store_has_the_port_of_its_endpoint(endpoint, port, rendered):
    resources = rendered(*with_values(f"settings.VEIL_S3_ENDPOINT={endpoint}"))
    (rule,) = resources["NetworkPolicy", "veil-store"]["spec"]["egress"]
    assert rule["ports"] == [{"port": port}]


def test_the_policy_of_the_store_has_the_ports_of_the_services_that_are_called_beside_it(rendered):
    values = ["triggers.sqs.enabled=true", "triggers.sqs.queueUrl=http://sqs:9324/1/uploads"]
    values += ["settings.AWS_ENDPOINT_URL_S3=http://store:8333", "settings.VEIL_S3_SOURCE_ROLE=a"]
    values += ["settings.HTTPS_PROXY=http://proxy:3128"]
    resources = rendered(*with_values(*values))
    (rule,) = resources["NetworkPolicy", "veil-store"]["spec"]["egress"]
    assert rule["ports"] == [{"port": port} for port in (8333, 9324, 443, 3128)]


def test_further_variables_stand_behind_those_of_secrets(rendered):
    further = [{"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}}]
    resources = rendered("--set-json", f"env={json.dumps(further)}")
    check_release(resources)
    for deployment in deployments(resources).values():
        env = container_of(deployment)["env"]
        assert env[0]["name"] == "VEIL_REDIS_PASSWORD"
        assert env[-1:] == further


def test_a_target_of_notifications_has_its_key_in_all_pods(rendered):
    key = {"variable": "VEIL_NOTIFY_KEY", "secret": "veil", "key": "notify-key"}
    notify = "settings.VEIL_NOTIFY=https://orders.internal/veil"
    resources = rendered("--set-json", f"secrets.all=[{json.dumps(key)}]", *with_values(notify))
    for deployment in deployments(resources).values():
        assert "VEIL_NOTIFY_KEY" in environment_of(deployment)


def test_the_notes_name_what_nobody_can_reach(helm):
    command = ("install", "veil", str(CHART), "--dry-run=client", "--namespace", "veil")
    command += ROUTES
    webhook = "triggers.webhook.enabled=true"
    events = "networkPolicy.ingress.events[0].podSelector.matchLabels.app=store"
    warned = helm(*command, *with_values(webhook))
    assert "NOBODY can reach the webhook" in warned.stdout, warned.stderr
    assert "NOBODY" not in helm(*command, *with_values(webhook, events)).stdout


def test_the_notes_say_that_nothing_finds_uploads_and_that_an_ingress_has_no_tls(helm):
    command = ("install", "veil", str(CHART), "--dry-run=client", *ROUTES)
    notes = helm(*command).stdout
    assert "Nothing finds uploads yet" in notes
    assert "WITHOUT TLS" not in notes
    notes = helm(*command, *with_values(*VALUES["ingress"][0])).stdout
    assert "Nothing finds uploads yet" not in notes
    assert "triggers.webhook.ingress.tlsSecret" in notes
    tls = "triggers.webhook.ingress.tlsSecret=tls"
    assert "WITHOUT TLS" not in helm(*command, *with_values(*VALUES["ingress"][0], tls)).stdout


def test_triggers_may_keep_the_routes_before_a_change(rendered):
    before = "triggers.settings.VEIL_ROUTES=s3://old=s3://b"
    values = ["triggers.webhook.enabled=true", "triggers.poll.enabled=true", before]
    resources = rendered(*with_values(*values))
    assert resources["ConfigMap", "veil"]["data"]["VEIL_ROUTES"] == "s3://a=s3://b"
    for name, deployment in deployments(resources).items():
        env = container_of(deployment)["env"]
        kept = {"name": "VEIL_ROUTES", "value": "s3://old=s3://b"} in env
        assert kept == (name in PRODUCERS)


def test_a_routes_file_may_come_from_a_volume_and_a_secret_of_a_variable_from_another(rendered):
    values = {
        "settings.VEIL_ROUTES": "",
        "settings.VEIL_ROUTES_FILE": "/routes/a.toml",
        "worker": {
            "volumes": [{"name": "routes", "configMap": {"name": "mine"}}],
            "volumeMounts": [{"name": "routes", "mountPath": "/routes"}],
        },
        "env": [{"name": "HTTPS_PROXY", "value": "http://a:$(PROXY_PASSWORD)@c"}],
    }
    arguments = [f"{name}={json.dumps(value)}" for name, value in values.items()]
    check_release(rendered("--set-json", ",".join(arguments)))


def test_a_certificate_of_redis_may_come_from_a_file_or_a_volume(rendered):
    url = (
        'settings.VEIL_REDIS_URL="rediss://a/0?ssl_ca_certs=/etc/veil/a.pem&ssl_cert_reqs=required"'
    )
    mount = 'worker.volumeMounts=[{"name":"a","mountPath":"/etc/veil"}]'
    volume = 'worker.volumes=[{"name":"a","secret":{"secretName":"a"}}]'
    check_release(rendered("--set-json", url, "--set-json", 'files={"a.pem":"a"}'))
    check_release(rendered("--set-json", url, "--set-json", mount, "--set-json", volume))


@pytest.mark.parametrize(
    "memory", ["1G", "1000M", "1.5Gi", "12Gi", "2048Mi", "1048576Ki", 10**9, None]
)
def test_a_worker_may_have_any_limit_of_memory_that_suffices_or_none(rendered, memory):
    value = f"worker.resources.limits.memory={json.dumps(memory)}"
    limits = container_of(rendered("--set-json", value)["Deployment", "veil-worker"])["resources"][
        "limits"
    ]
    assert limits.get("memory") == memory


def test_the_minimum_of_the_chart_is_that_of_workers():
    assert processors.MINIMUM_MEMORY == 10**9  # 1G in docker/helm/veil/templates/worker.yaml


def test_flower_answers_below_the_path_of_its_ingress(rendered):
    path = "flower.ingress.path=/flower"
    values = ["flower.enabled=true", "flower.ingress.enabled=true", "flower.ingress.host=internal"]
    container = container_of(rendered(*with_values(*values, path))["Deployment", "veil-flower"])
    assert "--url_prefix=flower" in container["command"]
    probes = [container[name] for name in ("startupProbe", "livenessProbe", "readinessProbe")]
    assert {probe["httpGet"]["path"] for probe in probes} == {"/flower/healthcheck"}
    container = container_of(rendered(*with_values(*values))["Deployment", "veil-flower"])
    assert "url_prefix" not in " ".join(container["command"])
    assert container["startupProbe"]["httpGet"]["path"] == "/healthcheck"


def test_the_desk_has_the_rights_of_workers_a_password_and_the_address_of_its_ingress(rendered):
    values, _ = VALUES["review"]
    ingress = "networkPolicy.ingress.review[0].podSelector.matchLabels.app=ingress"
    resources = rendered(*with_values(*values, ingress))
    desk, worker = (resources["Deployment", name] for name in ("veil-review", "veil-worker"))
    env = {one["name"]: one.get("value") for one in container_of(desk)["env"]}
    assert env.keys() == environment_of(worker) | {"VEIL_REVIEW_PASSWORD", "VEIL_REVIEW_URL"}
    assert env["VEIL_REVIEW_URL"] == "https://review.internal"
    assert container_of(desk)["image"] == container_of(worker)["image"]
    policies = {name: one for (kind, name), one in resources.items() if kind == "NetworkPolicy"}
    applied = {name for name, one in policies.items() if select(one, labels_of(desk))}
    assert applied == {"veil-default-deny", "veil-queue", "veil-store", "veil-review"}
    (rule,) = policies["veil-review"]["spec"]["ingress"]
    assert rule["ports"] == [{"port": "http"}]


def test_the_command_of_the_desk_is_one_that_veil_takes(rendered):
    values, _ = VALUES["review"]
    container = container_of(rendered(*with_values(*values))["Deployment", "veil-review"])
    (url,) = (one["value"] for one in container["env"] if one["name"] == "VEIL_REVIEW_URL")
    *command, flag, address = container["command"]
    assert (command, flag) == (["veil", "review", "serve"], "--http")
    host, port = split_address(address)
    serving.check(WorkerSettings(review_url=url), serving.Options(host, port, [], False, None, []))


def test_the_probes_of_the_desk_ask_the_path_that_answers_any_host(rendered):
    values, _ = VALUES["review"]
    container = container_of(rendered(*with_values(*values))["Deployment", "veil-review"])
    for name in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[name]["httpGet"] == {"path": "/healthz", "port": "http"}


def test_nobody_reaches_flower_unless_named_and_its_ingress_is_off(rendered):
    resources = rendered(*with_values("flower.enabled=true"))
    flower = resources["Deployment", "veil-flower"]
    assert "FLOWER_BASIC_AUTH" in environment_of(flower)
    assert not any(kind == "Ingress" for kind, _ in resources)
    applied = [
        one["spec"]
        for (kind, _), one in resources.items()
        if kind == "NetworkPolicy" and select(one, labels_of(flower))
    ]
    assert {"policyTypes": ["Ingress", "Egress"]}.items() <= applied[0].items()
    assert not any("ingress" in spec for spec in applied)


def test_the_pod_monitor_finds_the_pods_and_names_the_jobs_of_the_alerts(rendered):
    values, _ = VALUES["producers"]
    values = [value for value in values if value != "worker.enabled=false"]
    resources = rendered(*with_values("monitoring.podMonitor.enabled=true", *values))
    monitor = resources["PodMonitor", "veil"]["spec"]
    (endpoint,) = monitor["podMetricsEndpoints"]
    jobs = {rule["regex"]: rule["replacement"] for rule in endpoint["relabelings"]}
    assert deployments(resources).keys() == {"veil-worker", *PRODUCERS}
    for name, deployment in deployments(resources).items():
        labels = labels_of(deployment)
        assert monitor["selector"]["matchLabels"].items() <= labels.items()
        ports = {port["name"] for port in container_of(deployment)["ports"]}
        assert endpoint["port"] in ports
        component = labels["app.kubernetes.io/component"]
        (job,) = [job for pattern, job in jobs.items() if re.fullmatch(pattern, component)]
        assert job == ("veil-worker" if name == "veil-worker" else "veil-trigger")


def test_the_rules_are_those_of_the_file_with_the_labels_that_the_operator_selects(rendered):
    rules = "monitoring.rules.enabled=true"
    resource = rendered(*with_values(rules, "monitoring.rules.labels.release=prometheus"))[
        "PrometheusRule", "veil"
    ]
    assert resource["spec"] == yaml.safe_load((CHART / "alerts.yml").read_text())
    assert resource["metadata"]["labels"]["release"] == "prometheus"
    assert not any(kind == "PrometheusRule" for kind, _ in rendered())


def test_files_are_mounted_for_all_pods_and_a_change_restarts_them(rendered):
    first = rendered(*with_values("files.routes=a"))
    second = rendered(*with_values("files.routes=b"))
    assert first["ConfigMap", "veil-files"]["data"] == {"routes": "a"}
    for name, deployment in deployments(first).items():
        mounts = {one["name"]: one for one in container_of(deployment)["volumeMounts"]}
        assert mounts["files"] == {"name": "files", "mountPath": "/etc/veil", "readOnly": True}
        assert deployment["spec"]["template"] != second["Deployment", name]["spec"]["template"]


def test_two_releases_in_a_namespace_share_nothing(rendered):
    values = with_values("triggers.webhook.enabled=true", "flower.enabled=true")
    first, second = rendered(*values, release="one"), rendered(*values, release="two")
    assert not first.keys() & second.keys()
    assert ("Deployment", "one-veil-worker") in first
    for deployment in deployments(first).values():
        for (kind, _), other in second.items():
            if kind == "NetworkPolicy":
                assert not select(other, labels_of(deployment))
            if kind == "Service":
                assert not other["spec"]["selector"].items() <= labels_of(deployment).items()
