"""The report on an address comes with the route of its picture."""

import pytest

from worker.route_reports import RouteReports
from worker.settings import WorkerSettings


@pytest.fixture
def settings(monkeypatch):
    monkeypatch.setenv("VEIL_ROUTES", "s3://raw/a=s3://clean/a,s3://raw/b=s3://clean/b")
    return WorkerSettings.load()


def test_an_address_has_the_report_and_the_route_of_its_picture(settings):
    reports = RouteReports(settings, lambda name: f"recipe of {name}")
    report, route = reports.of_address("s3://raw/b/1.jpg")
    assert (report.output, report.refusal) == ("s3://clean/b/1.jpg", None)
    assert report.recipe == "recipe of None"
    assert route == settings.parsed_routes().routes[1]


def test_reports_have_the_priority_of_the_route_if_there_are_any(settings, tmp_path, monkeypatch):
    reports = RouteReports(settings, lambda _: None)
    assert reports.of_address("s3://raw/b/1.jpg")[0].priority is None
    path = tmp_path / "routes.toml"
    path.write_text(
        '[routes.b]\nsource = "s3://raw/b"\ndestination = "s3://clean"\npriority = "low"\n'
    )
    monkeypatch.delenv("VEIL_ROUTES")
    monkeypatch.setenv("VEIL_ROUTES_FILE", str(path))
    reports = RouteReports(WorkerSettings.load(), lambda _: None)
    report, route = reports.of_address("s3://raw/b/1.jpg")
    assert (report.priority, reports.of_route(route).priority) == ("low", "low")


@pytest.mark.parametrize(
    ("address", "error"), [("s3://raw/c/1.jpg", "BucketNotAllowed"), ("b/1.jpg", "InvalidRequest")]
)
def test_an_address_that_workers_refuse_has_no_route(settings, address, error):
    report, route = RouteReports(settings, lambda _: None).of_address(address)
    assert route is None
    assert report.refusal.startswith(f"{error}: ")
