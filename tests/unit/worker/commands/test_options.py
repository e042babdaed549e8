"""Shared options: what flags ask of a picture, and which combinations are refused."""

import pytest
import typer
from typer.testing import CliRunner

from tasks.errors import InvalidRequest
from tasks.messages import AnonymizeOptions
from worker.commands.command import CommandApp
from worker.commands.options import Queue, anonymize_options, require_confirmation


def test_flags_that_are_not_given_leave_everything_to_the_settings():
    assert anonymize_options(None, None, None, None) == AnonymizeOptions()


@pytest.mark.parametrize(("region", "share"), [("top", 0.7), ("full", 1), ("0.8", 0.8), ("1", 1)])
def test_flags_replace_settings(region, share):
    request = anonymize_options("fill", region, ["1,2,3,4"], ["5,6,7,8", "0,0,9,9"])
    assert (request.method, request.region) == ("fill", share)
    assert request.exempt == ((1, 2, 3, 4),)
    assert request.extra == ((5, 6, 7, 8), (0, 0, 9, 9))


@pytest.mark.parametrize("area", ["1,2,3", "a,b,c,d", "3,4,1,2", "1.5,2,3,4", ""])
def test_an_area_that_is_none_is_refused(area):
    with pytest.raises(InvalidRequest, match="extra"):
        anonymize_options(None, None, None, [area])


def test_everything_must_be_confirmed():
    require_confirmation(everything=True, confirmed=True)
    require_confirmation(everything=False, confirmed=False)
    with pytest.raises(typer.BadParameter, match="--yes"):
        require_confirmation(everything=True, confirmed=False)


@pytest.mark.parametrize(("name", "code"), [("uploads", 0), ("backfill", 0), ("express", 2)])
def test_a_queue_that_no_worker_serves_is_refused(name, code):
    app = CommandApp()

    @app.command()
    def example(queue: Queue = "uploads") -> None:
        print(queue)

    done = CliRunner().invoke(app, ["--queue", name])
    assert done.exit_code == code
    assert ("choose from uploads, backfill" in " ".join(done.output.split())) == (code == 2)
