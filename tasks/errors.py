"""Errors, named for what happened and grouped by who must act.

    VeilError
      Transient
        StorageUnavailable
        CredentialsRefused
        DestinationUnavailable
        SourceChanged
        Busy
        DetectorUnavailable
        PictureProcessLost
        QueueUnavailable
        EventsUnavailable
        AddressInUse
      Permanent
        InvalidRequest
        OptionsUnusable
        MalformedMessage
        MalformedEvent
        BucketNotAllowed
        ObjectNotFound
        AccessDenied
        StorageRejected
        RunTakenOver
        DestinationTaken
        EmptyObject
        UnreadableImage
        UnsupportedImage
        ImageTooLarge
        DetectionFailed
        PictureCrashed
        Poison
        ModelInvalid
        DatasetInvalid
        TrainingFailed
        RunUnknown
        InventoryInvalid
        NothingFound
        OutputFailed
        SettingsInvalid

Every class takes one message, because Celery's result backend does not restore errors with other
arguments. A message is one line, says what to do, and never contains a credential.
"""

import contextlib
import errno
import re
from typing import ClassVar

MAX_UNEXPECTED_MESSAGE = 200  # characters kept of the message of an error that is no VeilError
DATA_PATTERN = re.compile(
    r"""\bb(['"])(?:\\.|(?!\1).)*(?:\1|$)"""  # bytes as Python writes them, whole or cut off
    r"""|(?:[\[(]*-?\d[\d.e+-]*[\])]*[,\s]+){8,}""",  # the values of an array
    re.DOTALL,
)


class VeilError(Exception):
    """The base of all errors that Veil reports by name."""

    of_pictures: ClassVar[bool] = True
    """False for an error of a command, a trigger or training, which no message can end with."""

    def __init__(self, message: str = "") -> None:
        super().__init__(" ".join(str(message).split()))


class Transient(VeilError):
    """The picture is fine, and a later try may succeed: a server or the device must recover."""


class StorageUnavailable(Transient):
    """S3 is down, slow or throttling."""

    retry_after: float | None = None
    """The pause in seconds that S3 requested, if any."""


class CredentialsRefused(Transient):
    """S3 refuses the credentials, or none are set: an operator must act."""


class DestinationUnavailable(Transient):
    """The destination's bucket is missing or can't be written: an operator must act."""


class SourceChanged(Transient):
    """The source was replaced while it was processed; the next try reads the new version."""


class Busy(Transient):
    """Another message for the same output is at work, or other pictures keep this worker busy."""


class DetectorUnavailable(Transient):
    """The detector did not answer within its deadline, or its device is out of memory."""


class PictureProcessLost(Transient):
    """The process of the picture was killed, maybe because of others, or none can be started."""


class QueueUnavailable(Transient):
    """Redis can't be reached, or refuses a command."""


class EventsUnavailable(Transient):
    """The queue that delivers upload events can't be reached."""

    of_pictures = False


class AddressInUse(Transient):
    """Another process serves at the address, perhaps a predecessor that still stops."""

    of_pictures = False


class Permanent(VeilError):
    """Another try would fail in the same way: a person must act."""


class InvalidRequest(Permanent):
    """The message is not a valid request."""


class OptionsUnusable(Permanent):
    """The options that an existing output was made with can't be used: send options again."""


class MalformedMessage(Permanent):
    """The item on the queue is not a task message that workers take: its sender must act."""


class MalformedEvent(Permanent):
    """The data received is no event of an object store."""

    of_pictures = False


class BucketNotAllowed(Permanent):
    """The message names a place outside the routes."""


class ObjectNotFound(Permanent):
    """The key or the bucket does not exist."""


class AccessDenied(Permanent):
    """The credentials do not allow reading the object."""


class StorageRejected(Permanent):
    """S3 refused the call for a reason that a retry does not change."""


class RunTakenOver(Permanent):
    """Another process has continued this run of a backfill, or cancelled it."""

    of_pictures = False


class DestinationTaken(Permanent):
    """The key of the output already holds the output of another source."""


class EmptyObject(Permanent):
    """The object has no bytes."""


class UnreadableImage(Permanent):
    """The object is not a picture, or the picture is damaged."""


class UnsupportedImage(Permanent):
    """The picture is of a kind that is not supported."""


class ImageTooLarge(Permanent):
    """The picture exceeds the limit of bytes or pixels."""


class DetectionFailed(Permanent):
    """The model failed on this picture."""


class PictureCrashed(Permanent):
    """Two processes in a row crashed, stalled or ran out of memory at this picture."""


class Poison(Permanent):
    """Worker processes died repeatedly while they worked on this picture."""


class ModelInvalid(Permanent):
    """The model is missing or does not follow the contract."""


class DatasetInvalid(Permanent):
    """The labelled pictures can't be used for training."""

    of_pictures = False


class TrainingFailed(Permanent):
    """Training can't continue with these options."""

    of_pictures = False


class RunUnknown(Permanent):
    """Redis has no backfill run of that name."""

    of_pictures = False


class InventoryInvalid(Permanent):
    """An inventory is damaged, incomplete, of another bucket, or of an unsupported format."""

    of_pictures = False


class NothingFound(Permanent):
    """There is no object below the address that a command was given."""

    of_pictures = False


class OutputFailed(Permanent):
    """A local output can't be written."""

    of_pictures = False


class SettingsInvalid(Permanent):
    """A setting is wrong."""


def cannot_serve(error: OSError, message: str) -> AddressInUse | SettingsInvalid:
    """Return the error of a process that can't serve at an address because of `error`."""
    return (AddressInUse if error.errno == errno.EADDRINUSE else SettingsInvalid)(message)


def log_fields(error: Exception) -> dict[str, str]:
    """Return the fields of a log line that describe `error`."""
    return {"error": type(error).__name__, "message": str(error)}


def without_data(error: BaseException) -> Exception:
    """Return an error like `error`, with its traceback and a short message, but without its data.

    Libraries put their input into their errors, and Celery writes an error's arguments to its log
    and to the result. A UnicodeDecodeError, for example, holds all the bytes that were decoded.
    Bytes and the values of arrays are therefore replaced. An error whose class takes other
    arguments, fails to describe itself, or is no Exception, becomes a RuntimeError.
    """
    message = ""
    clean: BaseException | None = None
    with contextlib.suppress(Exception):  # whatever a foreign class raises
        beginning = str(error)[: 10 * MAX_UNEXPECTED_MESSAGE]
        message = DATA_PATTERN.sub("(data)", beginning)[:MAX_UNEXPECTED_MESSAGE]
        clean = type(error)(message)
    if not isinstance(clean, Exception):
        clean = RuntimeError(f"{type(error).__name__}: {message}")
    return clean.with_traceback(error.__traceback__)
