"""The server's loop: start, stop, once, limits, strangers, clients that die."""

from __future__ import annotations

import errno
import os
import socket
import stat
import time
from dataclasses import replace

import pytest

from p2prw import api
from p2prw.engine.control.messages import Grant, ListRegions, Open, Regions, Release, Released, Window
from p2prw.engine.devices import open_device
from p2prw.engine.memory.spec import parse_memory_spec
from p2prw.engine.model import PeerAddress, ServedRegion, ServeRequest, Timeouts
from p2prw.engine.server.server import Server
from p2prw.errors import HostError, PeerGone, PeerRefusedError, RequestError

REGION = ServedRegion(name="mem", memory=parse_memory_spec("host,size=64KiB"))


def test_a_stop_ends_0_and_frees_every_descriptor(serve):
    before = len(os.listdir("/proc/self/fd"))
    served = serve()
    assert api.write(f"{served.server.address}/mem", "host,size=64KiB").exit_code == 0
    served.stop.set(15)
    served.thread.join(30)
    assert served.exit_code == 0
    served.server.close()
    served.server.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_ready_file_appears_whole_and_says_where(serve, tmp_path):
    ready = tmp_path / "ready"
    served = serve(ready_file=str(ready))
    deadline = time.monotonic() + 30
    while not ready.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert ready.read_text() == f"{served.server.address}\n" and served.server.address.port != 0
    assert os.listdir(tmp_path) == ["ready"]


def test_once_ends_with_the_code_of_the_first_client(serve, connect):
    served = serve(once=True)
    stranger = socket.create_connection((served.server.address.host, served.server.address.port))
    stranger.sendall(b"GET / HTTP/1.0\r\n\r\n")
    assert b"p2prw" in stranger.recv(200)
    stranger.close()
    assert api.write(f"{served.server.address}/mem", "host,size=64KiB").exit_code == 0
    served.thread.join(30)
    assert served.exit_code == 0
    failed = serve(once=True)
    client = connect(failed)
    client.ask(client.open(), Grant)
    client.channel.close()
    failed.thread.join(30)
    assert failed.exit_code == 1, "it left without a release"


def test_a_client_that_dies_gives_everything_back_at_once(serve, connect):
    served = serve()
    client = connect(served)
    client.ask(client.open(), Grant)
    client.channel.close()
    served.wait_for("failed")
    assert api.write(f"{served.server.address}/mem", "host,size=64KiB").exit_code == 0


@pytest.mark.parametrize(
    "words",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"0000:0011:000000:123456\n",
        bytes(300),
        b"\x00\x00\x00\x05[1,2]",
    ],
)
def test_a_stranger_gets_one_plain_line_and_the_server_goes_on(serve, words):
    served = serve()
    with socket.create_connection((served.server.address.host, served.server.address.port)) as stranger:
        stranger.sendall(words)
        stranger.settimeout(30)
        answer = b""
        while data := stranger.recv(4096):
            answer += data
    assert answer.count(b"\n") == 1 and b"p2prw" in answer
    assert api.write(f"{served.server.address}/mem", "host,size=64KiB").exit_code == 0


def test_silence_before_the_handshake_and_after_it_has_a_limit(serve, connect):
    served = serve(timeouts=Timeouts(handshake_s=0.3, idle_s=0.6))
    silent = connect(served, shake=False)
    idle = connect(served)
    idle.ask(idle.open(), Grant)
    for client in (silent, idle):
        with pytest.raises((PeerGone, PeerRefusedError)):
            client.channel.expect(Released, deadline_s=30, name="nothing")
    codes = {served.wait_for("failed", count).fields["code"] for count in (1, 2)}
    assert codes == {"handshake_timeout", "idle"}


def test_who_never_gets_through_its_handshake_may_not_stay_by_talking(serve):
    served = serve(timeouts=Timeouts(handshake_s=0.5))
    with socket.create_connection((served.server.address.host, served.server.address.port)) as slow:
        slow.settimeout(0.1)
        slow.sendall((60_000).to_bytes(4, "big"))
        for _ in range(100):
            slow.sendall(b"{")
            try:
                answer = slow.recv(4096)
                break
            except TimeoutError:
                continue
    assert b"handshake_timeout" in answer and served.wait_for("failed").fields["code"] == "handshake_timeout"


def test_a_client_may_stay_for_so_long_however_busy(serve, connect):
    served = serve(timeouts=Timeouts(client_s=0.5))
    client = connect(served)
    with pytest.raises(PeerRefusedError) as caught:
        for _ in range(10_000):
            client.ask(ListRegions(), Regions)
            time.sleep(0.01)
    assert caught.value.code == "client_time_limit"


def test_who_asks_without_end_keeps_nobody_from_being_heard(serve, connect):
    served = serve()
    loud, other = connect(served), connect(served)
    for _ in range(500):
        loud.channel.send(ListRegions())
    assert isinstance(other.ask(other.open(), Grant), Grant)
    for _ in range(500):
        loud.channel.expect(Regions, deadline_s=30, name="a page")


def test_out_of_descriptors_it_waits_and_does_not_spin(serve, monkeypatch):
    served = serve()
    accept, tries = socket.socket.accept, []

    def poor(listener):
        tries.append(time.monotonic())
        if len(tries) <= 3:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return accept(listener)

    monkeypatch.setattr(socket.socket, "accept", poor)
    assert api.write(f"{served.server.address}/mem", "host,size=1KiB").exit_code == 0
    # One try for each look at the house, four a second.
    assert len(tries) == 4 and tries[3] - tries[1] > 0.3
    (warning,) = [event.text for event in served.events if event.kind == "warning"]
    assert "LimitNOFILE" in warning


def test_a_stop_lets_transfers_finish_and_begins_nothing_new(serve, connect):
    served = serve({"a": "host,size=64KiB", "b": "host,size=64KiB"})
    working, idle = connect(served), connect(served)
    grant = working.ask(working.open("a"), Grant)
    assert isinstance(grant, Grant)
    served.stop.set(15)
    served.wait_for("stopping")
    with pytest.raises(PeerRefusedError) as caught:
        idle.ask(idle.open("b"), Grant)
    assert caught.value.code == "stopping"
    with pytest.raises(PeerRefusedError) as caught:
        connect(served)
    assert caught.value.code == "stopping"
    assert served.thread.is_alive()
    working.ask(Release(grant.lease, keep=True), Released)
    served.thread.join(30)
    assert served.exit_code == 0 and not served.thread.is_alive()


@pytest.mark.parametrize("twice", [False, True])
def test_a_stop_has_a_limit_and_a_second_one_waits_for_nothing(serve, connect, twice):
    served = serve(timeouts=Timeouts(stop_s=60 if twice else 0.4))
    client = connect(served)
    client.ask(client.open(), Grant)
    served.stop.set(15)
    served.wait_for("stopping")
    if twice:
        served.stop.set(15)
    with pytest.raises(PeerRefusedError) as caught:
        client.channel.expect(Released, deadline_s=30, name="the end")
    assert caught.value.code == "server_stopped" and caught.value.exit_code == 7
    served.thread.join(30)
    assert served.exit_code == 0 and len(served.server.leases) == 0


def test_no_more_clients_than_allowed(serve, connect):
    served = serve(max_clients=1)
    connect(served)
    with pytest.raises(PeerRefusedError) as caught:
        connect(served)
    assert caught.value.code == "too_many_clients"


def test_the_receive_buffer_is_shared_among_active_clients_and_they_are_told(serve, connect):
    served = serve({"a": "host,size=64KiB", "b": "host,size=64KiB"})
    first, second = connect(served), connect(served)
    alone = first.ask(first.open("a"), Grant)
    shared = second.ask(second.open("b"), Grant)
    assert isinstance(alone, Grant) and isinstance(shared, Grant)
    assert shared.window_bytes == alone.window_bytes // 2
    assert first.channel.expect(Window, deadline_s=30, name="window") == Window(shared.window_bytes)
    second.ask(Release(shared.lease, keep=True), Released)
    assert first.channel.expect(Window, deadline_s=30, name="window") == Window(alone.window_bytes)


def test_memory_is_not_offered_to_the_network_without_a_token_or_a_word():
    request = ServeRequest(regions=(REGION,), listen=PeerAddress("0.0.0.0", 0))
    with pytest.raises(RequestError) as caught, Server(request):
        raise AssertionError("not reached")
    assert caught.value.code == "needs_token" and "--insecure" in str(caught.value.fix)


def test_errors_come_before_ready_and_leave_nothing_open():
    before = len(os.listdir("/proc/self/fd"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        request = ServeRequest(regions=(REGION,), listen=PeerAddress("127.0.0.1", taken.getsockname()[1]))
        with pytest.raises(HostError) as caught, Server(request):
            raise AssertionError("not reached")
    assert caught.value.code == "port_in_use"
    with (
        pytest.raises(RequestError) as twice,
        Server(ServeRequest(regions=(REGION, REGION), listen=PeerAddress("127.0.0.1", 0))),
    ):
        raise AssertionError("not reached")
    assert twice.value.code == "duplicate_region"
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_unknown_region_names_the_nearest(serve):
    served = serve({"scratch": "host,size=4KiB"})
    result = api.write(f"{served.server.address}/scrach", "host,size=4KiB")
    assert result.error is not None and result.error.code == "unknown_region"
    assert f"{served.server.address}/scratch" in str(result.error.fix)


def test_a_served_file_keeps_its_mode(serve, tmp_path):
    path = tmp_path / "f.bin"
    path.write_bytes(b"old")
    path.chmod(0o640)
    served = serve({"f": f"file:{path}"})
    assert api.write(f"{served.server.address}/f", "host,size=64KiB").exit_code == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o640 and path.stat().st_size == 65536


def test_open_is_the_clients_word(serve, connect):
    """`Open` twice on one connection is a broken rule; after a release it is allowed."""
    served = serve()
    client = connect(served)
    grant = client.ask(client.open(), Grant)
    assert isinstance(grant, Grant)
    client.ask(Release(grant.lease, keep=True), Released)
    again = client.ask(client.open(), Grant)
    assert isinstance(again, Grant) and again.lease != grant.lease
    with pytest.raises(PeerRefusedError) as caught:
        client.ask(client.open(), Open)
    assert caught.value.code == "unexpected_message"


def test_a_rate_limit_that_a_nic_cannot_hold_is_said_at_the_start(serve, monkeypatch):
    def open_nic(*wishes, **more):
        device, reason = open_device(*wishes, **more)
        device.info = replace(device.info, provider="verbs", name="mlx5_9")
        return device, reason

    monkeypatch.setattr("p2prw.engine.server.server.open_device", open_nic)
    said = "--client-rate-limit: mlx5_9 serves READs and WRITEs by itself"

    def warnings(served):
        return [event.text for event in served.events if event.kind == "warning"]

    assert any(text.startswith(said) for text in warnings(serve(client_rate_limit_bytes_per_s=1e6)))
    assert not any("--client-rate-limit" in text for text in warnings(serve()))
