"""The service manager: what its variables mean, and a server under a manager that is played by the test."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from p2prw import api
from p2prw.engine.control.messages import Grant
from p2prw.engine.memory.spec import parse_memory_spec
from p2prw.engine.model import PeerAddress, ServedRegion, ServeRequest, Timeouts
from p2prw.engine.server.server import Server
from p2prw.engine.server.systemd import ServiceManager
from p2prw.errors import HostError, RequestError

REGION = ServedRegion(name="mem", memory=parse_memory_spec("host,size=64KiB"))
PID = 4711


def manager(**environ: str) -> ServiceManager:
    return ServiceManager(environ, pid=PID)


@pytest.mark.parametrize(
    ("environ", "fds"),
    [
        ({}, ()),
        ({"LISTEN_FDS": "1"}, ()),
        ({"LISTEN_FDS": "0", "LISTEN_PID": "4711"}, ()),
        ({"LISTEN_FDS": "2", "LISTEN_PID": "4711"}, (3, 4)),
        # Meant for a parent that started us.
        ({"LISTEN_FDS": "2", "LISTEN_PID": "4710"}, ()),
    ],
)
def test_sockets_are_taken_when_they_are_meant_for_us(environ, fds):
    assert manager(**environ).listen_fds == fds


@pytest.mark.parametrize("count", ["", "-1", "+1", "1_0", " 1", "0x1", "65", "1" * 30, "\u0661"])
def test_a_count_that_is_none_is_refused(count):
    with pytest.raises(HostError) as caught:
        manager(LISTEN_FDS=count, LISTEN_PID=str(PID))
    assert caught.value.code == "bad_inherited_socket" and caught.value.exit_code == 3


class Heard:
    """A manager's notification socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.lines: list[str] = []

    def wait_for(self, line: str) -> None:
        end = time.monotonic() + 30
        while not any(one.startswith(line) for one in self.lines):
            assert time.monotonic() < end, f"no {line}: {self.lines}"
            self.lines += self.sock.recv(4096).decode().splitlines()


@contextmanager
def listening_manager(name: str) -> Iterator[Heard]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(30)
        sock.bind("\0" + name[1:] if name.startswith("@") else name)
        yield Heard(sock)


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_a_server_says_ready_alive_and_stopping(serve, connect, tmp_path, kind):
    name = f"{tmp_path}/notify" if kind == "path" else f"@p2prw-test-{os.getpid()}-{tmp_path.name}"
    with listening_manager(name) as heard:
        environ = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "400000", "WATCHDOG_PID": str(os.getpid())}
        served = serve(manager=ServiceManager(environ, pid=os.getpid()), timeouts=Timeouts(stop_s=7))
        heard.wait_for("READY=1")
        heard.wait_for("WATCHDOG=1")
        client = connect(served)
        client.ask(client.open(), Grant)
        heard.wait_for("STATUS=1 client, 1 transfer")
        served.stop.set(15)
        heard.wait_for("STOPPING=1")
        # 7 s for the transfer, 10 to close.
        heard.wait_for("EXTEND_TIMEOUT_USEC=17000000")
        served.stop.set(15)
        served.thread.join(30)
        assert heard.lines.index("READY=1") < heard.lines.index("WATCHDOG=1") < heard.lines.index("STOPPING=1")


def test_a_watchdog_of_another_process_is_not_fed(tmp_path):
    name = f"{tmp_path}/notify"
    with listening_manager(name) as heard:
        silent = ServiceManager({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"}, pid=PID)
        silent.tick(100.0, "idle")
        silent.tick(100.5, "busy")  # too soon after the last one
        silent.tick(101.5, "busy")
        heard.wait_for("STATUS=busy")
        assert heard.lines == ["STATUS=idle", "STATUS=busy"]


@pytest.mark.parametrize("address", ["", "@", "vsock:2:1234", "relative", "/nowhere/at/all"])
def test_a_manager_that_cannot_be_reached_changes_nothing(address):
    one = ServiceManager({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "soon"}, pid=PID)
    one.ready("well")
    one.tick(1.0, "well")
    one.stopping("well", 1.0)


# --- socket activation ------------------------------------------------------------------------------------------


@contextmanager
def handed_over(*fds: int) -> Iterator[ServiceManager]:
    """A manager that handed these descriptors to us, not from 3 on: in this process that is somebody else's."""
    one = ServiceManager({}, pid=os.getpid())
    one.listen_fds = fds
    yield one


def request(**options) -> ServeRequest:
    return ServeRequest(regions=(REGION,), **options)


def test_a_server_serves_on_the_sockets_it_was_given(serve):
    with socket.create_server(("127.0.0.1", 0)) as ours, socket.create_server(("127.0.0.1", 0)) as other:
        fds = [os.dup(one.fileno()) for one in (ours, other)]
        with handed_over(*fds) as given:
            served = serve(manager=given)
            for listener in (ours, other):
                host, port = listener.getsockname()
                assert api.write(f"{host}:{port}/mem", "host,size=64KiB").exit_code == 0
            assert served.server.address == PeerAddress(*ours.getsockname())
            assert not any(os.get_inheritable(fd) for fd in fds)
            served.stop.set(15)
            served.thread.join(30)
            served.server.close()
        # The manager still has its own: who comes now waits for the next server.
        with socket.create_connection(ours.getsockname()):
            pass


def test_a_newcomer_waits_for_the_next_server_where_the_manager_holds_the_port(serve, connect):
    with socket.create_server(("127.0.0.1", 0)) as ours, handed_over(os.dup(ours.fileno())) as given:
        served = serve(manager=given)
        client = connect(served)
        client.ask(client.open(), Grant)
        served.stop.set(15)
        served.wait_for("stopping")
        with socket.create_connection(ours.getsockname()) as late:
            late.settimeout(0.5)
            with pytest.raises(TimeoutError):
                late.recv(1)
            served.stop.set(15)
            served.thread.join(30)
            served.server.close()
            ours.settimeout(30)
            ours.accept()[0].close()


def test_what_is_no_listening_socket_is_refused(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    with (
        socket.socket() as deaf,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
        socket.socket(socket.AF_UNIX) as local,
        (tmp_path / "file").open("w") as file,
    ):
        local.bind(f"{tmp_path}/socket")
        local.listen()
        for fd in (deaf.fileno(), datagrams.fileno(), local.fileno(), file.fileno()):
            with handed_over(os.dup(fd)) as given:
                with pytest.raises(HostError) as caught, Server(request(), manager=given):
                    raise AssertionError("not reached")
                assert caught.value.code == "bad_inherited_socket"
                os.close(given.listen_fds[0])
        with handed_over(9999) as given:
            with pytest.raises(HostError) as caught, Server(request(), manager=given):
                raise AssertionError("not reached")
            assert caught.value.code == "bad_inherited_socket" and caught.value.errno == "EBADF"
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_socket_beyond_loopback_needs_a_token_whatever_listen_says():
    with socket.create_server(("0.0.0.0", 0)) as wide, handed_over(os.dup(wide.fileno())) as given:
        with pytest.raises(RequestError) as caught, Server(request(), manager=given):
            raise AssertionError("not reached")
        assert caught.value.code == "needs_token"
