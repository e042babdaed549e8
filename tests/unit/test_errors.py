"""The tree of errors: as documented, and intact after a pickle and after Celery's result backend."""

import inspect
import json
import pickle
import re

import pytest
from celery import Celery
from celery.backends.base import Backend
from celery.utils.serialization import get_pickleable_exception
from hypothesis import given
from hypothesis import strategies as st

from tasks import errors
from tasks.errors import Permanent, StorageUnavailable, Transient, VeilError

CLASSES = [cls for _, cls in inspect.getmembers(errors, inspect.isclass)]
MESSAGE = "s3://raw/Grüße 🙂.jpg: 12 × 10 pixels, 'quoted' and \\ back"


@pytest.fixture(scope="module")
def backend():
    app = Celery("errors", set_as_current=False)
    yield Backend(app=app, serializer="json")
    app.close()


def documented():
    """(name, parent) for each line of the tree in the module's docstring."""
    tree = re.findall(r"^( *)([A-Z]\w+)(?: {2,}|$)", errors.__doc__.split("\n\n")[1], re.MULTILINE)
    above = []
    for indent, name in tree:
        del above[len(indent) // 2 - 2 :]
        yield name, above[-1] if above else "Exception"
        above.append(name)


def test_the_documented_tree_is_the_tree_of_classes():
    assert dict(documented()) == {cls.__name__: cls.__base__.__name__ for cls in CLASSES}


def test_every_error_says_who_must_act():
    for cls in CLASSES:
        if cls is not VeilError:
            assert issubclass(cls, Transient) is not issubclass(cls, Permanent)
        assert cls.__doc__.endswith(".")


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_an_error_survives_a_pickle_with_its_message(cls):
    for error in (pickle.loads(pickle.dumps(cls(MESSAGE))), get_pickleable_exception(cls(MESSAGE))):
        assert type(error) is cls
        assert str(error) == MESSAGE


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_an_error_survives_celerys_json_with_its_message(cls, backend):
    stored = json.loads(json.dumps(backend.prepare_exception(cls(MESSAGE))))
    error = backend.exception_to_python(stored)
    assert type(error) is cls
    assert str(error) == MESSAGE
    assert cls is VeilError or isinstance(error, Transient | Permanent)


@given(st.text())
def test_a_message_is_one_line(text):
    message = str(StorageUnavailable(f"before{text}after"))
    assert len(message.splitlines()) == 1
    assert message.startswith("before")
    assert message.endswith("after")


def test_an_error_without_a_message_is_empty():
    assert str(VeilError()) == ""
