"""The sockets of a server: which addresses can't be used, and whether it may pass."""

import pytest

from tasks.errors import AddressInUse, SettingsInvalid
from tasks.listening import sockets_at

HOST = "127.0.0.1"


# Tornado leaves a socket open that it could not bind. A program ends then.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_address_that_is_in_use_may_be_free_later_and_another_one_never():
    (listening,) = sockets_at(HOST, 0)
    with listening:
        port = listening.getsockname()[1]
        with pytest.raises(AddressInUse, match=rf"{HOST}:{port}: .*: give --http another address"):
            sockets_at(HOST, port)
    with pytest.raises(SettingsInvalid, match=r"can't listen on 192\.0\.2\.1:80"):
        sockets_at("192.0.2.1", 80)  # RFC 5737: no machine has it
