"""Filters joined by nothing but bytes, in any slices; certificates are made here."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from p2prw.engine.control.tls import TlsDoor, TlsFilter, client_filter
from p2prw.engine.model import TlsClient, TlsServer
from p2prw.errors import HostError, P2prwError, PeerRefusedError, RemoteProtocolError, RequestError


def openssl(*words: object) -> bytes:
    command = ["openssl", *(str(word) for word in words)]
    return subprocess.run(command, check=True, capture_output=True).stdout


@pytest.fixture(scope="module")
def folder(certificates: Path) -> Path:
    return certificates


def door(folder: Path, name: str = "host", *, client_ca: bool = False) -> TlsDoor:
    ca_file = str(folder / "ca.pem") if client_ca else None
    return TlsDoor(TlsServer(cert_file=f"{folder}/{name}.pem", key_file=f"{folder}/{name}.key", client_ca_file=ca_file))


def trusting(folder: Path, host: str = "127.0.0.1", **more: str) -> TlsFilter:
    return client_filter(TlsClient(ca_file=str(folder / "ca.pem"), **more), host)


def carry(one: TlsFilter, two: TlsFilter, slice_bytes: int = 65536) -> None:
    """Bring both ends what the other one said, until nobody says anything."""
    moved = True
    while moved:
        moved = False
        for source, sink in ((one, two), (two, one)):
            data = source.take()
            for start in range(0, len(data), slice_bytes):
                sink.feed(data[start : start + slice_bytes])
                moved = True


def failure(one: TlsFilter, two: TlsFilter) -> P2prwError:
    with pytest.raises(P2prwError) as caught:
        carry(one, two)
        two.read(1)
        carry(one, two)
        one.read(1)
    assert caught.value.exit_code == 7 and caught.value.why and caught.value.fix
    return caught.value


@pytest.mark.parametrize("slice_bytes", [1, 7, 65536])
def test_plain_bytes_go_through_whatever_the_slices(folder: Path, slice_bytes: int) -> None:
    client, server = trusting(folder), door(folder).filter()
    client.write(b"said before the handshake was over")
    assert client.unsent_bytes == 34
    carry(client, server, slice_bytes)
    assert client.established and server.established and client.unsent_bytes == 0
    assert server.read(100) == b"said before the handshake was over"
    big = bytes(range(256)) * 1000
    server.write(big)
    wire = server.take()
    assert big[:64] not in wire
    heard = bytearray()
    for start in range(0, len(wire), slice_bytes * 1000):
        client.feed(wire[start : start + slice_bytes * 1000])
        while piece := client.read(16384):
            heard += piece
    assert heard == big


def test_it_is_tls_1_3_and_both_ends_know_the_certificate(folder: Path) -> None:
    host = door(folder)
    client, server = trusting(folder), host.filter()
    carry(client, server)
    assert client._tls.version() == server._tls.version() == "TLSv1.3"
    printed = openssl("x509", "-in", folder / "host.pem", "-noout", "-fingerprint", "-sha256").decode()
    assert printed.strip().rpartition("=")[2].replace(":", "").lower() == host.fingerprint
    assert client.binding == server.binding == bytes.fromhex(host.fingerprint)


def test_the_end_is_said(folder: Path) -> None:
    client, server = trusting(folder), door(folder).filter()
    carry(client, server)
    client.close()
    server.feed(client.take())
    assert server.read(1) == b"" and server.ended
    client.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "store.example"])
def test_the_host_must_be_in_the_certificate(folder: Path, host: str) -> None:
    client, server = trusting(folder, host), door(folder).filter()
    carry(client, server)
    assert client.established
    for other in ("127.0.0.2", "example", "host"):
        assert failure(trusting(folder, other), door(folder).filter()).code == "tls_wrong_host"


def test_a_certificate_of_nobody_we_know(folder: Path) -> None:
    assert failure(trusting(folder, "elsewhere.example"), door(folder, "alone").filter()).code == "tls_untrusted"
    client = client_filter(TlsClient(ca_file=str(folder / "alone.pem")), "elsewhere.example")
    server = door(folder, "alone").filter()
    carry(client, server)
    assert client.established


def test_a_pinned_certificate_needs_no_ca_and_no_name(folder: Path) -> None:
    pin = TlsClient(fingerprint=door(folder, "alone").fingerprint)
    client, server = client_filter(pin, "any.where"), door(folder, "alone").filter()
    carry(client, server)
    assert client.established
    error = failure(client_filter(pin, "127.0.0.1"), door(folder).filter())
    assert error.code == "tls_fingerprint" and door(folder).fingerprint in (error.why or "")
    both = trusting(folder, fingerprint=door(folder, "alone").fingerprint)
    assert failure(both, door(folder).filter()).code == "tls_fingerprint"


def test_a_server_that_asks_for_certificates(folder: Path) -> None:
    guest = {"cert_file": f"{folder}/guest.pem", "key_file": f"{folder}/guest.key"}
    client, server = trusting(folder, **guest), door(folder, client_ca=True).filter()
    carry(client, server)
    assert client.established and server.established
    # TLS 1.3: the client is through before the server has looked, and hears of it afterwards.
    for stranger in ({}, {"cert_file": f"{folder}/alone.pem", "key_file": f"{folder}/alone.key"}):
        client, server = trusting(folder, **stranger), door(folder, client_ca=True).filter()
        server.feed(client.take())
        client.feed(server.take())
        with pytest.raises(PeerRefusedError) as refused:
            server.feed(client.take())
        assert refused.value.code == ("tls_untrusted" if stranger else "tls_client_certificate")
        with pytest.raises(PeerRefusedError) as told:
            client.feed(server.take())
            client.read(1)
        assert told.value.side == "remote"
        assert told.value.code == ("tls_refused" if stranger else "tls_client_certificate")


def test_older_tls_is_refused_by_both(folder: Path) -> None:
    import ssl

    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(RemoteProtocolError) as caught:
        carry(TlsFilter(old, host="x"), door(folder).filter())
    assert caught.value.code == "tls_failed" and "1.3" in (caught.value.why or "")


def test_garbage_after_a_good_start_is_blamed_on_the_peer(folder: Path) -> None:
    client, server = trusting(folder), door(folder).filter()
    carry(client, server)
    server.feed(b"\x17\x03\x03\x00\x20" + b"x" * 32)
    with pytest.raises(RemoteProtocolError):
        server.read(1)
    assert server.failed and server.take(), "the alert goes out"
    assert repr(server) == "<TlsFilter server failed>"
    # What is said after that, a goodbye perhaps, goes nowhere and raises nothing.
    server.write(b"goodbye")
    server.close()
    assert server.take() == b"" and server.unsent_bytes == 0


def test_files_that_cannot_be_used_are_explained(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError):
        client_filter(TlsClient(cert_file=f"{folder}/guest.pem"), "x")
    with pytest.raises(HostError) as caught:
        client_filter(TlsClient(ca_file=str(tmp_path / "missing.pem")), "x")
    assert (caught.value.code, caught.value.errno) == ("tls_ca", "ENOENT")
    (tmp_path / "text.pem").write_text("no certificate\n")
    with pytest.raises(HostError) as caught:
        client_filter(TlsClient(ca_file=str(tmp_path / "text.pem")), "x")
    assert caught.value.code == "tls_ca" and caught.value.errno is None
    for key in ("alone.key", "host.pem", "missing.key"):
        with pytest.raises(HostError) as caught:
            TlsDoor(TlsServer(cert_file=f"{folder}/host.pem", key_file=f"{folder}/{key}"))
        assert caught.value.code == ("tls_key_mode" if key == "host.pem" else "tls_certificate"), key
    locked = tmp_path / "locked.key"
    openssl("ec", "-in", folder / "host.key", "-aes256", "-passout", "pass:secret", "-out", locked)
    with pytest.raises(HostError) as caught:
        TlsDoor(TlsServer(cert_file=f"{folder}/host.pem", key_file=str(locked)))
    assert caught.value.code == "tls_certificate"
    locked.chmod(0o604)
    with pytest.raises(HostError) as caught:
        TlsDoor(TlsServer(cert_file=f"{folder}/host.pem", key_file=str(locked)))
    assert caught.value.code == "tls_key_mode" and "chmod" in (caught.value.fix or "")
