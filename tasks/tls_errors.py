"""The reasons for which TLS fails, as the client libraries of Redis and S3 report them."""

import ssl
from functools import partial

from .causes import causes

# The reasons of OpenSSL for an answer that is not TLS. They differ with its version.
NO_TLS = {
    "WRONG_VERSION_NUMBER",
    "RECORD_LAYER_FAILURE",
    "UNKNOWN_PROTOCOL",
    "PACKET_LENGTH_TOO_LONG",
}
# The reasons of OpenSSL for a server that accepts no client without a certificate that it trusts.
WANTS_CERTIFICATE = {
    "SSLV3_ALERT_BAD_CERTIFICATE",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED",
    "SSLV3_ALERT_CERTIFICATE_REVOKED",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
    "SSLV3_ALERT_HANDSHAKE_FAILURE",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED",
    "TLSV1_ALERT_UNKNOWN_CA",
}
MISMATCHES = {"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH"}
# Libraries do not say from which error of OpenSSL they raise theirs.
_causes = partial(causes, is_context_followed=True)
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


def is_lasting(error: BaseException) -> bool:
    """Return whether `error` is one that a retry at once meets again."""
    return speaks_no_tls(error) or distrusts(error)


def wants_certificate(error: BaseException) -> bool:
    """Return whether `error` says that the server asks for a client certificate that it trusts.

    With TLS 1.3 a server may close the connection before this answer is read.
    """
    return any(
        isinstance(cause, ssl.SSLEOFError)
        or (isinstance(cause, ssl.SSLError) and cause.reason in WANTS_CERTIFICATE)
        for cause in _causes(error)
    )


def authorities_problem(path: str) -> str | None:
    """Return why no certificates to trust can be read from the file at `path`, or None."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError:
        return f"{path} has no certificate in the PEM format"
    except OSError as error:
        return f"{path} can't be read ({error.strerror})"
    return None


def client_certificate_problem(
    certificate: str | None, key: str | None, password: str | None
) -> str | None:
    """Return which option of the address to correct, or None if the client can use the files.

    `certificate`, `key` and `password` are the options ssl_certfile, ssl_keyfile and ssl_password.
    """
    if certificate is None:
        return None if key is None else "ssl_keyfile needs ssl_certfile, the certificate of the key"
    try:
        # Without a password OpenSSL would ask for one at the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(
            certificate, key, password=password or ""
        )
    except (ssl.SSLError, OSError, ValueError) as error:
        if isinstance(error, ssl.SSLError) and error.reason in MISMATCHES:
            return "the key in ssl_keyfile is not that of the certificate in ssl_certfile"
        if key is None:
            return "ssl_certfile needs ssl_keyfile, the key of the certificate, unless it has both"
        return (
            "ssl_certfile must have a certificate and ssl_keyfile its key, both in the PEM format; "
            "an encrypted key needs ssl_password"
        )
    return None
