"""Listeners: a port of our own, and an explanation for each way not to get one."""

from __future__ import annotations

import pytest

from p2prw.engine.model import PeerAddress
from p2prw.engine.server.listener import open_listeners
from p2prw.errors import HostError


def test_port_zero_picks_one_port_for_every_address_of_the_name():
    listeners = open_listeners(PeerAddress("localhost", 0))
    ports = {listener.getsockname()[1] for listener in listeners}
    for listener in listeners:
        listener.close()
    assert len(ports) == 1 and 0 not in ports


def test_a_port_in_use_says_who_may_have_it_and_what_to_type():
    (first,) = open_listeners(PeerAddress("127.0.0.1", 0))
    port = first.getsockname()[1]
    with pytest.raises(HostError, match="in use") as caught:
        open_listeners(PeerAddress("127.0.0.1", port))
    first.close()
    assert caught.value.errno == "EADDRINUSE" and caught.value.code == "port_in_use"
    assert f"sport = :{port}" in str(caught.value.fix) and "127.0.0.1:0" in str(caught.value.fix)


def test_an_address_of_somebody_else_is_refused():
    with pytest.raises(HostError) as caught:
        open_listeners(PeerAddress("192.0.2.1", 0))
    assert caught.value.code == "bad_listen_address" and caught.value.exit_code == 3


def test_a_name_that_is_none_is_refused():
    with pytest.raises(HostError) as caught:
        open_listeners(PeerAddress("no such name", 0))
    assert caught.value.code == "resolve_failed"
