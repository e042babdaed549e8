"""The reasons for which TLS fails, as the client libraries of Redis and S3 report them."""

import ssl
from collections.abc import Iterator

# The reasons of OpenSSL for an answer that is not TLS. They differ with its version.
NO_TLS = {
    "WRONG_VERSION_NUMBER",
    "RECORD_LAYER_FAILURE",
    "UNKNOWN_PROTOCOL",
    "PACKET_LENGTH_TOO_LONG",
}
# A Redis without TLS waits for the end of a command, so the handshake gets no answer.
NO_HANDSHAKE = "handshake operation timed out"


def speaks_no_tls(error: BaseException) -> bool:
    """Return whether `error` says that the server does not speak TLS at this port."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLError) and cause.reason in NO_TLS:
            return True
        if isinstance(cause, TimeoutError) and NO_HANDSHAKE in str(cause):
            return True
    return False


def distrusts(error: BaseException) -> bool:
    """Return whether `error` says that the certificate of the server is not trusted."""
    return any(isinstance(cause, ssl.SSLCertVerificationError) for cause in _causes(error))


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield `error` and the errors that it follows from."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
