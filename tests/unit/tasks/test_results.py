"""Errors of workers as producers raise them: instances of the producer's classes."""

import sys

import pytest

from tasks import errors, results
from tasks.app import create_app
from tasks.settings import Settings


@pytest.fixture(scope="module")
def backend(clean_environment):
    return create_app(Settings()).backend


def stored(module, name="UnreadableImage"):
    return {"exc_type": name, "exc_message": ["it is damaged"], "exc_module": module}


def test_producers_read_results_with_the_backend_that_knows_both_names(backend):
    assert isinstance(backend, results.ProducerBackend)
    error = backend.exception_to_python(stored("tasks.errors"))
    assert type(error) is errors.UnreadableImage
    assert str(error) == "it is damaged"


def test_an_error_of_a_worker_is_found_under_the_second_name(backend, monkeypatch):
    monkeypatch.setattr(results, "__package__", "veil.tasks")
    monkeypatch.setitem(sys.modules, "veil.tasks.errors", errors)
    content = stored("tasks.errors")
    assert type(backend.exception_to_python(content)) is errors.UnreadableImage
    assert content == stored("tasks.errors")


@pytest.mark.parametrize(
    ("name", "local"),
    [
        ("tasks.errors", "veil.tasks.errors"),
        ("tasks.storage.s3", "veil.tasks.storage.s3"),
        ("tasks", "tasks"),
        ("tasksome.errors", "tasksome.errors"),
        ("builtins", "builtins"),
        ("veil.tasks.errors", "veil.tasks.errors"),
    ],
)
def test_only_modules_of_the_workers_package_are_renamed(monkeypatch, name, local):
    monkeypatch.setattr(results, "__package__", "veil.tasks")
    assert results.local_module(name) == local


@pytest.mark.parametrize("module", [None, "builtins", "celery.exceptions"])
def test_other_errors_are_those_of_celery(backend, module):
    error = backend.exception_to_python(stored(module, "RuntimeError"))
    assert type(error).__name__ == "RuntimeError"
