"""TLS round the control channel: who is trusted, who is told what, and that nothing hangs half way."""

from __future__ import annotations

import hashlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from p2prw import api
from p2prw.engine.model import PeerAddress, Timeouts, TlsClient, TlsServer, TransferResult
from p2prw.errors import PeerRefusedError

TOKEN = b"the token of these tests"
QUICK = Timeouts(connect_retry_s=1, handshake_s=1.5, idle_s=5)


def server_options(folder: Path, name: str = "host", client_ca: bool = False) -> TlsServer:
    ca_file = f"{folder}/ca.pem" if client_ca else None
    return TlsServer(cert_file=f"{folder}/{name}.pem", key_file=f"{folder}/{name}.key", client_ca_file=ca_file)


@pytest.fixture(scope="module")
def served(certificates: Path, tmp_path_factory) -> Iterator[PeerAddress]:
    folder = tmp_path_factory.mktemp("served")
    regions = {"mem": "host,size=1MiB", "sink": f"file:{folder}/sink.bin"}
    with api.serving(regions, token=TOKEN, tls=server_options(certificates), timeouts=QUICK) as address:
        yield address


@pytest.fixture(scope="module")
def plain() -> Iterator[PeerAddress]:
    with api.serving({"mem": "host,size=1MiB"}, token=TOKEN, timeouts=QUICK) as address:
        yield address


@pytest.fixture
def trust(certificates: Path) -> TlsClient:
    return TlsClient(ca_file=f"{certificates}/ca.pem")


def write(address: PeerAddress | str, tls: TlsClient | None, **more: object) -> TransferResult:
    options = {"token": TOKEN, "timeouts": QUICK, "tls": tls, **more}
    return api.write(f"{address}/mem", "host,size=64KiB", **options)


def refused(result: TransferResult, code: str) -> None:
    assert result.error is not None and result.error.code == code, result.error
    assert result.exit_code == 7 and result.results == () and result.error.why and result.error.fix


def test_a_transfer_inside_tls(served, trust, tmp_path):
    assert write(served, trust).verify.status == "verified"
    source = tmp_path / "source.bin"
    source.write_bytes(bytes(range(256)) * 8192)
    result = api.write(f"{served}/sink", f"file:{source}", token=TOKEN, timeouts=QUICK, tls=trust)
    assert result.exit_code == 0 and result.verify.status == "verified", result.error
    from p2prw.engine.session import list_regions

    assert [row.name for row in list_regions(served, TOKEN, QUICK, tls=trust)] == ["mem", "sink"]


@contextmanager
def relay(
    target: PeerAddress, server_tls: ssl.SSLContext | None, client_tls: ssl.SSLContext | None
) -> Iterator[tuple[str, list[bytes]]]:
    """Forwards bytes, and keeps them; speaks TLS of its own with the client and with the server where told to."""
    listener = socket.create_server(("127.0.0.1", 0))

    def pass_on(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                heard.append(data)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    heard: list[bytes] = []
    opened: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def serve() -> None:
        try:
            near: socket.socket = listener.accept()[0]
            opened.append(near)
            far: socket.socket = socket.create_connection((target.host, target.port))
            if server_tls is not None:
                near = server_tls.wrap_socket(near, server_side=True)
            if client_tls is not None:
                far = client_tls.wrap_socket(far)
            opened.extend((near, far))
            ways = ((near, far), (far, near))
            threads.extend(threading.Thread(target=pass_on, args=ends, daemon=True) for ends in ways)
            for thread in threads:
                thread.start()
        except OSError:
            pass

    first = threading.Thread(target=serve, daemon=True)
    first.start()
    host, port = listener.getsockname()
    try:
        yield f"{host}:{port}", heard
    finally:
        first.join(30)
        for one in opened:
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            one.close()
        for thread in threads:
            thread.join(30)
        listener.close()


def test_nothing_of_the_control_channel_can_be_read_on_the_way(served, trust):
    with relay(served, None, None) as (address, heard):
        assert write(address, trust).exit_code == 0
        wire = b"".join(heard)
    assert len(wire) > 2000
    for word in (b"hello", b"nonce", b"rkey", b"grant", b"lease", TOKEN):
        assert word not in wire


def test_who_ends_tls_in_between_is_found_out_by_the_token(served, certificates):
    """It has a certificate that the client trusts, and relays every byte: the proof covers the certificate."""
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own.load_cert_chain(certificates / "alone.pem", certificates / "alone.key")
    onwards = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    onwards.check_hostname, onwards.verify_mode = False, ssl.CERT_NONE
    fooled = hashlib.sha256(ssl.PEM_cert_to_DER_cert((certificates / "alone.pem").read_text())).hexdigest()
    with relay(served, own, onwards) as (address, _):
        refused(write(address, TlsClient(fingerprint=fooled)), "auth_failed")


def test_a_server_that_is_not_the_one(served, certificates, trust):
    with api.serving({"mem": "host,size=1MiB"}, tls=server_options(certificates, "alone"), timeouts=QUICK) as other:
        refused(write(other, trust, token=None), "tls_untrusted")
        refused(write(other, TlsClient(fingerprint="ab" * 32), token=None), "tls_fingerprint")
    refused(write(f"localhost:{served.port}", trust), "tls_wrong_host")


def test_a_wrong_token_inside_tls(served, trust):
    refused(write(served, trust, token=b"another"), "auth_failed")
    refused(write(served, trust, token=None), "auth_required")


def test_one_end_with_tls_and_one_without(served, plain, trust):
    """Each gets one plain reason, whoever is the one without."""
    started = time.monotonic()
    refused(write(served, None), "tls_required")
    refused(write(plain, trust), "tls_not_used")
    assert time.monotonic() - started < 10
    assert write(served, trust).exit_code == 0 and write(plain, None).exit_code == 0


def test_client_certificates(certificates, trust):
    with api.serving(
        {"mem": "host,size=1MiB"}, tls=server_options(certificates, client_ca=True), timeouts=QUICK
    ) as address:
        guest = {"ca_file": trust.ca_file, "cert_file": f"{certificates}/guest.pem"}
        assert write(address, TlsClient(**guest, key_file=f"{certificates}/guest.key"), token=None).exit_code == 0
        refused(write(address, trust, token=None), "tls_client_certificate")


def test_a_full_server_tells_a_tls_client_why(certificates, trust):
    with (
        api.serving({"mem": "host,size=1MiB"}, tls=server_options(certificates), max_clients=1) as address,
        socket.create_connection((address.host, address.port)),
    ):
        refused(write(address, trust, token=None), "too_many_clients")


def heard_until_closed(address: PeerAddress, data: bytes) -> tuple[bytes, float]:
    started = time.monotonic()
    with socket.create_connection((address.host, address.port), 10) as stranger:
        stranger.sendall(data)
        heard = b""
        try:
            while more := stranger.recv(4096):
                heard += more
        except ConnectionResetError:
            pass
        return heard, time.monotonic() - started


def hello_of_a_client(trust: TlsClient) -> bytes:
    from p2prw.engine.control.tls import client_filter

    return client_filter(trust, "127.0.0.1").take()


def test_half_a_record_meets_the_deadline_and_holds_nobody_up(served, trust):
    first = hello_of_a_client(trust)
    idle = [socket.create_connection((served.host, served.port), 10) for _ in range(3)]
    try:
        idle[0].sendall(first[:3])
        idle[1].sendall(first[:-1])
        idle[2].sendall(first)
        assert write(served, trust).exit_code == 0
        for one in idle:
            one.settimeout(30)
            try:
                while one.recv(65536):
                    pass
            except ConnectionResetError:
                pass
    finally:
        for one in idle:
            one.close()


def test_half_a_record_of_a_server_meets_the_clients_deadline(trust):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        kept: list[socket.socket] = []

        def answer() -> None:
            connection, _ = listener.accept()
            kept.append(connection)
            connection.sendall(b"\x16\x03\x03\x01\x00half")

        thread = threading.Thread(target=answer)
        thread.start()
        host, port = listener.getsockname()
        result = write(f"{host}:{port}", trust)
        thread.join(30)
        kept[0].close()
    assert result.exit_code == 1 and result.error is not None and result.error.code == "deadline"


@pytest.mark.parametrize(
    ("data", "begins"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"p2prw: "),
        (b"0000:0000:000000:000000:0000", b"p2prw: "),
        (b"\xff" * 64, b"p2prw: "),
        (b"\x16\x03\x01\x00\x05hello", b"\x15"),
    ],
    ids=["http", "perftest", "noise", "broken-tls"],
)
def test_strangers_at_a_tls_port(served, trust, data, begins):
    heard, elapsed_s = heard_until_closed(served, data)
    assert heard.startswith(begins) and len(heard) < 200 and elapsed_s < 5
    assert write(served, trust).exit_code == 0


def test_a_server_that_speaks_neither(trust):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
                connection.recv(65536)

        thread = threading.Thread(target=answer)
        thread.start()
        host, port = listener.getsockname()
        refused(write(f"{host}:{port}", trust), "not_p2prw")
        thread.join(30)


def test_the_command_line(server, p2prw, certificates):
    """The fingerprint that the server prints is what the client takes."""
    files = (f"--tls-cert={certificates}/host.pem", f"--tls-key={certificates}/host.key")
    one = server("--region=a=host,size=64KiB", *files)
    (line,) = [line for line in one.lines if "sha256:" in line]
    pin = "sha256:" + line.rpartition("sha256:")[2].strip()
    words = ("write", f"{one.address}/a", "--from", "host,size=64KiB")
    pinned, without = p2prw.together((*words, "--tls-fingerprint", pin), words)
    pinned.ok()
    without.failed(7, "tls_required")


def test_the_fields_of_an_error_are_those_of_a_refusal(served, trust):
    from p2prw.engine.session import list_regions

    with pytest.raises(PeerRefusedError):
        list_regions(served, TOKEN, QUICK)
