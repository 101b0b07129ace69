from __future__ import annotations

from p2prw.engine.control.auth import compute_mac, mac_matches, session_key, transcript_hash

CLIENT, SERVER = "11" * 32, "22" * 32
TRANSCRIPT = transcript_hash(b"client hello", b"server hello")


def test_the_mac_depends_on_every_input() -> None:
    macs = {
        compute_mac(b"token", "client", CLIENT, SERVER, TRANSCRIPT),
        compute_mac(b"other", "client", CLIENT, SERVER, TRANSCRIPT),
        compute_mac(b"token", "server", CLIENT, SERVER, TRANSCRIPT),
        compute_mac(b"token", "client", SERVER, CLIENT, TRANSCRIPT),
        compute_mac(b"token", "client", CLIENT, CLIENT, TRANSCRIPT),
        compute_mac(b"token", "client", CLIENT, SERVER, transcript_hash(b"client hellos", b"erver hello")),
        compute_mac(b"token", "client", CLIENT, SERVER, transcript_hash(b"client hello", b"server hello", b"tls")),
        session_key(b"token", "client", CLIENT, SERVER, TRANSCRIPT).hex(),
        session_key(b"token", "server", CLIENT, SERVER, TRANSCRIPT).hex(),
    }
    assert len(macs) == 9
    assert all(len(mac) == 64 for mac in macs)


KNOWN_MAC = "219011fafd48a99b35f4e2c4755f4768a3c967a1d9e61bec579b283a9c9a6917"
KNOWN_KEY = "55a67dc8ca341c4c608d8e44087ff07bb1ccce4a4b37f65322657dc9f2a1f106"


def test_the_mac_is_what_it_always_was() -> None:
    """Known answers, computed with `openssl dgst -sha256 -hmac`: a silent change would lock out every older peer."""
    assert compute_mac(b"token", "client", CLIENT, SERVER, TRANSCRIPT) == KNOWN_MAC
    assert session_key(b"token", "server", CLIENT, SERVER, TRANSCRIPT).hex() == KNOWN_KEY


def test_lengths_keep_hello_bodies_apart() -> None:
    assert transcript_hash(b"ab", b"c") != transcript_hash(b"a", b"bc")


def test_comparison() -> None:
    assert mac_matches("a" * 64, "a" * 64)
    assert not mac_matches("a" * 64, "a" * 63 + "b")
