"""``veil preview``: the route that decides its settings, and its words at an interruption."""

import pytest
from typer.testing import CliRunner

from worker import cli
from worker.commands import preview
from worker.preview import trial


@pytest.mark.parametrize(
    ("place", "note"),
    [
        ("s3://new/2026", "no route of VEIL_ROUTES leads from s3://new/2026/: the settings are"),
        ("s3://clean/a", "s3://clean/a/ has the outputs of the route s3://raw/=s3://clean/: these"),
    ],
)
def test_a_place_without_a_route_is_said_to_have_none(monkeypatch, capsys, place, note):
    monkeypatch.setenv("VEIL_ROUTES", "s3://raw=s3://clean")
    assert preview._route(place, [".jpg"]) == (None, [".jpg"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"veil: {note}")


def test_ctrl_c_says_what_was_done(monkeypatch, tmp_path):
    def interrupted(_variants, _pictures, _shows_originals, on_done):
        on_done()
        raise KeyboardInterrupt

    (tmp_path / "a.jpg").write_bytes(b"never read")
    monkeypatch.setattr(trial, "run", interrupted)
    sheet = tmp_path / "sheet.html"
    done = CliRunner().invoke(cli.app, ["preview", str(tmp_path), "-o", str(sheet)])
    assert done.stderr.splitlines()[:2] == [
        "veil: interrupted; what was done until then:",
        "1 anonymized in memory, no result: it is made at the end",
    ]
    assert not sheet.exists()
