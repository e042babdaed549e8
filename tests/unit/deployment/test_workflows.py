"""The files for the hosted repository: workflows, hooks and templates agree with the project."""

import json
import re
import tomllib

import pytest
import yaml

PINNED = re.compile(r"[\w.-]+/[\w.-]+(?:/[\w.-]+)*@[0-9a-f]{40} # v\d+\.\d+\.\d+")
MAKE = re.compile(r"\bmake ([a-z-]+)")


@pytest.fixture(scope="module")
def project(repository):
    return tomllib.loads((repository / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def texts(repository):
    found = {
        path.stem: path.read_text() for path in (repository / ".github" / "workflows").glob("*.yml")
    }
    assert set(found) == {"check", "docs", "images", "release", "test"}
    return found


@pytest.fixture(scope="module")
def workflows(texts):
    return {name: yaml.safe_load(text) for name, text in texts.items()}


def steps(workflow):
    for job in workflow["jobs"].values():
        yield from job.get("steps", ())


def test_every_action_is_pinned_by_its_commit(texts):
    for text in texts.values():
        for used in re.findall(r"uses: (.*)", text):
            assert used.startswith("./.github/workflows/") or PINNED.fullmatch(used), used


def test_an_action_has_one_version_in_all_workflows(texts):
    used = set(re.findall(r"uses: ([\w/.-]+@.*)", "\n".join(texts.values())))
    assert len(used) == len({pin.split("@")[0] for pin in used})


def test_workflows_may_only_read_and_a_job_adds_what_it_needs(workflows):
    for name, workflow in workflows.items():
        assert workflow["permissions"] == {"contents": "read"}
        for job in workflow["jobs"].values():
            added = {
                scope for scope, access in job.get("permissions", {}).items() if access == "write"
            }
            assert not added or name == "release"
            assert "contents" not in added or not any(
                step.get("uses", "").startswith("actions/checkout@") for step in job["steps"]
            )
            assert "uses" in job or job["timeout-minutes"] <= 90


def test_no_checkout_leaves_a_token_behind(workflows):
    for workflow in workflows.values():
        for step in steps(workflow):
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False


def test_a_release_is_checked_and_tested_first_and_restores_no_cache(workflows):
    jobs = workflows["release"]["jobs"]
    assert set(jobs["distributions"]["needs"]) == {"check", "test"}
    assert jobs["architectures"]["needs"] == "distributions"
    assert jobs["images"]["needs"] == "architectures"
    assert jobs["chart"]["needs"] == "images"
    assert set(jobs["publish"]["needs"]) == {"distributions", "images", "chart"}
    for step in steps(workflows["release"]):
        assert not {"cache", "cache-from"} & set(step.get("with", ()))
        assert not step.get("uses", "").startswith("actions/cache")


def test_workflows_and_hooks_run_targets_that_exist(repository, workflows):
    targets = set(re.findall(r"^([a-z-]+):", (repository / "Makefile").read_text(), re.MULTILINE))
    run = {
        name
        for workflow in workflows.values()
        for step in steps(workflow)
        for name in MAKE.findall(step.get("run", ""))
    }
    assert run >= {"check", "docs", "test", "distributions", "helm"}
    assert run <= targets


def test_the_tests_run_on_every_supported_python(project, workflows):
    lowest, beyond = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", project["requires-python"]).groups()
    supported = [f"3.{minor}" for minor in range(int(lowest), int(beyond))]
    assert workflows["test"]["jobs"]["test"]["strategy"]["matrix"]["python"] == supported


@pytest.mark.parametrize(
    ("workflow", "job"), [("images", "build"), ("release", "architectures"), ("release", "images")]
)
def test_every_image_of_the_dockerfile_is_built(repository, workflows, workflow, job):
    dockerfile = (repository / "docker" / "Dockerfile").read_text()
    stages = re.split(r"^FROM ", dockerfile, flags=re.MULTILINE)[1:]
    images = [stage.split()[2] for stage in stages if re.search(r"^CMD ", stage, re.MULTILINE)]
    assert workflows[workflow]["jobs"][job]["strategy"]["matrix"]["target"] == images


@pytest.mark.parametrize(("workflow", "job"), [("images", "build"), ("release", "architectures")])
def test_images_have_the_extras_that_a_setting_alone_turns_on(workflows, project, workflow, job):
    used = workflows[workflow]["jobs"][job]["steps"]
    (build,) = (one["with"] for one in used if "build-push-action" in one.get("uses", ""))
    assert build["build-args"] == "EXTRAS=otel sentry"
    assert {"otel", "sentry"} <= project["optional-dependencies"].keys()


@pytest.mark.parametrize(("workflow", "job"), [("images", "build"), ("release", "architectures")])
def test_images_are_for_both_architectures_but_for_gpus(workflows, workflow, job):
    matrix = workflows[workflow]["jobs"][job]["strategy"]["matrix"]
    assert matrix["architecture"] == ["amd64", "arm64"]
    assert matrix["exclude"] == [{"target": "worker-gpu", "architecture": "arm64"}]


def test_the_manifests_name_the_images_of_the_release_by_the_version_of_the_project(
    repository, project
):
    for file, target in (("worker", "worker"), ("triggers", "flower")):
        text = (repository / "docker" / "kubernetes" / f"{file}.yaml").read_text()
        assert f"image: registry.internal/veil/{target}:{project['version']}\n" in text


def test_the_chart_has_the_version_of_the_project(repository, project):
    chart = yaml.safe_load((repository / "docker" / "helm" / "veil" / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == project["version"]


def test_the_security_policy_supports_the_current_version(repository, project):
    minor = ".".join(project["version"].split(".")[:2])
    assert f"| {minor} | yes |" in (repository / "SECURITY.md").read_text()


def test_the_hooks_run_the_tools_that_check_runs(repository):
    (group,) = yaml.safe_load((repository / ".pre-commit-config.yaml").read_text())["repos"]
    assert group["repo"] == "local"
    assert {hook["id"] for hook in group["hooks"]} == {"ruff-check", "ruff-format", "mypy"}
    assert all(hook["language"] == "system" for hook in group["hooks"])


def test_the_templates_and_renovate_can_be_read(repository):
    json.loads((repository / "renovate.json").read_text())
    for path in (repository / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        template = yaml.safe_load(path.read_text())
        assert path.stem == "config" or all(
            part["type"] in ("markdown", "input", "textarea") for part in template["body"]
        )
