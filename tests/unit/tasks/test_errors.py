"""The tree of errors: as documented, and unchanged by pickle and by Celery's result backend."""

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
    """Yield the name and the parent of each line of the tree in the module's docstring."""
    tree = re.findall(r"^( *)([A-Z]\w+)$", errors.__doc__.split("\n\n")[1], re.MULTILINE)
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


class Panic(BaseException):
    """An error that is no Exception, as libraries in Rust raise it."""


class Nameless(Exception):
    """An error of a library whose description fails."""

    def __str__(self):
        raise LookupError("no description")


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (ZeroDivisionError("division by zero"), ZeroDivisionError, "division by zero"),
        (KeyError(b"\x80pixels"), KeyError, "'(data)'"),
        (ValueError(f"bad chunk {b'pixels' * 9!r} at 9"), ValueError, "bad chunk (data) at 9"),
        (ValueError('bad chunk b"it\'s \\"pixels'), ValueError, "bad chunk (data)"),
        (OSError(28, "No space left on device"), OSError, "[Errno 28] No space left on device"),
        (
            ValueError("array [[12 255 3] [4 5 6]\n [7 8 250] [1 2 3]]"),
            ValueError,
            "array (data)3]]",
        ),
        (
            ValueError("shapes (3, 640, 480), (1,) differ"),
            ValueError,
            "shapes (3, 640, 480), (1,) differ",
        ),
        (
            UnicodeDecodeError("utf-8", b"\xffpixels", 0, 1, "invalid start byte"),
            RuntimeError,
            "UnicodeDecodeError: 'utf-8' codec can't decode byte 0xff in position 0: "
            "invalid start byte",
        ),
        (ValueError("x" * 100_000), ValueError, "x" * errors.MAX_UNEXPECTED_MESSAGE),
        (Panic("index out of bounds"), RuntimeError, "Panic: index out of bounds"),
        (Nameless(), RuntimeError, "Nameless: "),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_unexpected_error_is_reported_without_the_picture(error, kind, text):
    def fail():
        raise error

    with pytest.raises(type(error)) as raised:
        fail()
    clean = errors.without_data(raised.value)
    assert type(clean) is kind
    assert str(clean) == text
    assert "pixels" not in repr(clean) + str(clean.args)
    assert clean.__traceback__ is raised.value.__traceback__
    assert clean.__cause__ is clean.__context__ is None
