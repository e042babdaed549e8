"""The sockets of a server that a flag ``--http`` gives the address of."""

import socket

from tornado.netutil import bind_sockets

from .errors import cannot_serve


def sockets_at(host: str, port: int) -> list[socket.socket]:
    """Return sockets that listen at an address.

    Raises AddressInUse, or SettingsInvalid for an address that can never be used.
    """
    try:
        return bind_sockets(port, host)
    except OSError as error:
        raise cannot_serve(
            error, f"can't listen on {host}:{port}: {error.strerror}: give --http another address"
        ) from None
