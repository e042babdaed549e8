"""The files of compose's profile `monitoring`: alert rules, dashboard and configuration."""

import inspect
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tasks.telemetry import metrics
from tools.local.servers import FLOWER_COLUMNS
from worker.metrics import WORKER

TRIGGERS = ("trigger", "catch-up")  # the services that find uploads


@pytest.fixture(scope="module")
def docker(repository):
    return repository / "docker"


@pytest.fixture(scope="module")
def alerts(docker):
    """The file of the alert rules, of containers and of the chart."""
    return docker / "helm" / "veil" / "alerts.yml"


@pytest.fixture(scope="module")
def rules(alerts):
    (group,) = yaml.safe_load(alerts.read_text())["groups"]
    return group["rules"]


@pytest.fixture(scope="module")
def compose(repository):
    return yaml.safe_load((repository / "docker-compose.yml").read_text())


@pytest.fixture(scope="module")
def dashboard(docker):
    return json.loads((docker / "grafana" / "veil.json").read_text())


def panels(dashboard):
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def run(*command, cwd):
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=120, cwd=cwd
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_prometheus_takes_its_configuration_and_its_rules_also_outside_of_the_container(
    compose, repository, docker, system_program, tmp_path
):
    for mount in compose["services"]["prometheus"]["volumes"]:
        source, target, *_ = mount.split(":")
        if target.startswith("/etc/prometheus/"):
            copy = tmp_path / Path(target).relative_to("/etc/prometheus")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(repository / source, copy)
    for folder in (tmp_path, docker):
        shown = run(system_program("promtool"), "check", "config", "prometheus.yml", cwd=folder)
        assert "19 rules found" in shown


def test_each_alert_has_a_test_in_which_it_fires_and_one_in_which_it_does_not(docker, rules):
    tested = yaml.safe_load((docker / "alerts.test.yml").read_text())["tests"]
    cases = [case for test in tested for case in test["alert_rule_test"]]
    for rule in rules:
        mine = [bool(case["exp_alerts"]) for case in cases if case["alertname"] == rule["alert"]]
        assert set(mine) == {True, False}, rule["alert"]


def test_prometheus_takes_the_configuration_of_the_page(
    repository, alerts, system_program, tmp_path
):
    shutil.copy(alerts, tmp_path)
    page = (repository / "docs" / "monitoring.md").read_text()
    (example,) = re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "prometheus.yml").write_text(example)
    run(system_program("promtool"), "check", "config", "prometheus.yml", cwd=tmp_path)


def test_the_documentation_names_every_alert(rules, repository):
    page = (repository / "docs" / "monitoring.md").read_text()
    assert re.findall(r"^\| `(Veil\w+)` \|", page, re.MULTILINE) == [
        rule["alert"] for rule in rules
    ]


def test_each_alert_says_what_it_is_and_what_to_do(rules):
    for rule in rules:
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert set(rule["annotations"]) == {"summary", "description"}


def test_every_query_of_the_dashboard_is_one(dashboard, docker, system_program, tmp_path):
    queries = [target["expr"] for panel in panels(dashboard) for target in panel["targets"]]
    assert len(queries) > 20
    rules = [
        {"record": f"query:{number}", "expr": query.replace("$__rate_interval", "1m")}
        for number, query in enumerate(queries)
    ]
    path = tmp_path / "queries.yml"
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    run(system_program("promtool"), "check", "rules", str(path), cwd=tmp_path)


def test_every_panel_asks_the_provisioned_prometheus_and_has_a_place_of_its_own(dashboard, docker):
    (source,) = yaml.safe_load((docker / "grafana" / "datasource.yml").read_text())["datasources"]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    taken = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }
        assert not cells & taken, panel["title"]
        assert all(x < 24 for x, _ in cells), panel["title"]
        taken |= cells
    # In another Grafana, the variable selects its own Prometheus.
    (variable,) = dashboard["templating"]["list"]
    assert (variable["type"], variable["query"]) == ("datasource", "prometheus")
    assert variable["current"]["value"] == source["uid"]
    uid = f"${{{variable['name']}}}"
    for panel in panels(dashboard):
        assert panel["datasource"]["uid"] == uid
        assert all(target["datasource"]["uid"] == uid for target in panel["targets"])


def test_the_dashboard_does_not_depend_on_the_names_of_jobs_except_that_of_the_trigger(dashboard):
    selectors = [
        selector
        for panel in panels(dashboard)
        for target in panel["targets"]
        for selector in re.findall(r'job="[^"]*"', target["expr"])
    ]
    assert selectors == ['job="veil-trigger"']


def test_each_metric_of_queues_is_on_the_dashboard(dashboard, docker):
    text = json.dumps([panel["targets"] for panel in panels(dashboard)])
    for name in ("messages", "oldest_seconds", "up"):
        assert f"veil_queue_{name}" in text
    for name in ("stray_messages", "in_flight_messages", "dead_letters", "review_pictures"):
        assert f"veil_{name}" in text


def served_families():
    return [*WORKER.collect(), *metrics.TRIGGER.collect()]


def test_the_documentation_names_every_metric(dashboard, repository):
    page = (repository / "docs" / "monitoring.md").read_text()
    served = {family.name for family in served_families() if family.name.startswith("veil_")}
    for name in sorted(served):
        assert re.search(rf"`{name}(_total|_info)?[`{{]", page), name
    queries = json.dumps([panel["targets"] for panel in panels(dashboard)])
    for name in set(re.findall(r"veil_[a-z_]+", queries)):
        assert re.search(rf"`{re.sub('_(bucket|sum|count)$', '', name)}[`{{]", page), name


def test_alerts_and_panels_ask_for_samples_that_are_served_and_take_rates_of_counters_alone(
    dashboard, rules
):
    source = inspect.getsource(metrics)
    gauges = set(re.findall(r'GaugeMetricFamily\(\s*"(veil_\w+)"', source))
    assert "veil_queue_up" in gauges
    counters = set()
    for family in served_families():
        if family.type == "counter":
            counters.add(f"{family.name}_total")
        elif family.type == "histogram":
            counters |= {f"{family.name}_{part}" for part in ("bucket", "sum", "count")}
        else:
            gauges.add(f"{family.name}_info" if family.type == "info" else family.name)
    queries = [target["expr"] for panel in panels(dashboard) for target in panel["targets"]]
    queries += [rule["expr"] for rule in rules]
    for query in queries:
        asked = set(re.findall(r"\b(?:veil|process)_\w+", query))
        assert asked <= counters | gauges, query
        rates = set(re.findall(r"\b(?:rate|increase)\((\w+)", query))
        assert rates == asked & counters, query
        assert "histogram_quantile" not in query or "by (le" in query, query


def test_mounted_files_exist(compose, repository):
    mounts = [
        mount.split(":")
        for service in compose["services"].values()
        for mount in service.get("volumes", ())
        if mount.startswith("./")
    ]
    assert len(mounts) >= 5
    for source, _, mode in mounts:
        assert (repository / source).is_file()
        assert mode == "ro"


def test_nothing_is_published_but_on_this_machine_and_never_prometheus(compose):
    published = {
        name: service["ports"]
        for name, service in compose["services"].items()
        if "ports" in service
    }
    assert {"s3", "flower", "grafana"} <= set(published)
    assert "prometheus" not in published
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)


def test_prometheus_and_grafana_are_as_confined_as_the_rest(compose):
    for name in ("prometheus", "grafana"):
        service = compose["services"][name]
        assert service["profiles"] == ["monitoring"]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert not {"queue", "store"} & set(service["networks"])
    networks = compose["networks"]
    assert all(networks[name]["internal"] for name in compose["services"]["prometheus"]["networks"])


def test_grafana_has_a_password_that_was_made_for_it_and_lets_nobody_else_in(compose, repository):
    environment = compose["services"]["grafana"]["environment"]
    assert environment["GF_SECURITY_ADMIN_PASSWORD"].startswith("${GRAFANA_PASSWORD:?")
    assert environment["GF_AUTH_ANONYMOUS_ENABLED"] == "false"
    assert environment["GF_USERS_ALLOW_SIGN_UP"] == "false"
    assert re.search(
        r"^GRAFANA_PASSWORD=$", (repository / ".env.example").read_text(), re.MULTILINE
    )


def test_workers_are_told_no_password_that_is_not_theirs(compose, repository):
    names = re.findall(
        r"^(\w+_PASSWORD)=$", (repository / ".env.example").read_text(), re.MULTILINE
    )
    environment = compose["services"]["worker"]["environment"]
    assert {name: environment[name] for name in names if not name.startswith("VEIL_")} == {
        "FLOWER_PASSWORD": "",
        "GRAFANA_PASSWORD": "",
    }


def test_prometheus_looks_for_workers_where_they_serve(compose, docker):
    worker, trigger = yaml.safe_load((docker / "prometheus.yml").read_text())["scrape_configs"]
    (found,) = worker["dns_sd_configs"]
    for name in found["names"]:
        service = compose["services"][name]
        assert service["environment"]["VEIL_METRICS"] == f"0.0.0.0:{found['port']}"
        assert "metrics" in service["networks"]
    (triggers,) = trigger["static_configs"]
    assert triggers == {"targets": [f"{name}:{found['port']}" for name in TRIGGERS]}
    for name in TRIGGERS:
        service = compose["services"][name]
        assert service["environment"]["VEIL_METRICS"] == f"0.0.0.0:{found['port']}"
        assert "metrics" in service["networks"]


def test_every_trigger_is_one_that_prometheus_scrapes_and_has_a_health_check(compose, docker):
    watching = {
        name
        for name, service in compose["services"].items()
        if service.get("command", [])[:2] == ["veil", "watch"]
    }
    assert watching == set(TRIGGERS)
    overlay = yaml.safe_load((docker / "amazon-s3.yml").read_text())["services"]
    for name in TRIGGERS:
        assert "test" in compose["services"][name]["healthcheck"]
        assert "disable" not in overlay[name].get("healthcheck", {})


def test_no_service_may_dump_its_memory(compose):
    assert {
        name
        for name, service in compose["services"].items()
        if service.get("ulimits") != {"core": 0}
    } == set()


def test_flower_has_the_same_columns_everywhere_and_the_link_to_the_task_first(compose, repository):
    shown = compose["services"]["flower"]["environment"]["FLOWER_TASKS_COLUMNS"]
    assert shown == FLOWER_COLUMNS
    assert f"FLOWER_TASKS_COLUMNS={shown}" in (repository / "docs" / "monitoring.md").read_text()
    assert shown.split(",")[:2] == ["uuid", "args"]
