"""The exit codes of the ``veil`` command."""

from enum import IntEnum


class ExitCode(IntEnum):
    """The exit code of a command, which scripts and supervisors may rely on."""

    meaning: str
    """The line about the code in ``veil --help``."""

    def __new__(cls, value: int, meaning: str) -> "ExitCode":
        code = int.__new__(cls, value)
        code._value_ = value
        code.meaning = meaning
        return code

    # A worker that SIGTERM or SIGINT stopped ends with this code, too, and so does a supervisor
    # whose workers do: while they start, while they are idle, and once their pictures are finished.
    OK = 0, "Everything that was asked for is done."

    # The output names what failed. A worker ends with this code if another start may succeed, for
    # example without S3, from which it fetches its model, or if it gave unfinished pictures back.
    FAILED = 1, "A picture or a check failed, nothing was to do, no S3, or an address in use."

    # Typer ends with the same code when it can't parse the command line. A worker without Redis
    # waits for it, and one without S3 ends with FAILED.
    UNUSABLE = 2, "A wrong argument, setting or model, or no server: nothing more was done."

    STOPPED = 3, "A backfill ended early: stopped, killed, or continued by another process."

    # The messages in hand are delivered again.
    STALLED = 70, "The watchdog ended a worker: a picture or a batch took too long."

    INTERRUPTED = 130, "Ctrl-C."  # 128 + SIGINT, as shells report it

    # A worker, a trigger and a backfill handle SIGTERM themselves, and end with other codes.
    TERMINATED = 143, "SIGTERM ended a command."  # 128 + SIGTERM

    @classmethod
    def ok_if(cls, is_complete: bool) -> "ExitCode":
        """Return OK, or FAILED if something did not succeed."""
        return cls.OK if is_complete else cls.FAILED
